"""The side-by-side benchmark: what its scenarios ask for, and what it makes of the records."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from bench import peers, report, verdicts
from bench.figures import CPU_A_DELIVERY, over, rate
from bench.measure import LoadFailed, drive
from bench.plots import Bar, bars
from bench.records import Folder, Record, Runs, Spread
from bench.run import Options, run, schedule, with_needed
from bench.scenarios import FANOUT_1, FANOUT_32, OPEN_OWN, OPEN_PEER, SCALING, SCENARIOS, SLOW, STORM, Load
from bench.servers import FASTPUSH, LABELS, PEERS, SERVERS, driving, unavailable
from fastpush.bench.plan import Plan
from fastpush.cli.bench import bench


def record(scenario: str, server: str, number: int = 1, /, *, case: str = "", **values: Any) -> Record:
    """A run; values: of its JSON, as far as a test looks at it."""
    result: dict[str, Any] = {"closed": {}, "notes": [], "loads": [], "seconds": 5.0, "settings": {}}
    watched = values.pop("watched", {})
    return Record(scenario, case, server, "1", number, ["ws://x", "--pid", "7", "--idle"], result | values, "", watched)


def fan_out(server: str, number: int, cpu_us: float, deliveries: float) -> Record:
    load = {"deliveries_per_second": deliveries, "lost": 0, "latency": {"p50_us": 900, "p99_us": 2000}}
    return record(
        "fanout-1", server, number, loads=[load], server={"cpu_us_per_delivery": cpu_us}, client={"busy": [0.5]}
    )


def runs_of(*records: Record) -> Any:
    return lambda name: Runs(found for found in records if found.scenario == name)


# -- scenarios ----------------------------------------------------------------------


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
@pytest.mark.parametrize("quick", [False, True])
def test_every_load_is_one_that_the_command_takes(scenario: Any, *, quick: bool) -> None:
    """All options of all cases are options of `fastpush bench` and do not contradict each other."""
    full = runs_of(*(record("fanout-32", name, loads=[{"deliveries_per_second": 1e5}]) for name in SERVERS))
    for case in scenario.cases:
        load = case.load.quick() if quick else case.load
        arguments = ["ws://127.0.0.1:1/ws", "--mode", load.mode, *load.arguments(full)]
        options = bench.make_context("bench", arguments).params
        for name in ("json_path", "html_path", "conditions"):
            del options[name]
        Plan(**options).check()


def test_names_are_unique_and_servers_known() -> None:
    """Records of different scenarios, cases and servers never share a place."""
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)
    for scenario in SCENARIOS:
        assert len({case.name for case in scenario.cases}) == len(scenario.cases)
        assert FASTPUSH in scenario.servers
        assert set(scenario.servers) <= set(LABELS)


def test_rounds_alternate() -> None:
    """In a round every server of every case has its turn before the next round begins."""
    plan = [(number, case.name, name) for number, case, name in schedule(FANOUT_1, ["limit", FASTPUSH], 2)]
    assert plan == [(1, "", "limit"), (1, "", FASTPUSH), (2, "", "limit"), (2, "", FASTPUSH)]
    plan = [(number, case.name, name) for number, case, name in schedule(SLOW, [FASTPUSH, "ws"], 2)]
    assert plan[:3] == [(1, "none slow", FASTPUSH), (1, "disconnect", FASTPUSH), (1, "drop-oldest", FASTPUSH)]
    assert plan[3:] == [(2, "none slow", FASTPUSH), (2, "disconnect", FASTPUSH)]


def test_a_rate_is_half_of_the_best_peer() -> None:
    """The open loop's rate comes from fan-out with 32 in flight: of peers, without the limit, or of fastpush."""
    runs = runs_of(
        *(
            record("fanout-32", name, number, loads=[{"deliveries_per_second": value * number}])
            for name, value in (("limit", 9e5), (FASTPUSH, 8e5), ("ws", 1e5), ("go_hub", 2e5))
            for number in (1, 2, 3)
        )
    )
    (peer,), (own,) = OPEN_PEER.cases, OPEN_OWN.cases
    assert "--rate 200.0" in " ".join(peer.load.arguments(runs))
    assert "--rate 800.0" in " ".join(own.load.arguments(runs))
    with pytest.raises(LookupError, match="fanout-32"):
        peer.load.arguments(runs_of())


