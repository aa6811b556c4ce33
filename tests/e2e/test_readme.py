"""The README says what is true: its snippet and every curl line run, its tables are those of the code."""

import importlib.metadata
import json
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastpush.cli import main
from fastpush.config import load
from fastpush.errors import CloseCode
from tests.programs import Browser, curl
from tests.server import Server, eventually

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
WEB = ROOT / "fastpush" / "web"


def blocks(language: str) -> list[str]:
    """Every fenced block of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def calls() -> list[tuple[str, str]]:
    """Each curl line with the reply that stands below it; "" where none does."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [
        (line, below.removeprefix("# ") if below.startswith("# ") else "")
        for line, below in zip(lines, [*lines[1:], ""], strict=True)
        if line.startswith("curl ")
    ]


def section(heading: str) -> str:
    return README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The cells of the tables in a text, without heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row, below in zip(cells, [*cells[1:], [""]], strict=True) if "---" not in row[0] + below[0]]


def test_every_curl_line_and_the_snippet(serve: Callable[..., Server]) -> None:
    """The snippet receives what the README's curl lines push, each answers as printed; after a drop it comes back."""
    server = serve(workers=2)
    (snippet,) = blocks("js")
    assert len(snippet.splitlines()) <= 22
    with Browser(server.url) as browser:
        program = re.sub(r"^import (.*) from (.*);$", r"const \1 = await import(\2);", snippet, flags=re.MULTILINE)
        assert program != snippet
        browser.do("evaluate", expression=f"(async () => {{ {program} }})()")
        eventually(lambda: server.push("aaa", "topic1", "ready?")["sent"] == 1, 20, "snippet registered")
        assert len(calls()) >= 10
        for line, reply in calls():
            words = shlex.split(line.replace(":8080", f":{server.port}"))
            answered = curl(*words[1:])
            assert answered == reply or not reply, line
            assert answered, line
        pushed = ["ready?", "hello", "to both", "to everybody", "plain", "hi"]
        logged: list[str] = []

        def all_shown() -> bool:
            logged.extend(browser.do("logged"))
            return [line for line in logged if "push:" in line] == [f"log: push: {message}" for message in pushed]

        eventually(all_shown, 20, "every push in the console")
        eventually(lambda: server.push("aaa", "topic1", "back")["sent"] == 1, 20, "snippet is back after the drop")


def test_the_call_with_a_key(serve: Callable[..., Server]) -> None:
    """S0-19: on a server that asks for the README's key its line with the key is taken, and the one without refused."""
    (keyed, _), *_ = [call for call in calls() if "X-API-Key" in call[0]]
    key = re.search(r"X-API-Key: ([^']+)'", keyed)
    assert key
    server = serve(workers=1, sections={"push": {"auth": "keys", "keys": [key[1]]}})
    words = shlex.split(keyed.replace(":8080", f":{server.port}"))
    assert json.loads(curl(*words[1:])) == {"sent": 0}
    without = [word for word in words[1:] if word != "--header" and not word.startswith("X-API-Key")]
    assert json.loads(curl(*without))["error"]["code"] == "unauthorized"


@pytest.mark.parametrize("block", blocks("toml"))
def test_examples_of_the_configuration_are_valid(block: str, tmp_path: Path) -> None:
    """Each example loads, once the files it names exist."""
    (tmp_path / "config.toml").write_text(block)
    (tmp_path / "tokens.toml").write_text('"aaa" = "jack"\n')
    for name in ("push-keys.txt", "push-keys"):
        (tmp_path / name).write_text("0123456789abcdef\n")
    load(tmp_path / "config.toml", environ={"CREDENTIALS_DIRECTORY": str(tmp_path)})


def test_every_dependency_has_its_reason() -> None:
    """The table of dependencies is that of pyproject.toml; those for development are all named."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [re.split(r"[<>=]", name)[0] for name in project["dependencies"]]
    text = section("How it is built").partition("### Dependencies")[2]
    listed = rows(text)
    assert [row[0] for row in listed] == wanted
    assert all(len(row[1]) > 10 for row in listed)
    npm = json.loads((ROOT / "tests" / "clients" / "package.json").read_text())["dependencies"]
    for name in [*project["optional-dependencies"]["dev"], *npm]:
        assert re.split(r"[<>=]", name)[0] in text, name


def test_close_codes_are_those_of_the_code() -> None:
    """README, page and errors.py have the same codes, and agree on those that nobody comes back from."""
    sent = {int(code) for code in CloseCode}
    table = {int(row[0]): row[2] for row in rows(section("Close codes"))}
    assert set(table) == sent
    assert sorted(code for code, advice in table.items() if advice == "no") == [1000, 4500, 4501]
    known = sent | {1001, 1005, 1006}
    program = (WEB / "fastpush.js").read_text(encoding="utf-8")
    assert {int(code) for code in re.findall(r"^  (\d{4}): \"", program, re.MULTILINE)} == known
    words = re.findall(r"^    code(\d{4}): \"", (WEB / "words.js").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(map(int, words)) == sorted([*known, *known])  # in both languages


def test_commands_are_those_of_the_code() -> None:
    """The table of commands names each."""
    listed = {match[1] for row in rows(section("Start")) if (match := re.match(r"`fastpush ([\w-]+)", row[0]))}
    assert listed == set(main.commands)  # type: ignore[attr-defined]


def test_files_that_are_named_exist() -> None:
    """Every path in backquotes and every link leads somewhere."""
    named: list[Any] = re.findall(r"`([\w./-]+\.(?:py|toml|lock|json|service))`|\]\(([\w./-]+)\)", README)
    for path in {first or second for first, second in named}:
        places = [ROOT / path, ROOT / "fastpush" / path, ROOT / "fastpush" / "supervisor" / path]
        assert any(place.exists() for place in places), path
    assert importlib.metadata.version("fastpush")
