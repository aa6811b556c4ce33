"""The commands' end of the control socket: one request, one reply."""

import os
import socket
import time
from typing import Any

import msgspec

from fastpush.errors import EXIT_FAILED, FastpushError

REPLY_BYTES_MAX = 16_777_216


class ControlError(FastpushError):
    """The running server could not be asked, or has refused; the text says why. code: exit code of the command."""

    def __init__(self, text: str, code: int = EXIT_FAILED) -> None:
        super().__init__(text)
        self.code = code


def ask(path: str, request: dict[str, Any], timeout_seconds: float = 5.0) -> dict[str, Any]:
    """Send `request`, {"command": NAME, …}, to the server whose control socket is at `path`; return its reply.

    Raises: ControlError when nobody listens there, nobody answers in time, or the server answers with an error.
    """
    try:
        reply = _exchange(path, msgspec.json.encode(request) + b"\n", time.monotonic() + timeout_seconds)
        answer = msgspec.json.decode(reply, type=dict[str, Any])
    except TimeoutError as error:
        raise ControlError(f"the server at {path} did not answer within {timeout_seconds:g} s") from error
    except OSError as error:
        raise ControlError(f"no server answers at {path}: {error.strerror or error}") from error
    except msgspec.DecodeError as error:
        raise ControlError(f"the server at {path} did not answer in JSON: is its user another one?") from error
    if "error" in answer:
        raise ControlError(str(answer["error"]), int(answer.get("code", EXIT_FAILED)))
    return answer


def _exchange(path: str, line: bytes, deadline: float) -> bytes:
    reply = bytearray()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_left(deadline))
        connection.connect(os.fspath(path))
        connection.sendall(line)
        while not reply.endswith(b"\n") and len(reply) < REPLY_BYTES_MAX:
            connection.settimeout(_left(deadline))
            received = connection.recv(262_144)
            if not received:
                break
            reply += received
    return bytes(reply)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