def test_slow_clients_are_offered_three_times_what_is_held() -> None:
    """Whatever the duration, a stopped client is offered more than kernel and send queue can hold three times."""
    _, disconnect, _ = SLOW.cases
    for load in (disconnect.load, disconnect.load.quick()):
        pushes = float(load.arguments(runs_of())[-1]) * load.seconds
        assert pushes * load.size_bytes >= 3 * (2 * 65536 + 65536)


def test_what_a_scenario_follows_from_runs_before_it(tmp_path: Path) -> None:
    """A needed scenario of which nothing is kept is added, in front; one that is kept is not run again."""
    folder = Folder(tmp_path)
    assert with_needed([OPEN_PEER], folder, SERVERS) == [FANOUT_32, OPEN_PEER]
    folder.write(Record("fanout-32", "", "ws", "1", 1, [], failure="did not start"))
    assert with_needed([OPEN_PEER], folder, SERVERS) == [FANOUT_32, OPEN_PEER]
    folder.write(record("fanout-32", "ws"))
    assert with_needed([OPEN_PEER], folder, SERVERS) == [OPEN_PEER]
    assert with_needed([FANOUT_1], folder, SERVERS) == [FANOUT_1]


def test_a_server_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A peer whose programs are missing is named with the way to install it, and nothing of it runs."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert unavailable(FASTPUSH) is None
    said: list[str] = []
    folder = Folder(tmp_path / "kept")
    run([FANOUT_1], folder, Options(["ws"], 1, True, 0, 0), said.append)
    assert said == ["ws (Node) is left out: not installed (bench/peers/install.sh)", f"fanout-1: {FANOUT_1.title}"]
    assert folder.runs("fanout-1").records == []


def test_a_load_without_a_result_says_why() -> None:
    """What `fastpush bench` says last is the reason that is kept."""
    with pytest.raises(LoadFailed, match=r"--size|refused|connect"):
        drive(["ws://127.0.0.1:9/ws", "--size", "1"], (0,), 1)


# -- records ------------------------------------------------------------------------


def test_records_are_read_back_as_written(tmp_path: Path) -> None:
    """A record survives the file and replaces an earlier one of the same run; forgetting one server leaves others."""
    folder = Folder(tmp_path)
    first, second = record("fanout-1", FASTPUSH, case="fan-out, 1 worker"), record("fanout-1", "ws")
    folder.write(Record("fanout-1", first.case, FASTPUSH, "0", 1, []))
    folder.write(first)
    folder.write(second)
    assert folder.runs("fanout-1").records == [first, second] or folder.runs("fanout-1").records == [second, first]
    folder.forget("fanout-1", [FASTPUSH])
    assert folder.runs("fanout-1").records == [second]
    folder.write_note("left_out", {"ws": "not installed"})
    assert folder.note("left_out") == {"ws": "not installed"}
    assert folder.note("machine") is None
    assert folder.runs("fanout-1").records == [second]


def test_ratios_are_taken_round_by_round() -> None:
    """A machine that is slow for one whole round does not change a ratio; rounds that one side lacks do not count."""
    runs = Runs([
        fan_out(FASTPUSH, 1, 5.0, 1), fan_out(FASTPUSH, 2, 50.0, 1), fan_out(FASTPUSH, 3, 5.5, 1),
        fan_out("limit", 1, 4.0, 1), fan_out("limit", 2, 40.0, 1), Record("fanout-1", "", "limit", "1", 3, []),
    ])  # fmt: skip
    assert runs.ratio(CPU_A_DELIVERY.value, ("", FASTPUSH), ("", "limit")) == Spread(1.25, 1.25, 1.25)
    assert runs.spread(CPU_A_DELIVERY.value, "", FASTPUSH) == Spread(5.5, 5.0, 50.0)
    assert runs.spread(CPU_A_DELIVERY.value, "", "ws") is None
    assert over(Spread(1500, 1000, 2000), rate) == "1,500/s (1,000/s to 2,000/s)"


