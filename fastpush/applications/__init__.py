"""What WebSocket paths do: the interface of applications, and those that come with the server.

interface.py   Application, and the Server, Connection and Request it is given
push.py        /ws: register for events, and receive what back-ends push
echo.py        returns every message
broadcast.py   one connection a key, every text to everybody
chat.py        users, rooms, notices
hub.py         every message to everybody
"""

from fastpush.applications.interface import Application, Connection, Online, Options, Request, RpcError, Server
from fastpush.errors import CloseCode, ConnectionClosed, PublishFailed

__all__ = [
    "Application", "CloseCode", "Connection", "ConnectionClosed", "Online", "Options", "PublishFailed", "Request",
    "RpcError", "Server",
]  # fmt: skip
