"""docs/behaviours.md and the docstrings of the tests name the same behaviours."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import behaviours
from tools.behaviours import MENTIONED, ROOT, TESTS, Proof, Row, named_by_tests, proofs, results, rows, unproven

GROUPS = {"S0": 39, "S1": 22, "S2": 25, "S3": 24, "S4": 17}
REPORT = """<?xml version="1.0"?><testsuites><testsuite>
<testcase classname="tests.unit.test_a" name="test_one"/>
<testcase classname="tests.unit.test_a" name="test_cases[a]"/>
<testcase classname="tests.unit.test_a" name="test_cases[b]"><failure message="m">text</failure></testcase>
<testcase classname="tests.unit.test_a" name="test_cases[c]"><skipped message="m"/></testcase>
<testcase classname="tests.unit.test_a" name="test_set_up"><error message="m"/></testcase>
<testcase classname="tests.unit.test_a" name="test_skipped"><skipped message="m"/></testcase>
</testsuite></testsuites>"""


def docstrings(path: Path) -> Iterator[str]:
    """Every docstring of a module: its own, its classes' and its functions'."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def modules() -> list[Path]:
    return [path for path in sorted(TESTS.rglob("*.py")) if "node_modules" not in path.parts]


# -- the table ---------------------------------------------------------------------------


def test_every_behaviour_is_listed_once_in_order() -> None:
    """The table has each of the 127 ids, once, in order, with words of its own."""
    expected = [f"{group}-{number:02}" for group, count in GROUPS.items() for number in range(1, count + 1)]
    listed = [row.id for row in rows()]
    assert [name for name, count in Counter(listed).items() if count > 1] == [], "listed twice"
    assert sorted(set(expected) - set(listed)) == [], "missing"
    assert listed == expected
    assert len(listed) == 127
    texts = Counter(row.text for row in rows())
    assert [text for text, count in texts.items() if count > 1] == []


def test_every_behaviour_names_its_place() -> None:
    """Each line is served now and names the modules that do, and those exist."""
    for row in rows():
        assert row.served.startswith("now: "), row
        paths = [path for path in re.findall(r"`([^`]+)`", row.served) if "/" in path or path.endswith(".py")]
        assert paths, row
        assert [path for path in paths if not (ROOT / "fastpush" / path).exists()] == [], row


def test_every_behaviour_has_a_test() -> None:
    """Each id stands in the docstring of at least one test function."""
    proven = {behaviour for _, behaviour in named_by_tests()}
    assert [row.id for row in rows() if row.id not in proven] == [], "no test names these"


def test_no_test_names_an_unknown_behaviour() -> None:
    """Ids in docstrings are those of the table, so that a slip of the finger proves nothing.

    The examples in this module are code, not docstrings.
    """
    known = {row.id for row in rows()}
    unknown = [
        f"{path.relative_to(TESTS)}: {name}"
        for path in modules()
        for text in docstrings(path)
        for name in MENTIONED.findall(text)
        if name not in known
    ]
    assert unknown == []


# -- tools/behaviours.py, which judges a whole run -------------------------------------------


def test_the_worst_case_of_a_test_counts(tmp_path: Path) -> None:
    """A test of several cases has failed when one has, in whatever order they ran; a fixture's error is a failure."""
    report = tmp_path / "tests.xml"
    report.write_text(REPORT)
    path = "tests/unit/test_a.py::"
    expected = {"test_one": "passed", "test_cases": "failed", "test_set_up": "failed", "test_skipped": "skipped"}
    assert results(report) == {path + name: result for name, result in expected.items()}


def test_ids_are_read_from_docstrings_of_tests_alone(tmp_path: Path) -> None:
    """Comments, other functions and modules that are no tests prove nothing; one docstring may name several ids."""
    folder = tmp_path / "tests" / "unit"
    folder.mkdir(parents=True)
    text = '"""S1-01"""\n# S1-02\ndef helps():\n    """S1-03"""\nasync def test_it():\n    """S1-04, S1-05, S1-04"""\n'
    (folder / "test_a.py").write_text(text)
    (folder / "a.py").write_text(text)
    test = "tests/unit/test_a.py::test_it"
    assert list(named_by_tests(tmp_path / "tests")) == [(test, "S1-04"), (test, "S1-05")]


def test_what_is_missing_skipped_or_failed_is_not_proven() -> None:
    """A behaviour needs a test that ran and passed, and none that failed; a skipped one beside it does no harm."""
    named = [
        ("a", "S1-01"),
        ("b", "S1-02"),
        ("c", "S1-03"),
        ("a", "S1-04"),
        ("c", "S1-04"),
        ("b", "S1-05"),
        ("a", "S1-05"),
    ]
    found = proofs(iter([*named, ("d", "S1-06")]), {"a": "passed", "b": "skipped", "c": "failed"})
    assert Proof("S1-06", "d", "not run") in found
    listed = [Row(f"S1-{number:02}", "text", "now: `log.py`") for number in range(1, 8)]
    assert unproven(listed, found) == ["S1-02", "S1-03", "S1-04", "S1-06", "S1-07"]


def test_the_exit_code_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run in which every named test passed ends with 0 and a line a proof; one in which none ran, with 1."""
    named = list(named_by_tests())
    cases = {test.replace("/", ".").partition(".py::")[::2] for test, _ in named}
    report = tmp_path / "tests.xml"
    for chosen, code in ((cases, 0), (set(), 1)):
        ran = [f'<testcase classname="{module}" name="{name}"/>' for module, name in chosen]
        report.write_text(f"<testsuite>{''.join(ran)}</testsuite>")
        assert behaviours.main(report) == code
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == len(named) + 1
        proven = "127 of 127 behaviours proven" if code == 0 else "0 of 127 behaviours proven, but not: S0-01 S0-02 "
        assert lines[-1].startswith(proven)