# -- verdicts -----------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "peer", "met"), [(4.5, 6.0, True), (4.0, 6.0, False), (4.5, 4.9, False)])
def test_fan_out_is_compared_with_the_limit_and_the_best_peer(limit: float, peer: float, *, met: bool) -> None:
    """The target is met by both comparisons or not at all; the peer named is the one that is hardest to beat."""
    runs = Runs([
        fan_out(FASTPUSH, 1, 5.0, 1), fan_out("limit", 1, limit, 1), fan_out("ws", 1, peer, 1),
        fan_out("nchan", 1, 9.0, 1),
    ])  # fmt: skip
    verdict = FANOUT_1.verdict(runs)
    assert verdict.met is met
    assert LABELS["ws"] in verdict.figure


def test_without_the_other_server_there_is_no_verdict() -> None:
    """A comparison with nothing is neither met nor missed."""
    alone = Runs([fan_out(FASTPUSH, 1, 5.0, 1)])
    for scenario in SCENARIOS:
        assert scenario.verdict(Runs([])) == verdicts.NOT_MEASURED
    assert FANOUT_1.verdict(alone) == verdicts.NOT_MEASURED


def slow_run(case: str, p99_us: int, grown: int, **watched: Any) -> Record:
    return record(
        "slow", FASTPUSH, case=case, settings={"slow": 100}, server={"memory_idle_bytes": 50_000_000},
        loads=[{"lost": 0, "latency": {"p99_us": p99_us}}],
        watched={"samples": [[1.0, 50_000_000], [2.0, 50_000_000 + grown]], "metrics": {}, "closes": {}} | watched,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("p99_us", "grown", "closed", "met"),
    [(1100, 6_000_000, 100, True), (1300, 0, 100, False), (1100, 9_000_000, 100, False), (1100, 0, 99, False)],
)
def test_slow_clients(p99_us: int, grown: int, closed: int, *, met: bool) -> None:
    """Latency of the others, memory, and every close by policy: each alone misses the target."""
    slow = slow_run(
        "disconnect", p99_us, grown, closes={"1013": closed}, metrics={'fastpush_drops_total{reason="slow"}': 700.0}
    )
    assert SLOW.verdict(Runs([slow_run("none slow", 1000, 0), slow])).met is met


def test_storm_counts_what_was_answered() -> None:
    """CPU of a refused handshake is the server's CPU over the attempts that got a status, not over those offered."""
    beside = record(
        "storm", FASTPUSH, case="beside clients", loads=[{"lost": 0, "latency": {"p99_us": 15_000}}],
        storm={"answers": {"101": 5}}, server={"cpu_seconds": 1},
    )  # fmt: skip
    refused = record(
        "storm", FASTPUSH, case="refused", storm={"answers": {"503": 1000, "skipped": 9000}},
        server={"cpu_seconds": 0.05},
    )  # fmt: skip
    verdict = STORM.verdict(Runs([beside, refused]))
    assert verdict.met is True
    assert "50.0 µs" in verdict.figure


def test_scaling_prints_the_factor_that_is() -> None:
    """Two workers that are slower miss the target, and the factor says how much."""
    runs = Runs(
        record("scaling", FASTPUSH, case=f"{mode}, {workers}", loads=[{"deliveries_per_second": value}])
        for mode in ("fan-out", "unicast")
        for workers, value in (("1 worker", 100.0), ("2 workers", 150.0 if mode == "fan-out" else 90.0))
    )
    verdict = SCALING.verdict(runs)
    assert verdict.met is False
    assert verdict.figure == "fan-out 1.50 x; unicast 0.90 x"


