"""Where each byte of an idle connection goes.

    python -m bench.bytes [--connections N]

A server runs with this module's `count` as its push authorisation: a Python function, so it is called in the worker,
where it looks at the worker's own objects once the connections are open. Counted is what exactly one connection
reaches, with the allocator's rounding, and each connection's share of the tables that hold all of them. What PSS
says beyond that is the allocator's and the pages' overhead.
"""

import gc
import json
import socket
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from bench.servers import FASTPUSH, Sections, running
from fastpush.bench.connections import resolve
from fastpush.fanout import Group, Hub
from fastpush.protocol.push import EVERYBODY, user_key
from fastpush.state.routes import Routes
from fastpush.worker.connection import Connection
from fastpush.worker.environment import Environment

Rows = list[tuple[str, float]]

_SAMPLE = 200
_FILE_HEADER = "x-file"
_UV_TCP_BYTES = 256  # libuv 1.x on 64-bit Linux: uv_tcp_t is 248, malloc adds its header
_UV_WATCHER_BYTES = 8  # a pointer in the loop's table, by file descriptor
_ROUNDING = 16
_NAMES = {
    "TCPTransport": "uvloop's transport",
    "Connection": "the Connection",
    "Group": "routing group",
    "method": "methods that uvloop has bound",
    "bytes": "routing key",
    "str": "strings: user, peer",
    "tuple": "tuples: groups, members",
    "list": "list of the user's connections",
    "int": "serial number",
}
_OPENED = b"HTTP/1.1 101"


# -- inside the worker --------------------------------------------------------------


async def count(headers: Mapping[str, str]) -> bool:
    """Write what a connection holds to the file that the request names; async, so it runs on the worker's loop."""
    Path(headers[_FILE_HEADER]).write_text(json.dumps(_rows()))  # noqa: ASYNC240 - nobody else waits
    return True


def _rows() -> Rows:
    gc.unfreeze()  # the worker has frozen what was there at its start, and gc would not see it
    objects = gc.get_objects()
    environment = next(found for found in objects if type(found) is Environment)
    connections = list(environment.connections.values())
    sizes = _own_objects(connections[:_SAMPLE])
    rows: Rows = [(f"worker: {name}", size) for name, size in sizes.most_common()]
    rows.append(("worker: libuv's uv_tcp_t and watcher", _UV_TCP_BYTES + _UV_WATCHER_BYTES))
    number = len(connections)
    rows += [(f"worker: {name}", size / number) for name, size in _tables(environment).items()]
    rows += [(f"broker: {name}", size) for name, size in _broker(number).items()]
    return rows


def _own_objects(connections: list[Connection]) -> Counter[str]:
    """Return bytes a connection by type, of objects that only one of the connections reaches."""
    reached: Counter[int] = Counter()
    found: dict[int, Any] = {}
    for connection in connections:
        own = {id(thing): thing for thing in _reach(connection)}
        reached.update(own.keys())
        found.update(own)
    sizes: Counter[str] = Counter()
    for key, thing in found.items():
        if reached[key] == 1:
            sizes[_name(thing)] += _allocated(thing)
    return Counter({name: round(size / len(connections)) for name, size in sizes.items()})


def _reach(connection: Connection) -> Iterator[Any]:
    """Walk what a connection refers to, but not through what it shares with everything."""
    waiting: list[Any] = [connection]
    seen: set[int] = set()
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        yield thing
        if _is_own(thing):
            waiting += gc.get_referents(thing)


def _is_own(thing: Any) -> bool:
    if isinstance(thing, Group):
        return thing.key != EVERYBODY
    return isinstance(thing, Connection | tuple | list | dict) or type(thing).__module__.startswith("uvloop.")


def _name(thing: Any) -> str:
    name = type(thing).__name__
    return _NAMES.get(name, name)


def _allocated(thing: Any) -> int:
    return -(-sys.getsizeof(thing) // _ROUNDING) * _ROUNDING


def _tables(environment: Environment) -> dict[str, int]:
    hub: Hub = environment.hub
    everybody = hub._groups[EVERYBODY].members  # noqa: SLF001 - an instrument looks inside
    return {
        "table of connections": sys.getsizeof(environment.connections),
        "table of routing groups": sys.getsizeof(hub._groups),  # noqa: SLF001
        "table of users": sys.getsizeof(hub._users),  # noqa: SLF001
        "group of everybody": sys.getsizeof(everybody),
        "timer wheel": sum(map(sys.getsizeof, environment.wheel._buckets)),  # noqa: SLF001
    }


def _broker(number: int) -> dict[str, float]:
    """Return the broker's share: it runs the same class in its own process."""
    routes: Routes[object] = Routes()
    worker = object()
    for user in range(number):
        routes.add(worker, user_key(f"user{user}", "bench"))
    return {
        "routing key": _allocated(user_key("user10000", "bench")),
        "table of keys": sys.getsizeof(routes._keys[worker]) / number,  # noqa: SLF001
        "table of subscribers": sys.getsizeof(routes._subscribers) / number,  # noqa: SLF001
    }


# -- outside ------------------------------------------------------------------------


def where_bytes_go(connections: int, core: int) -> Rows:
    """Return (what, bytes a connection) of a server with so many idle connections."""
    sections: Sections = {
        "push": {"auth": "python", "callable": "bench.bytes:count"},
        "connections": {"ping_interval_seconds": 3600},
    }
    with tempfile.TemporaryDirectory(prefix="fastpush-bench-") as folder, ExitStack() as stack:
        path = Path(folder) / "bytes.json"
        server = stack.enter_context(running(FASTPUSH, (core,), sections, 1))
        for user in range(connections):
            _connect(server.port, f"user{user}", stack)
        body = b'{"userId":"nobody","event":"bench","message":"x"}'
        request = urllib.request.Request(f"http://127.0.0.1:{server.port}/push", body, {_FILE_HEADER: str(path)})
        urllib.request.urlopen(request, timeout=60).close()
        rows: Rows = [(name, size) for name, size in json.loads(path.read_text())]
    return rows


def _connect(port: int, token: str, stack: ExitStack) -> None:
    endpoint = resolve(f"ws://127.0.0.1:{port}", insecure=False)
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
    connection.sendall(endpoint.handshake(f"/ws?token={quote(token, '')}&event=bench", compression=False))
    reply = connection.recv(1024)
    if not reply.startswith(_OPENED):
        raise RuntimeError(f"the handshake was answered with {reply[:100]!r}")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--connections", default=15_000, show_default=True, type=click.IntRange(min=1))
def main(connections: int) -> None:
    """Print what an idle connection holds."""
    rows = where_bytes_go(connections, core=0)
    for name, size in [*rows, ("sum", sum(size for _, size in rows))]:
        click.echo(f"{size:>8,.0f}  {name}")


if __name__ == "__main__":
    main()
