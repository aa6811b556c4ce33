"""The scenarios: what each measures, how it runs, and its target."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from bench import figures as f
from bench import verdicts
from bench.figures import Column
from bench.records import Runs
from bench.servers import FASTPUSH, PEERS, SERVERS, TLS, Sections

RunsOf = Callable[[str], Runs]  # the runs of the scenario with this name
Placement = Literal["apart", "one core", "both cores"]

_SLOW_QUEUE_BYTES = 65536
_SOCKET_SEND_BYTES = 65536  # the default; the kernel doubles it
_SHORT_SECONDS = 5
_QUICK_DIVISOR = 10
_QUICK_SECONDS = (1.5, 4)  # for short loads, and for those whose effects take longer
_QUICK_WARM_UP_SECONDS = 0.3


@dataclass(frozen=True)
class Load:
    """What `fastpush bench` does; its options by the same names.

    rate: pushes a second, or how it follows from the load and from other scenarios.
    """

    connections: int
    mode: str = "fan-out"
    seconds: float = _SHORT_SECONDS
    warm_up_seconds: float = 1
    size_bytes: int = 128
    window: int | None = None
    rate: "float | Callable[[Load, RunsOf], float] | None" = None
    idle: bool = False
    slow: int = 0
    background: float = 0
    churn: float = 0
    connect_rate: float = 0

    def quick(self) -> "Load":
        """Return a small one of the same kind, which shows that it runs and nothing else."""
        return replace(
            self,
            connections=math.ceil(self.connections / _QUICK_DIVISOR),
            seconds=min(self.seconds, _QUICK_SECONDS[self.seconds > _SHORT_SECONDS]),
            warm_up_seconds=min(self.warm_up_seconds, _QUICK_WARM_UP_SECONDS),
            slow=self.slow // _QUICK_DIVISOR,
            churn=self.churn / _QUICK_DIVISOR,
            connect_rate=self.connect_rate / _QUICK_DIVISOR,
        )

    def arguments(self, runs_of: RunsOf) -> list[str]:
        """Return the arguments of `fastpush bench`, without the mode. Raises: LookupError: no rate is known."""
        values = {
            "--connections": self.connections, "--duration": self.seconds, "--warm-up": self.warm_up_seconds,
            "--size": self.size_bytes, "--window": self.window, "--slow": self.slow or None,
            "--background": self.background or None, "--churn": self.churn or None,
            "--connect-rate": self.connect_rate or None,
            "--rate": self.rate(self, runs_of) if callable(self.rate) else self.rate,
        }  # fmt: skip
        texts = [text for name, value in values.items() if value is not None for text in (name, str(value))]
        return [*texts, "--idle"] if self.idle else texts


@dataclass(frozen=True)
class Case:
    """A load on some servers. sections: fastpush's configuration.  path: of its application.  watched: see Record.

    rounds: None for as many as asked for.
    """

    name: str
    load: Load
    servers: Sequence[str] = (FASTPUSH,)
    sections: Sections = field(default_factory=dict)
    path: str = "/ws"
    workers: int = 1
    placement: Placement = "apart"
    watched: bool = False
    rounds: int | None = None


@dataclass(frozen=True, eq=False)
class Scenario:
    """One question; a key by identity.

    how: what a reader has to know of how it is measured.  columns: the first is compared and plotted.
    needs: scenarios that a load of this one follows from.
    """

    name: str
    title: str
    target: str
    how: str
    cases: Sequence[Case]
    columns: Sequence[Column]
    verdict: verdicts.Judge
    needs: Sequence[str] = ()
    by_default: bool = True

    @property
    def servers(self) -> list[str]:
        """Every server that takes part, in the order of SERVERS."""
        return [name for name in SERVERS if any(name in case.servers for case in self.cases)]


# -- rates that follow from something ------------------------------------------------


def half_of_best_peer(load: Load, runs_of: RunsOf) -> float:
    """Return half of what the best peer does with 32 pushes in flight."""
    return _half(PEERS, load, runs_of)


def half_of_own(load: Load, runs_of: RunsOf) -> float:
    """Return half of what fastpush does with 32 pushes in flight."""
    return _half((FASTPUSH,), load, runs_of)


def _half(servers: Sequence[str], load: Load, runs_of: RunsOf) -> float:
    runs = runs_of("fanout-32")
    spreads = [runs.spread(f.DELIVERIES.value, "", server) for server in servers]
    best = max((spread.median for spread in spreads if spread is not None), default=None)
    if best is None:
        raise LookupError(f"no run of fanout-32 of {', '.join(servers)}")
    return round(best / load.connections / 2, 1)


def three_times_what_is_held(load: Load, _: RunsOf) -> float:
    """Return a rate that offers three times what the kernel and the send queue hold for a client that stops reading."""
    received = int(Path("/proc/sys/net/ipv4/tcp_rmem").read_text().split()[1])
    held = 2 * _SOCKET_SEND_BYTES + received + _SLOW_QUEUE_BYTES
    return math.ceil(3 * held / load.seconds / load.size_bytes)


# -- the table ----------------------------------------------------------------------

_NO_PINGS: Sections = {"connections": {"ping_interval_seconds": 3600}}
_PINGS: Sections = {"connections": {"ping_interval_seconds": 25}}
_HUB: Sections = {
    "application": [{"path": "/hub", "handler": "fastpush.applications.hub:Hub", "anonymous": "loopback"}]
}
_SHORT_QUEUE: Sections = {"limits": {"send_queue_bytes": _SLOW_QUEUE_BYTES}}
_DROP_OLDEST: Sections = {"limits": {"send_queue_bytes": _SLOW_QUEUE_BYTES, "slow_policy": "drop-oldest"}}
_SLOW_LOAD = Load(1000, seconds=15, size_bytes=8192, slow=100, rate=three_times_what_is_held)
_USERS = Load(1000, mode="unicast")
_PLACEMENTS: tuple[tuple[str, int, Placement], ...] = (("1 worker", 1, "one core"), ("2 workers", 2, "both cores"))

FANOUT_1 = Scenario(
    name="fanout-1",
    title="Fan-out to 1,000, one push in flight",
    target="CPU a delivery at most 1.2 x the limit and below every peer",
    how="One user with 1,000 connections; the next push goes out when all have the last one.",
    cases=(Case("", Load(1000, window=1), SERVERS),),
    columns=(f.CPU_A_DELIVERY, f.DELIVERIES, f.P50, f.P99, f.LOST, f.CLIENT_BUSY),
    verdict=verdicts.against_limit_and_peers(f.CPU_A_DELIVERY, most=1.2),
)
FANOUT_32 = Scenario(
    name="fanout-32",
    title="Fan-out to 1,000, 32 pushes in flight",
    target="deliveries a second at least 10 x the limit and 10 x the best peer",
    how="The same with a window of 32 pushes.",
    cases=(Case("", Load(1000, window=32), SERVERS),),
    columns=(f.DELIVERIES, f.CPU_A_DELIVERY, f.P50, f.P99, f.LOST, f.CLIENT_BUSY),
    verdict=verdicts.above_limit_and_peers(f.DELIVERIES, least=10),
)
OPEN_PEER = Scenario(
    name="open-peer",
    title="Open loop to 1,000 at half of what the best peer can do",
    target="p99 below every peer's",
    how="Pushes at a fixed rate, whatever happens: half of the best peer's deliveries a second in fanout-32. Latency "
    "counts from when a push was due.",
    cases=(Case("", Load(1000, rate=half_of_best_peer), (FASTPUSH, *PEERS)),),
    columns=(f.P99, f.P50, f.P99_9, f.DELIVERIES, f.LOST),
    verdict=verdicts.below_peers(f.P99),
    needs=("fanout-32",),
)
OPEN_OWN = Scenario(
    name="open-own",
    title="Open loop to 1,000 at half of what fastpush can do",
    target="p99 at most 10 ms",
    how="As above, at half of fastpush's own deliveries a second in fanout-32.",
    cases=(Case("", Load(1000, rate=half_of_own)),),
    columns=(f.P99, f.P50, f.P99_9, f.DELIVERIES, f.LOST, f.CLIENT_BUSY),
    verdict=verdicts.at_most(f.P99, 10),
    needs=("fanout-32",),
)
BROADCAST = Scenario(
    name="broadcast",
    title="Small pushes beside broadcasts to 15,000",
    target="p99 of the small pushes at most 10 ms",
    how="One broadcast after the other; beside them 200 pushes of 64 bytes a second to 16 users.",
    cases=(Case("", Load(15_000, mode="broadcast", window=1, background=200)),),
    columns=(f.SMALL_P99, f.SMALL_P50, f.SMALL_P99_9, f.P50, f.DELIVERIES, f.LOST),
    verdict=verdicts.at_most(f.SMALL_P99, 10),
)
UNICAST = Scenario(
    name="unicast",
    title="Unicast pushes to 1,000 users",
    target="CPU a push below go_push's, 32 publishers",
    how="As many pushes in flight as publishers, each of which keeps one HTTP connection; users in turn. CPU of the "
    "whole process tree.",
    cases=(
        Case("32 publishers", replace(_USERS, window=32), (FASTPUSH, "go_push", "nchan")),
        Case("1 publisher", replace(_USERS, window=1)),
        Case("8 publishers", replace(_USERS, window=8)),
        Case("128 publishers", replace(_USERS, window=128)),
    ),
    columns=(f.CPU_A_PUSH, f.PUSHES, f.P50, f.P99, f.LOST, f.CLIENT_BUSY),
    verdict=verdicts.against(f.CPU_A_PUSH, "32 publishers", "go_push", below=1),
)
IDLE_MEMORY = Scenario(
    name="idle-memory",
    title="Memory of 15,000 idle connections",
    target="at most 7 KB of PSS a connection and below every peer",
    how="Registered connections that came with a browser's headers; PSS of the whole process tree before and after. "
    "The kernel's socket buffers come on top and are the same for every server. The limit is not a server to compare "
    "memory with: it knows nobody.",
    cases=(
        Case(
            "",
            Load(15_000, mode="unicast", idle=True, seconds=0.5, warm_up_seconds=0),
            SERVERS,
            sections=_NO_PINGS,
            rounds=2,
        ),
    ),
    columns=(f.MEMORY, f.EMPTY_MEMORY, f.CONNECT_FAILURES),
    verdict=verdicts.below_peers(f.MEMORY, most=7),
)
IDLE_PINGS = Scenario(
    name="idle-pings",
    title="CPU of 15,000 idle connections that are pinged",
    target="at most 1.5 µs a second and connection",
    how="ping_interval_seconds = 25, the default. 75 s, which are three whole intervals, from between the first pings "
    "and the second.",
    cases=(
        Case(
            "",
            Load(15_000, mode="unicast", idle=True, seconds=75, warm_up_seconds=36),
            sections=_PINGS,
            rounds=1,
        ),
    ),
    columns=(f.CPU_A_SECOND, f.CLOSED),
    verdict=verdicts.at_most(f.CPU_A_SECOND, 1.5),
)
HANDSHAKES = Scenario(
    name="handshakes",
    title="10,000 connections as fast as possible",
    target="at least 0.7 x go_push's rate, by CPU a connect: at most 1.43 x its CPU",
    how="Registered by URL (centrifuge: by message), 200 handshakes under way at once.",
    cases=(
        Case("", Load(10_000, mode="unicast", idle=True, seconds=0.3, warm_up_seconds=0), SERVERS, sections=_NO_PINGS),
    ),
    columns=(f.CPU_A_CONNECT, f.CONNECTS, f.CONNECT_FAILURES),
    verdict=verdicts.against(f.CPU_A_CONNECT, "", "go_push", below=1 / 0.7),
)
SLOW = Scenario(
    name="slow",
    title="100 of 1,000 receivers stop reading",
    target="p99 of the others at most 1.2 x that without them; all stopped ones closed with 1013 and counted; no more "
    "memory than their send queues may hold",
    how=f"Fan-out of 8 KiB messages with send_queue_bytes = {_SLOW_QUEUE_BYTES}, at a rate that offers each stopped "
    "client three times what its kernel buffers and its send queue hold; against the same with the other 900 alone. "
    "With drop-oldest the stopped ones stay, and their oldest messages go.",
    cases=(
        Case("none slow", replace(_SLOW_LOAD, connections=900, slow=0), sections=_SHORT_QUEUE, watched=True),
        Case("disconnect", _SLOW_LOAD, sections=_SHORT_QUEUE, watched=True),
        Case("drop-oldest", _SLOW_LOAD, sections=_DROP_OLDEST, watched=True, rounds=1),
    ),
    columns=(
        f.P99, f.P50, f.MEMORY_GROWTH, f.CLOSED_1013, f.DROPPED_SLOW, f.DROPPED_OLDEST, f.LOST, f.DELIVERIES,
    ),
    verdict=verdicts.slow(_SLOW_QUEUE_BYTES),
)  # fmt: skip
CHURN = Scenario(
    name="churn",
    title="500 reconnects a second for ten minutes",
    target="memory within 5 % of that after the first 30 s; nothing lost",
    how="2,000 connections of as many users, 500 pushes a second.",
    cases=(
        Case("", Load(2000, mode="unicast", seconds=600, rate=500, churn=500), watched=True, rounds=1),
    ),
    columns=(f.MEMORY_GROWTH_PERCENT, f.MEMORY_SETTLED, f.MEMORY_END, f.RECONNECTS, f.LOST, f.P99),
    verdict=verdicts.churn,
    by_default=False,
)  # fmt: skip
STORM = Scenario(
    name="storm",
    title="20,000 connection attempts a second beside 1,000 receivers",
    target="p99 of the receivers at most 20 ms, none lost or closed; CPU of a refused handshake at most 60 µs",
    how="200 unicast pushes a second; once as configured by default, and once with handshakes_per_second = 1000, which "
    "the verdict is about. Then, for the price of a refusal, one receiver and handshakes_per_second = 1: "
    "nearly all attempts are refused, and CPU is divided by those that were answered.",
    cases=(
        Case("no bound", replace(_USERS, seconds=20, rate=200, connect_rate=20_000), rounds=1),
        Case(
            "beside clients",
            replace(_USERS, seconds=20, rate=200, connect_rate=20_000),
            sections={"limits": {"handshakes_per_second": 1000}},
            rounds=1,
        ),
        Case(
            "refused",
            Load(1, mode="unicast", seconds=10, idle=True, connect_rate=20_000),
            sections={"limits": {"handshakes_per_second": 1}},
            rounds=1,
        ),
    ),
    columns=(f.CPU_AN_ANSWER, f.ANSWERED, f.SKIPPED, f.REFUSED, f.P99, f.P50, f.LOST),
    verdict=verdicts.storm,
)
SCALING = Scenario(
    name="scaling",
    title="Two workers on two cores against one worker on one",
    target="not slower",
    how="One core: server and client share it. Two cores: two workers, broker and client share both. Fan-out to 1,000 "
    "with 32 pushes in flight; unicast to 1,000 users with 128.",
    cases=tuple(
        Case(f"{load.mode}, {text}", load, workers=workers, placement=placement)
        for load in (Load(1000, window=32), replace(_USERS, window=128))
        for text, workers, placement in _PLACEMENTS
    ),
    columns=(f.DELIVERIES, f.P50, f.P99, f.LOST, f.CLIENT_BUSY),
    verdict=verdicts.scaling,
)

TLS_COST = Scenario(
    name="tls",
    title="TLS against plain text",
    target="CPU a delivery at most 3 x that of plain text; at most 20 KB of PSS more a connection",
    how="Fan-out to 1,000, one push in flight, each message encrypted for each connection (TLS 1.3, AES-256-GCM); then "
    "5,000 idle connections. Certificate: P-256, self-signed.",
    cases=tuple(
        Case(f"{what}, {text}", load, sections=sections)
        for what, load in (
            ("fan-out", Load(1000, window=1)),
            ("idle", Load(5000, mode="unicast", idle=True, seconds=0.5, warm_up_seconds=0)),
        )
        for text, sections in (("plain", _NO_PINGS), ("TLS", {**_NO_PINGS, **TLS}))
    ),
    columns=(f.CPU_A_DELIVERY, f.MEMORY, f.CPU_A_CONNECT, f.P50, f.P99, f.LOST),
    verdict=verdicts.tls,
)

HUB = Scenario(
    name="hub",
    title="Fan-out by an application against fan-out by POST /push",
    target="CPU a delivery through /hub within 5 % of that of /push",
    how="1,000 receivers, one message in flight: a back-end pushes it, or a client of /hub says it, and a handler in "
    "Python sends it to everybody.",
    cases=(
        Case("push", Load(1000, window=1), sections=_HUB),
        Case("hub", Load(1000, mode="broadcast", window=1), sections=_HUB, path="/hub"),
    ),
    columns=(f.CPU_A_DELIVERY, f.DELIVERIES, f.P50, f.P99, f.LOST),
    verdict=verdicts.hub,
)

SCENARIOS = (
    FANOUT_1, FANOUT_32, OPEN_PEER, OPEN_OWN, BROADCAST, UNICAST, IDLE_MEMORY, IDLE_PINGS, HANDSHAKES, SLOW, CHURN,
    STORM, SCALING, TLS_COST, HUB,
)  # fmt: skip