# -- the page -----------------------------------------------------------------------


def test_the_page_states_missed_targets_and_failures(tmp_path: Path) -> None:
    """RESULTS.md is rebuilt from what is kept: figures, ratios, what failed, what is missed and what is missing."""
    folder = Folder(tmp_path / "kept")
    folder.write_note("machine", {"processor": "p", "cores": "2"})
    folder.write_note("left_out", {"centrifuge": "not installed"})
    for found in (
        fan_out(FASTPUSH, 1, 6.0, 100), fan_out("limit", 1, 4.0, 200), fan_out("ws", 1, 8.0, 50),
        Record("fanout-1", "", "nchan", "9", 1, [], failure="nothing arrived"),
    ):  # fmt: skip
        folder.write(found)
    report.write(folder, tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "Missed: fanout-1." in text
    assert "Not measured: fanout-32" in text
    assert "Left out: centrifuge 0.15 (2021): not installed." in text
    assert "nchan (nginx), round 1: failed: nothing arrived" in text
    assert "| ws (Node) | 8.00 µs |" in text
    assert "1.33 x" in text
    assert "`fastpush bench --idle`" in text
    assert str(Path.home()) not in text
    assert str(tmp_path) not in text
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["fanout-1.svg"]


def test_the_page_has_what_channels_cost(tmp_path: Path) -> None:
    """Questions of bench.channels stand among the targets, and each in a section of its own."""
    folder = Folder(tmp_path / "kept")
    answer = {"title": "T", "how": "H.", "target": "t", "figure": "1.50 x", "met": False, "rows": [["with", "2 µs", 3]]}
    folder.write_note("channels", {"history": answer})
    report.write(folder, tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "Missed: history." in text
    assert "| [history](#history) | t | 1.50 x | **no** |" in text
    assert "## history\n\nT. H.\n\nTarget: t. Figure: 1.50 x. Met: **no**." in text
    assert "| with | 2 µs | 3 |" in text


def test_bars_are_svg_and_to_scale() -> None:
    """A bar is as long as its value; where values differ very much the axis is logarithmic and says so."""
    rows = [Bar("a <b>", Spread(10, 8, 12), is_own=True), Bar("c", Spread(5, 5, 5), is_own=False)]
    root = ET.fromstring(bars("t & t", rows, rate))
    widths = [float(rect.attrib["width"]) for rect in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.01)
    assert "logarithmic" not in bars("t", rows, rate)
    assert "logarithmic" in bars("t", [*rows, Bar("d", Spread(5000, 5000, 5000), is_own=False)], rate)


def test_peers_are_driven_by_their_own_words() -> None:
    """Where users, registration and message stand in a peer's protocol is what `fastpush bench` is told."""
    found = {peer.name: " ".join(driving(peer, 81)) for peer in peers.PEERS}
    assert set(found) == set(SERVERS) - {FASTPUSH} == {"limit", *PEERS}
    assert "ws://127.0.0.1:81/ws?token={user}&event={event} --register url" in found["go_push"]
    assert '--push-body {"userId":"{user}","event":"{event}","message":"{message}"}' in found["go_push"]
    assert '--register message --register-message {"id":1,"params":{}} --register-reply' in found["centrifuge"]
    assert "--push-url http://127.0.0.1:81/pub?id={user} --push-via http --push-body {message}" in found["nchan"]
    assert "--push-url ws://127.0.0.1:81/publish --push-via websocket" in found["websockets"]


def test_quick_is_small() -> None:
    """A quick run of any load takes seconds."""
    for scenario in SCENARIOS:
        for case in scenario.cases:
            quick = case.load.quick()
            assert quick.seconds + quick.warm_up_seconds < 5
            assert quick.connections <= 1500
    assert Load(1000, window=1).quick().connections == 100
