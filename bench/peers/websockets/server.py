"""Push by user and event on websockets: `server.py PORT` listens on 127.0.0.1.

`/ws?token=…&event=…` registers. Its HTTP side answers only GET, so pushes are messages of a
client on `/publish`: `{"userId", "event", "message"}`, each answered with a count.
"""

import asyncio
import json
import sys
from collections import defaultdict
from contextlib import suppress
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed

_connections: defaultdict[tuple[str, str], set[ServerConnection]] = defaultdict(set)


async def on_connection(connection: ServerConnection) -> None:
    assert connection.request is not None
    url = urlsplit(connection.request.path)
    if url.path == "/publish":
        with suppress(ConnectionClosed):  # the client has gone without a close frame
            async for text in connection:
                push = json.loads(text)
                receivers = _connections.get((push["userId"], push["event"]), set())
                broadcast(receivers, push["message"])
                await connection.send(f"message sent to {len(receivers)} clients")
        return
    query = parse_qs(url.query)
    key = query["token"][0], query["event"][0]
    _connections[key].add(connection)
    try:
        await connection.wait_closed()
    finally:
        _connections[key].discard(connection)
        if not _connections[key]:
            del _connections[key]


async def main() -> None:
    async with serve(on_connection, "127.0.0.1", int(sys.argv[1]), compression=None, backlog=4096) as server:
        await server.serve_forever()


asyncio.run(main())
