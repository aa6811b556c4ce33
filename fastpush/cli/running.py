"""Find the running server of a configuration, and ask it over its control socket."""

import time
import tomllib
from pathlib import Path
from typing import Any

import click
import msgspec

from fastpush import config as configuration
from fastpush.cli.common import count_of, fail, read_config
from fastpush.config import Config
from fastpush.control_client import ControlError, ask
from fastpush.errors import EXIT_USAGE, ConfigError
from fastpush.supervisor.inspections import ANSWER_SECONDS
from fastpush.supervisor.listeners import first_port
from fastpush.supervisor.runtime import control_paths

TIMEOUT_SECONDS = 3.0
LOOK_SECONDS = 0.2
INSIGHT_SECONDS = ANSWER_SECONDS + TIMEOUT_SECONDS


def ask_server(config: Config, request: dict[str, Any], timeout_seconds: float = TIMEOUT_SECONDS) -> dict[str, Any]:
    """Ask the running server of this configuration. Raises: ControlError."""
    return ask(_existing(control_paths(config, first_port(config))), request, timeout_seconds)


def ask_insight(config_path: str | None, question: dict[str, Any]) -> dict[str, Any]:
    """Return what the running server's broker answers to a question; see protocol/insight.py.

    Raises: ControlError: nobody answers, or not so.  ConfigError: it cannot be told where the server would be.
    """
    request = {"command": "insight", "question": question}
    answer: dict[str, Any] = ask(find_server(config_path), request, INSIGHT_SECONDS)["answer"]
    if "error" in answer:
        raise ControlError(str(answer["error"]))
    return answer


def find_server(config_path: str | None) -> str:
    """Return the control socket of the running server of this configuration, be that valid any more or not.

    Raises: ControlError: there is none.  ConfigError: it cannot be told where it would be.
    """
    try:
        config = read_config(config_path)
    except ConfigError:
        path = configuration.find(config_path)
        found = next((str(place) for place in control_paths(*_guess(path)) if place.exists()), None)
        if found is None:
            raise
        return found
    return _existing(control_paths(config, first_port(config)))


def _existing(paths: list[Path]) -> str:
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        places = " or ".join(str(path.parent) for path in paths)
        raise ControlError(f"no server of this configuration is running (looked in {places})")
    return str(path)


def _guess(path: Path | None) -> tuple[Config, int]:
    """Return where the server of a file that is not valid any more may listen: the file's own lines still say it."""
    server = Config().server
    for line in _lines(path):
        try:
            statement = tomllib.loads(line)
        except tomllib.TOMLDecodeError:
            continue
        if isinstance(directory := statement.get("runtime_directory"), str) and directory:
            directory = str((path or Path()).absolute().parent / directory)
            server = msgspec.structs.replace(server, runtime_directory=directory)
        if isinstance(listen := statement.get("listen"), str | list) and server.listen == Config().server.listen:
            server = msgspec.structs.replace(server, listen=listen)
    try:
        guess = Config(server=server)
        return guess, first_port(guess)
    except (ConfigError, LookupError, AttributeError):  # that line may be the bad one
        return Config(server=msgspec.structs.replace(server, listen=Config().server.listen)), first_port(Config())


def _lines(path: Path | None) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines() if path else []
    except OSError:
        return []


def command(config_path: str | None, request: dict[str, Any], timeout_seconds: float) -> tuple[str, dict[str, Any]]:
    """Have the running server carry a command out, or end with its exit code: (control socket, reply)."""
    try:
        path = find_server(config_path)
        return path, ask(path, request, timeout_seconds)
    except ConfigError as error:
        fail(str(error), EXIT_USAGE)
    except ControlError as error:
        fail(str(error), error.code)


def watch(path: str) -> None:
    """Tell how the server's operation goes on, until it is over. Without who watches it goes on too."""
    told = -1
    while True:
        try:
            operation = ask(path, {"command": "status"}, TIMEOUT_SECONDS)["operation"]
        except ControlError as error:
            fail(f"the server does not answer any more: {error}")
        if operation["failure"]:
            fail(operation["failure"])
        if operation["done"] != told:
            told = operation["done"]
            click.echo(f"{told} of {count_of(operation['of'], 'worker')} replaced")
        if operation["is_done"]:
            return
        time.sleep(LOOK_SECONDS)


def wait_for_end(path: str) -> None:
    """Return when the server has ended; a killed one leaves its control socket, and nobody answers there."""
    refusal = ""
    while Path(path).exists():
        if refusal:  # twice: between its last answer and its last step it is silent
            fail(f"the server does not answer any more: {refusal}")
        try:
            ask(path, {"command": "status"}, TIMEOUT_SECONDS)
        except ControlError as error:
            refusal = str(error)
        time.sleep(LOOK_SECONDS)
