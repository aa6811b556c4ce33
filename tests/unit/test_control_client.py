"""fastpush.control_client: what a command is told when the server cannot answer."""

import socket
import threading
from pathlib import Path

import pytest

from fastpush.control_client import ControlError, ask


def answer_with(path: Path, reply: bytes) -> threading.Thread:
    """Listen at `path`, read one line, send `reply` and close; in a thread."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with listener:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(reply)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_returns_the_reply(tmp_path: Path) -> None:
    """A line of JSON comes back as a dict, however long it is."""
    thread = answer_with(tmp_path / "control", b'{"a":"' + b"x" * 1_000_000 + b'"}\n')
    assert len(ask(str(tmp_path / "control"), {"command": "status"})["a"]) == 1_000_000
    thread.join()


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (b'{"error":"no such thing"}\n', "no such thing"),
        (b"", "did not answer in JSON"),
        (b"<html>\n", "did not answer in JSON"),
        (b"[]\n", "did not answer in JSON"),
    ],
)
def test_bad_replies_are_errors(tmp_path: Path, reply: bytes, text: str) -> None:
    """An error reply, none, and one that is no JSON object are ControlErrors that say so."""
    thread = answer_with(tmp_path / "control", reply)
    with pytest.raises(ControlError, match=text):
        ask(str(tmp_path / "control"), {"command": "status"})
    thread.join()


def test_nobody_there(tmp_path: Path) -> None:
    """A missing socket, and one that nobody listens on, are named with their path."""
    with pytest.raises(ControlError, match=r"no server answers at .*/control: No such file"):
        ask(str(tmp_path / "control"), {"command": "status"})
    with socket.socket(socket.AF_UNIX) as closed:
        closed.bind(str(tmp_path / "control"))
    with pytest.raises(ControlError, match=r"no server answers at .*/control: Connection refused"):
        ask(str(tmp_path / "control"), {"command": "status"})


def test_silence_has_a_bound(tmp_path: Path) -> None:
    """A server that accepts and says nothing costs the time-out, not more."""
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "control"))
        silent.listen()
        with pytest.raises(ControlError, match=r"did not answer within 0\.05 s"):
            ask(str(tmp_path / "control"), {"command": "status"}, 0.05)
