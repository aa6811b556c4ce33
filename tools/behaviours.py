"""Print behaviour, test and result: `python -m tools.behaviours build/tests.xml`.

The behaviours are those of docs/behaviours.md, the tests of each those whose docstrings name its id, the results
those of pytest's --junit-xml. Exit code 1 when a behaviour has no test that ran and passed, or one that failed.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
TABLE = ROOT / "docs" / "behaviours.md"
# Looks like an id, right or not: one digit, or three, are found, and found to be unknown.
MENTIONED = re.compile(r"\bS\d+-\d+\b")
_ROW = re.compile(r"^\| (?P<id>S\S+) \| (?P<text>.+) \| (?P<served>.+) \|$", re.MULTILINE)
# Of the cases of one test the worst counts.
_RESULTS = ("passed", "skipped", "failed")
_NOT_RUN = "not run"


class Row(NamedTuple):
    """One line of the tables."""

    id: str
    text: str
    served: str


class Proof(NamedTuple):
    """A test that names a behaviour. test: "tests/unit/test_x.py::test_y"."""

    id: str
    test: str
    result: str


def rows() -> list[Row]:
    """Return the lines of docs/behaviours.md."""
    return [Row(*found.groups()) for found in _ROW.finditer(TABLE.read_text(encoding="utf-8"))]


def named_by_tests(folder: Path = TESTS) -> Iterator[tuple[str, str]]:
    """Yield each test function below `folder`, and each id that its docstring names."""
    for path in sorted(folder.rglob("test_*.py")):
        if "node_modules" in path.parts:
            continue
        for name, text in _docstrings(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            for behaviour in dict.fromkeys(MENTIONED.findall(text)):
                yield f"{path.relative_to(folder.parent).as_posix()}::{name}", behaviour


def _docstrings(module: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node.name, ast.get_docstring(node) or ""


def results(report: Path) -> dict[str, str]:
    """Return the result of each test function in a JUnit XML report: the worst of its cases."""
    found: dict[str, str] = {}
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - written by pytest a moment ago
        test = case.get("classname", "").replace(".", "/") + ".py::" + case.get("name", "").partition("[")[0]
        found[test] = max(found.get(test, "passed"), _result(case), key=_RESULTS.index)
    return found


def _result(case: ET.Element) -> str:
    kinds = {child.tag for child in case}
    if kinds & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in kinds else "passed"


def proofs(named: Iterator[tuple[str, str]], ran: dict[str, str]) -> list[Proof]:
    """Return who proves what, in the order of the ids."""
    return sorted(Proof(behaviour, test, ran.get(test, _NOT_RUN)) for test, behaviour in named)


def unproven(behaviours: list[Row], found: list[Proof]) -> list[str]:
    """Return the ids that no test has proven, or that one has disproven."""
    passed = {proof.id for proof in found if proof.result == "passed"}
    failed = {proof.id for proof in found if proof.result == "failed"}
    return [row.id for row in behaviours if row.id not in passed or row.id in failed]


def main(report: Path) -> int:
    """Print the table; return the exit code."""
    behaviours, found = rows(), proofs(named_by_tests(), results(report))
    for proof in found:
        sys.stdout.write(f"{proof.id}  {proof.test}  {proof.result}\n")
    without = unproven(behaviours, found)
    proven = f"{len(behaviours) - len(without)} of {len(behaviours)} behaviours proven"
    sys.stdout.write(f"{proven}{', but not: ' if without else ''}{' '.join(without)}\n")
    return 1 if without or not behaviours else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
