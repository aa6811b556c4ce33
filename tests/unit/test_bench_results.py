"""Figures of the load tester: percentiles, assertions, the page, and what a plan makes of its options."""

from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any

import pytest

from fastpush.bench import assertions, page
from fastpush.bench.messages import Chunk, Faults
from fastpush.bench.plan import Plan
from fastpush.bench.recording import SECOND_NS, Board, Counts, Recorder
from fastpush.bench.report import bytes_text, time_text
from fastpush.bench.results import (
    ClientResult,
    OpeningResult,
    Result,
    ServerProcess,
    ServerResult,
    histogram_of,
    latency_of,
    load_result,
    percentiles,
)
from fastpush.bench.verdict import notes
from fastpush.errors import ConfigError


def counts(**values: Any) -> Counts:
    return Counts(
        latencies={0: defaultdict(int, {100: 90, 2000: 9, 50_000: 1})}, delivered=Counter({0: 100}),
        pushed=Counter({0: 100}),
        replies=Counter({"200": 100}), **values,
    )  # fmt: skip


def result(load: Counts | None = None, **values: Any) -> Result:
    given: dict[str, Any] = {
        "version": "1", "started": "2026-01-01T00:00:00+00:00", "settings": {"url": "ws://127.0.0.1/<script>&"},
        "seconds": 1.0, "interrupted": False,
        "opening": OpeningResult(10, 1, {"<b>refused": 1}, 0.5, 20.0, None, 12.0),
        "loads": [load_result("pushes", [load or counts()], 1.0)], "closed": {}, "slow": {}, "churned": 0,
        "churn_failures": {}, "storm": None,
        "server": ServerResult(1, [ServerProcess(1, "<i>", 0.5, 0.5)], 0.5, 5000.0, 5000.0, 10, 20, 30, 1500.0),
        "client": ClientResult([0.5], [0.5]),
    }  # fmt: skip
    return Result(**(given | values))


# -- percentiles --------------------------------------------------------------------


def test_percentiles_are_exact() -> None:
    """A percentile is the smallest value that this share of all does not exceed."""
    hundred = Counter(range(1, 101))
    assert percentiles(hundred, (0.01, 0.5, 0.99, 1.0)) == [1, 50, 99, 100]
    assert percentiles(Counter({7: 1}), (0.5, 0.999)) == [7, 7]
    assert percentiles(Counter({1: 999, 5: 1}), (0.5, 0.999)) == [1, 1]
    assert percentiles(Counter({1: 998, 5: 2}), (0.999,)) == [5]
    latency = latency_of(Counter({10: 3, 30: 1}))
    assert latency is not None
    assert (latency.count, latency.mean_us, latency.p50_us, latency.max_us) == (4, 15.0, 10, 30)
    assert latency_of(Counter()) is None


def test_histogram_holds_everything_once() -> None:
    """Ten buckets a decade, none left out between the first and the last, and every value in its own."""
    values = Counter({0: 1, 1: 1, 10: 2, 99: 3, 100: 4, 12_345: 5})
    buckets = histogram_of(values)
    assert sum(bucket.count for bucket in buckets) == values.total()
    assert all(one.to_us == other.from_us for one, other in pairwise(buckets))
    assert next(bucket.count for bucket in buckets if bucket.from_us == 100) == 4
    assert histogram_of(Counter()) == []


def test_processes_are_summed() -> None:
    """Counters of all processes are added, second by second, and faults with them."""
    other = Counts(latencies={1: defaultdict(int, {100: 100})}, delivered=Counter({1: 100}), faults=Faults(lost=2))
    load = load_result("pushes", [counts(faults=Faults(1, 2, 3)), other], 2.0)
    assert (load.deliveries, load.deliveries_per_second, load.pushes) == (200, 100.0, 100)
    assert (load.lost, load.duplicated, load.reordered) == (3, 2, 3)
    assert [(row.second, row.deliveries, row.p99_us) for row in load.series] == [(0, 100, 2000), (1, 100, 100)]


def test_replies_are_told_apart() -> None:
    """4xx and 503 promise that nobody got the push; anything else that is not 2xx says nothing."""
    replies = Counter({"200": 5, "401": 1, "503": 2, "504": 4, "502": 8, "no reply": 16})
    load = load_result("pushes", [Counts(replies=replies)], 1.0)
    assert (load.refused, load.errors) == (3, 28)


