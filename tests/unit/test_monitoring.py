"""docs/: the table of figures, the dashboard and the alert rules agree with fastpush/metrics.py."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from fastpush.http.exposition import exposition
from fastpush.metrics import BROKER_METRICS, WORKER_METRICS, Counters
from tests.programs import need, run
from tools.metrics_table import render

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "docs" / "grafana-dashboard.json"
ALERTS = ROOT / "docs" / "alerts.yml"
METRICS = (*WORKER_METRICS.values(), *BROKER_METRICS.values())
NAMES = {
    name
    for metric in METRICS
    for name in (
        [f"{metric.name}_{part}" for part in ("bucket", "sum", "count")]
        if metric.kind == "histogram"
        else [metric.name]
    )
}
VALUES = {(metric.label, metric.value) for metric in METRICS if metric.label}


def promtool(*arguments: str) -> str:
    result = run(need("promtool", "prometheus"), *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def unknown(expression: str) -> set[str]:
    """What an expression asks for and nobody exports: names, and values of labels."""
    names = set(re.findall(r"\bfastpush_\w+", expression)) - NAMES
    asked = re.findall(r'(outcome|reason|role)(?:=|=~)"([^"]*)"', expression)
    return names | {value for label, choice in asked for value in choice.split("|") if (label, value) not in VALUES}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def panel_expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def alerts() -> Iterator[tuple[str, str]]:
    """Name and text of each rule."""
    for text in re.split(r"\n\s+- (?=alert: )", ALERTS.read_text())[1:]:
        yield text.partition("\n")[0].removeprefix("alert: "), text


def test_the_table_is_what_is_exported() -> None:
    """docs/metrics.md holds the output of tools/metrics_table.py: run it when this fails."""
    assert render() in (ROOT / "docs" / "metrics.md").read_text()
    assert all(f"| `{metric.name}` |" in render() for metric in METRICS)


def test_queries_of_the_page_are_known() -> None:
    """What docs/metrics.md tells to ask for exists."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    queries = re.findall(r"^\| [^|`]+ \| `([^`]+)` \|$", page, re.MULTILINE)
    assert len(queries) >= 5
    assert not set().union(*map(unknown, queries))


def test_the_dashboard_can_be_imported() -> None:
    """Panels have their own ids and places, a title, a description, and only the data source that is asked for."""
    board = json.loads(DASHBOARD.read_text())
    assert board["uid"] == board["title"] == "fastpush" and "id" not in board
    assert [variable["name"] for variable in board["templating"]["list"]] == ["datasource", "instance"]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24
        taken |= cells
    for panel in panels():
        assert panel["title"] and panel["description"].endswith(".")
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}


def test_panels_ask_for_what_exists() -> None:
    """Every expression uses names and label values that are exported, of the hosts that are chosen."""
    for expression in panel_expressions():
        assert not unknown(expression), expression
        assert expression.count("fastpush_") == expression.count('{instance=~"$instance"')


def test_every_figure_is_on_the_dashboard_or_in_an_alert() -> None:
    """What nobody looks at need not be exported; auxiliary figures aside."""
    shown = " ".join([*panel_expressions(), ALERTS.read_text()])
    unseen = {metric.name for metric in METRICS if metric.name not in shown}
    assert unseen <= {"fastpush_http_connections", "fastpush_auth_timeouts_total"}


def test_expressions_are_promql(tmp_path: Path) -> None:
    """Prometheus parses every expression of the dashboard."""
    rules = [
        {"record": f"panel:{number}", "expr": text.replace("$__rate_interval", "1m").replace("$instance", ".*")}
        for number, text in enumerate(panel_expressions())
    ]
    path = tmp_path / "panels.yml"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(path))


def test_alerts_are_rules() -> None:
    """Prometheus takes the file, and each rule says how bad it is, why it is one, and what to do."""
    found = dict(alerts())
    assert f"{len(found)} rules found" in promtool("check", "rules", str(ALERTS))
    for name, text in found.items():
        assert not unknown(text), name
        assert re.search(r"severity: (critical|warning|info)\b", text), name
        assert all(f"\n          {part}: " in text for part in ("summary", "reason", "action")), name


def test_alerts_fire_when_they_should() -> None:
    """On a host that is well none does; each has a case in which it does, and no other."""
    cases = ROOT / "tests" / "alerts" / "alerts.test.yml"
    assert set(re.findall(r"- name: (\w+)", cases.read_text())) == {name for name, _ in alerts()}
    assert "SUCCESS" in promtool("test", "rules", str(cases))


@pytest.mark.parametrize("query", ["", "?sum=1"])
def test_promtool_takes_a_scrape(query: str, tmp_path: Path) -> None:
    """Names, units and types follow Prometheus' conventions: its linter has nothing to say."""
    counters = Counters().snapshot()
    gauges = {name: 1 for name, metric in WORKER_METRICS.items() if metric.kind == "gauge"}
    broker = dict.fromkeys(BROKER_METRICS, 1)
    report = {
        "workers": {"1": {"counters": counters, "gauges": {**gauges, "second_deliveries": 3, "second_writes": 2}}},
        "departed": counters,
        "stale": [],
        "broker": broker,
    }
    body = exposition(orjson.dumps(report), summed=bool(query))
    found = {line.split()[2] for line in body.decode().splitlines() if line.startswith("# TYPE ")}
    assert found == {metric.name for metric in METRICS}
    command = [need("promtool", "prometheus"), "check", "metrics"]
    result = subprocess.run(command, input=body, capture_output=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
