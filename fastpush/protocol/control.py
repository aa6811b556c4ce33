"""Messages between supervisor and children, one JSON object a datagram.

They travel on a SOCK_SEQPACKET socket pair made before the fork, so borders are
kept by the kernel and an end-of-file means that the other side is gone. Control
only: no event data ever passes the supervisor.

    supervisor -> child     Drain, Reload, Cover (+ descriptors), Uncover, Gone
    child -> supervisor     Ready, Beat, Leaving, Stalled
"""

import msgspec

from fastpush.config import Config

MESSAGE_BYTES_MAX = 196_608  # below the kernel's default limit for one datagram


class Drain(msgspec.Struct, tag="drain", frozen=True):
    """Stop accepting, end every connection with 1012, answer what is under way, exit 0."""

    seconds: float


class Reload(msgspec.Struct, tag="reload", frozen=True):
    """Take over the live settings of `config` and reopen the log file."""

    config: Config


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


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The child serves."""


class Beat(msgspec.Struct, tag="beat", frozen=True):
    """The child's loop runs. figures: what `fastpush status` shows of it."""

    figures: dict[str, int] = {}


class Leaving(msgspec.Struct, tag="leaving", frozen=True):
    """The child stops accepting on its own account and ends within `seconds`: its slot needs another process."""

    seconds: float


class Stalled(msgspec.Struct, tag="stalled", frozen=True):
    """From the broker: this worker did not send its key table in time and has to go."""

    worker: int


ToChild = Drain | Reload | Cover | Uncover | Gone
FromChild = Ready | Beat | Leaving | Stalled

encode = msgspec.json.Encoder().encode
decode_to_child = msgspec.json.Decoder(ToChild).decode
decode_from_child = msgspec.json.Decoder(FromChild).decode