# -- recording ----------------------------------------------------------------------


def test_only_what_was_due_in_the_interval_has_a_latency() -> None:
    """Messages due before or after the measured interval are delivered, but not timed; the rest by their second."""
    recorder = Recorder()
    recorder.measure(10 * SECOND_NS, 12 * SECOND_NS)
    for due in (9.9, 10.0, 10.5, 11.5, 12.0, 10.1):
        recorder.record(Chunk(b"", 0, 0, 3, [int(due * SECOND_NS)] * 3))
    assert {second: sum(counter.values()) for second, counter in recorder.counts.latencies.items()} == {0: 9, 1: 3}
    assert recorder.deliveries == 18


def test_board_counts_for_each_group_and_publisher() -> None:
    """Posted pushes are counted by group and publisher; a refused one gives its sequence back."""
    board = Board(publishers=2, first_publisher=9000, groups=3, processes=2)
    assert [board.post(1, 0), board.post(1, 0), board.post(1, 1), board.post(2, 0)] == [0, 1, 0, 0]
    board.take_back(1, 0)
    assert board.posted(1) == {b"9000": 1, b"9001": 1}
    assert (board.posted(0), board.posted_sum(1)) == ({}, 2)
    board.add_present(1, 2, 1)
    assert (board.present(2), board.present(1)) == (0b10, 0)
    board.add_present(1, 2, -1)
    assert board.present(2) == 0
    board.add_unknown(1, 9001, 5)
    assert board.unknown() == {1: {(9001, 5)}}


# -- assertions ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("p50<101us", True), ("p50<=100us", True), ("p50<100us", False), ("p99 = 2ms", True), ("p99.9>=0.05s", True),
        ("max>50ms", False), ("lost=0", True), ("pushes>=100", True), ("connects_per_second>20", False),
        ("memory_per_connection<1.6KB", True), ("memory_per_connection<1KB", False), ("cpu_per_delivery<5.1ms", True),
        ("background_p99<1s", False), ("failed=1", True), ("closed = 0", True),
    ],
)  # fmt: skip
def test_assertions(text: str, *, holds: bool) -> None:
    """Each metric, operator and unit; a metric that the run does not have is a failure."""
    (assertion,) = assertions.parse(text)
    failure = assertion.failure(assertions.figures(result()))
    assert (failure is None) == holds, failure


def test_assertions_are_a_list() -> None:
    """Commas separate conditions, and a failure says what it was instead."""
    parsed = assertions.parse("p99<1ms, lost=0")
    assert [one.failure(assertions.figures(result())) for one in parsed] == ["p99<1ms: it was 2.00 ms", None]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("p99", "operators are"), ("speed<1", "there are: p50"), ("p99<1", "us, µs, ms, s"), ("lost=0ms", "no unit"),
        ("memory_per_connection<1GB", "B, KB, MB"), ("p99<-1ms", "operators are"), ("", "operators are"),
    ],
)  # fmt: skip
def test_wrong_assertions_name_what_is_allowed(text: str, hint: str) -> None:
    """A wrong metric, unit or form is refused with what there is."""
    with pytest.raises(ConfigError, match=hint):
        assertions.parse(text)


# -- texts --------------------------------------------------------------------------


def test_page_escapes_everything() -> None:
    """Whatever stands in URLs, names and reasons shows as text; the page loads nothing."""
    html = page.render(result(notes=["<img src=x>"]), ["p99<1ms: <u>"])
    for raw in ("<script", "<b>refused", "<i>", "<img", "<u>", "http://", "https://"):
        assert raw not in html, raw
    assert "ws://127.0.0.1/&lt;script&gt;&amp;" in html
    assert html.count("<svg") == 3


def test_page_of_an_idle_run() -> None:
    """A run without pushes has a page without charts."""
    html = page.render(result(loads=[], server=None), [])
    assert "Nothing was pushed" in html
    assert "<svg" not in html


def test_texts_have_units() -> None:
    """Times and sizes are shown in the unit that suits them."""
    assert [time_text(value) for value in (7, 999, 1500, 2_500_000)] == ["7 µs", "999 µs", "1.50 ms", "2.50 s"]
    assert [bytes_text(value) for value in (1500, 99_000, 1_500_000)] == ["1.5 KB", "99.0 KB", "1.5 MB"]


