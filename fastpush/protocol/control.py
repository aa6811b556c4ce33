"""Messages between supervisor and children, one JSON object a datagram.

They travel on a SOCK_SEQPACKET socket pair made before the fork, so borders are
kept by the kernel and an end-of-file means that the other side is gone. Control
only: no event data ever passes the supervisor.

    supervisor -> child     Drain, ReopenLog, Prepare, Reload, Readiness, Cover (+ descriptors), Uncover, Gone, Restarts
    child -> supervisor     Ready, Beat, Prepared, Reloaded, Leaving, Stalled

A reload has two phases, so that what only a child can find out (a function that cannot be
imported) changes nothing either: every child prepares, and Reload is sent once all have.
"""

import msgspec

from fastpush.config import Config

MESSAGE_BYTES_MAX = 196_608  # below the kernel's default limit for one datagram


class Drain(msgspec.Struct, tag="drain", frozen=True):
    """Close every client with 1012, answer what is under way, and exit 0 within `seconds`.

    spread_seconds: clients are closed evenly over that time; None: as fast as it is gentle to who takes them.
    listens: pushes are accepted until the end, and handshakes refused; else nothing is accepted any more.
    A second one replaces the first.
    """

    seconds: float
    spread_seconds: float | None = None
    listens: bool = False


class ReopenLog(msgspec.Struct, tag="reopen-log", frozen=True):
    """Open the log file anew under its name: it may have been moved."""


class Prepare(msgspec.Struct, tag="prepare", frozen=True):
    """Make everything that `config` needs, change nothing, and answer Prepared with the number of the reload."""

    reload: int
    config: Config


class Reload(msgspec.Struct, tag="reload", frozen=True):
    """Take over the live settings of `config`, and answer Reloaded with the number of the reload."""

    reload: int
    config: Config


class Readiness(msgspec.Struct, tag="readiness", frozen=True):
    """What every worker answers at /ready. reason: why this host should get no clients now; empty: it should."""

    reason: str


class Cover(msgspec.Struct, tag="cover", frozen=True):
    """Accept from another slot's listeners too; their descriptors come with this datagram.

    They are in the order of the child's own listeners and have the same roles.
    """

    slot: int


class Uncover(msgspec.Struct, tag="uncover", frozen=True):
    """Stop accepting from that slot's listeners: its own process is ready."""

    slot: int


class Gone(msgspec.Struct, tag="gone", frozen=True):
    """To the broker: this worker process has ended, expect nothing from it."""

    worker: int


class Restarts(msgspec.Struct, tag="restarts", frozen=True):
    """To the broker: how many processes were started in place of ended ones, in the supervisor's life."""

    workers: int
    broker: int


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The child serves."""


class Beat(msgspec.Struct, tag="beat", frozen=True):
    """The child's loop runs. figures: what `fastpush status` shows of it."""

    figures: dict[str, int] = {}


class Prepared(msgspec.Struct, tag="prepared", frozen=True):
    """The child could take the prepared configuration over; or `problem` says why not."""

    reload: int
    problem: str = ""


class Reloaded(msgspec.Struct, tag="reloaded", frozen=True):
    """The child goes by the configuration of this reload."""

    reload: int


class Leaving(msgspec.Struct, tag="leaving", frozen=True):
    """The child stops accepting on its own account and ends within `seconds`: its slot needs another process."""

    seconds: float


class Stalled(msgspec.Struct, tag="stalled", frozen=True):
    """From the broker: this worker did not send its key table in time and has to go."""

    worker: int


ToChild = Drain | ReopenLog | Prepare | Reload | Readiness | Cover | Uncover | Gone | Restarts
FromChild = Ready | Beat | Prepared | Reloaded | Leaving | Stalled

encode = msgspec.json.Encoder().encode
decode_to_child = msgspec.json.Decoder(ToChild).decode
decode_from_child = msgspec.json.Decoder(FromChild).decode
