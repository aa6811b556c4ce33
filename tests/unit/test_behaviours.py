"""docs/behaviours.md and the docstrings of the tests name the same behaviours."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
TABLE = ROOT / "docs" / "behaviours.md"
GROUPS = {"S0": 39, "S1": 22, "S2": 25, "S3": 24, "S4": 17}
# Looks like an id, right or not: S0-1, S5-99 and S0-999 are found, and found to be unknown.
MENTIONED = re.compile(r"\bS\d+-\d+\b")
ROW = re.compile(r"^\| (?P<id>\S+) \| (?P<text>.+) \| (?P<served>.+) \|$", re.MULTILINE)


def rows() -> list[tuple[str, str, str]]:
    """Id, text and place of each line of the tables."""
    found = [(row["id"], row["text"], row["served"]) for row in ROW.finditer(TABLE.read_text(encoding="utf-8"))]
    return [row for row in found if row[0] != "id"]


def docstrings(path: Path) -> Iterator[str]:
    """Every docstring of a module: its own, its classes' and its functions'."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def docstrings_of_tests(path: Path) -> Iterator[str]:
    """The docstrings of the test functions of a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield ast.get_docstring(node) or ""


def modules() -> list[Path]:
    return [path for path in sorted(TESTS.rglob("*.py")) if "node_modules" not in path.parts]


def test_every_behaviour_is_listed_once_in_order() -> None:
    """The table has each of the 127 ids, once, in order, with words of its own."""
    expected = [f"{group}-{number:02}" for group, count in GROUPS.items() for number in range(1, count + 1)]
    listed = [row[0] for row in rows()]
    assert [name for name, count in Counter(listed).items() if count > 1] == [], "listed twice"
    assert sorted(set(expected) - set(listed)) == [], "missing"
    assert listed == expected
    assert len(listed) == 127
    texts = Counter(text for _, text, _ in rows())
    assert [text for text, count in texts.items() if count > 1] == []


def test_what_is_served_now_names_its_place() -> None:
    """Lines name the modules that serve them, and those exist, or say that they come later; of S0 none does."""
    for name, _, served in rows():
        if served == "later":
            assert not name.startswith("S0-"), name
            continue
        assert served.startswith("now: "), name
        paths = [path for path in re.findall(r"`([^`]+)`", served) if "/" in path or path.endswith(".py")]
        assert paths, name
        assert [path for path in paths if not (ROOT / "fastpush" / path).exists()] == [], name


def test_every_behaviour_served_now_has_a_test() -> None:
    """Each id that is served now stands in the docstring of at least one test function."""
    proven = {name for path in modules() for text in docstrings_of_tests(path) for name in MENTIONED.findall(text)}
    now = {name for name, _, served in rows() if served.startswith("now")}
    assert sorted(now - proven) == [], "no test names these"


def test_no_test_names_an_unknown_behaviour() -> None:
    """Ids in docstrings are those of the table, so that a slip of the finger proves nothing.

    The examples in this module are comments and code, not docstrings.
    """
    known = {row[0] for row in rows()}
    unknown = [
        f"{path.relative_to(TESTS)}: {name}"
        for path in modules()
        for text in docstrings(path)
        for name in MENTIONED.findall(text)
        if name not in known
    ]
    assert unknown == []