def test_notes_name_the_bottleneck() -> None:
    """A busy client beside an idle server is named with figures; both busy is fine."""
    plan = Plan()
    opening = OpeningResult(10, 0, {}, 0.5, 20.0, None, None)
    load = load_result("pushes", [counts(late=50, late_ns_max=7_000_000)], 1.0)

    def said(busy: float, server: float) -> str:
        cost = ServerResult(1, [ServerProcess(1, "s", 1.0, server)], 1.0, None, None, None, None, None, None)
        return " ".join(notes(plan, [load], opening, cost, ClientResult([0.1, busy], [0.1, busy])))

    assert "97% busy, the server's 40%" in said(0.97, 0.4)
    assert "bottleneck" not in said(0.97, 0.95)
    assert "bottleneck" not in said(0.5, 0.4)
    assert "50 of 100 pushes went out more than 1 ms late (up to 7.0 ms)" in said(0.5, 0.4)


# -- plan ---------------------------------------------------------------------------


def test_plan_defaults_follow_from_each_other() -> None:
    """Users, publishers, processes and push URLs have the defaults that their neighbours ask for."""
    assert (Plan().user_count, Plan(mode="fan-out").user_count, Plan(mode="broadcast").user_count) == (1000, 1, 1000)
    assert [plan.publisher_count for plan in (Plan(), Plan(window=8), Plan(rate=5.0), Plan(push_via="websocket"))] == [
        1, 8, 32, 1,
    ]  # fmt: skip
    assert [Plan(connections=count).process_count for count in (1, 15_000, 15_001)] == [1, 1, 2]
    assert Plan(url="wss://h:1/ws").loads[0].push_url == "https://h:1/push"
    assert Plan(mode="broadcast").loads[0].push_url == "http://127.0.0.1:8080/push/all"
    assert [load.name for load in Plan(background=5.0).loads] == ["pushes", "background"]


def test_plan_gives_the_background_a_process() -> None:
    """The background's process comes after those that hold the connections, however many these are."""
    assert Plan().background_process is None
    assert Plan(background=5.0).background_process == 1
    assert Plan(background=5.0, connections=20, processes=3).background_process == 3


def test_plan_fills_push_urls() -> None:
    """Path and query of --push-url are filled in for each user, with values percent-encoded."""
    url = "http://h:1/{event}/pub?id={user}&for={token}"
    plan = Plan(push_url=url, token="a&{user}/ü", event="x y")
    assert plan.push_target(plan.loads[0], 7) == "/x%20y/pub?id=7&for=a%267%2F%C3%BC"
    assert Plan().push_target(Plan().loads[0], 7) == "/push"
    plan = Plan(push_url="http://h:1")
    assert plan.push_target(plan.loads[0], 7) == "/"


def test_plan_spreads_over_source_addresses() -> None:
    """More connections than one loopback address has ports use several; other targets are left to the kernel."""
    assert Plan(connections=20_000).sources == (None,)
    assert Plan(connections=40_001).sources == ("127.0.0.2", "127.0.0.3", "127.0.0.4")
    assert Plan(url="ws://10.0.0.1/ws", connections=40_001).sources == (None,)
    assert Plan(connections=40_001, source_addresses=("127.0.0.9",)).sources == ("127.0.0.9",)


def test_plan_fills_templates() -> None:
    """Placeholders are filled in: quoted in URLs, escaped in JSON; without any, token and event are added."""
    assert Plan(url="ws://h/ws?a=1", token='"{user}').target(5) == "/ws?a=1&token=%225&event=bench"
    assert Plan(url="ws://h/{event}/{user}?t={token}", token="a&b").target(5) == "/bench/5?t=a%26b"
    assert Plan(url="ws://h/ws", register="message", token='"{user}').registration(5) == (
        '{"token":"\\"5","event":"bench"}'
    )
    plan = Plan()
    assert plan.body_around(plan.loads[0], 3) == ('{"userId":"user3","event":"bench","message":"', '"}')
    background = Plan(connections=10, background=1.0)
    assert background.body_around(background.loads[1], 2)[0].startswith('{"userId":"user12"')
