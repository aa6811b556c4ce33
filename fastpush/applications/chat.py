"""S3: users, a hall, rooms, and notices of who comes and leaves.

One JSON object a message, both ways:

    {"messageType":1,"mediaType":0,"from":"jack","to":"tea","content":"hi","updateAt":"2026-11-21T18:20:00.123Z"}

    messageType  0  to one user, or to each of a list; no such user: a notice to the sender
                 1  to a room; to = "" is the hall, in which everybody is
                 2  a notice of the system
                 3  a user came   4  a user left     (from = user, to = room) once a user, on the whole host
                 5  enter the room `to`   6  leave it   7  who is in it: "members" and "online", and who "you" are
    mediaType    0  text   1  image   2  file        images and files are links (`url`), never bodies

`from` and `updateAt` are the server's. The hall and each room give a newcomer their last messages and notices.
A room is a channel, so everything here reaches over all workers.
"""

import asyncio
import logging
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import IntEnum
from time import time
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit

import msgspec

from fastpush.applications.interface import CHANNEL_BYTES_MAX, Application, Connection, Options, Request
from fastpush.errors import CloseCode, PublishFailed
from fastpush.log import fields

log = logging.getLogger("fastpush.application")

MEMBERS_MAX = 1000
RECEIVERS_MAX = 100
ROOM_CHARACTERS_MAX = 64
NAME_CHARACTERS_MAX = 512
_URL_CHARACTERS_MAX = 2048
_STAMP_CHARACTERS_MAX = 64


Name = Annotated[str, msgspec.Meta(max_length=NAME_CHARACTERS_MAX)]


class MessageType(IntEnum):
    """See the module."""

    SINGLE = 0
    GROUP = 1
    NOTICE = 2
    ONLINE = 3
    OFFLINE = 4
    ENTER = 5
    LEAVE = 6
    MEMBERS = 7


class MediaType(IntEnum):
    """See the module."""

    TEXT = 0
    IMAGE = 1
    FILE = 2


class Message(msgspec.Struct):
    """What a client sends; `from` and `updateAt` are not looked at."""

    messageType: MessageType  # noqa: N815 - names of the wire
    mediaType: MediaType = MediaType.TEXT  # noqa: N815
    to: Name | Annotated[list[Name], msgspec.Meta(min_length=1, max_length=RECEIVERS_MAX)] = ""
    content: str = ""
    fileId: Annotated[str, msgspec.Meta(max_length=_URL_CHARACTERS_MAX)] = ""  # noqa: N815
    url: Annotated[str, msgspec.Meta(max_length=_URL_CHARACTERS_MAX)] = ""
    createAt: Annotated[str, msgspec.Meta(max_length=_STAMP_CHARACTERS_MAX)] = ""  # noqa: N815


class ChatOptions(Options):
    """keep: messages and notices that a newcomer gets of each room.  rooms: most of one connection, beside the hall.

    grace_seconds: time in which a user may come back without having left.
    """

    keep: Annotated[int, msgspec.Meta(ge=0, le=10000)] = 100
    rooms: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 20
    grace_seconds: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 2


class Refused(Exception):
    """A message that goes nowhere; its text is told to its sender."""


_decode = msgspec.json.Decoder(Message).decode


class Chat(Application):
    """A chat room with users. Where every token is believed, `userId` names the user as `token` does."""

    options_class: ClassVar = ChatOptions
    options: ChatOptions
    user_parameter = "userId"

    def channels(self, request: Request) -> Iterable[str]:
        """None at once: the hall and rooms are joined with what they have kept."""
        return ()

    async def on_open(self, connection: Connection, request: Request) -> None:
        """Let a user into the hall, and the rooms that its URL names."""
        if not connection.user:
            connection.close(CloseCode.POLICY_VIOLATION, "a user is needed here: give a token")
            return
        await self._enter(connection, "")
        for room in request.query.getall("room", [])[: self.options.rooms]:
            await self._try(connection, room, self._enter(connection, room))

    async def on_message(self, connection: Connection, data: str | bytes) -> None:
        """Take one message."""
        try:
            message = _decode(data)
        except (ValueError, RecursionError) as error:  # S3-10; of msgspec, or of Python: not UTF-8, nested too deeply
            reason = f": {error}" if isinstance(error, msgspec.DecodeError) else ""
            connection.close(CloseCode.INVALID_TEXT, f"not a chat message{reason}")
            return
        room = message.to if isinstance(message.to, str) else ""
        await self._try(connection, room, self._take(connection, message))

    def on_presence(self, channel: str, user: str, is_online: bool, seconds: float) -> str:  # noqa: FBT001 - two
        """Word who came and who left."""
        kind = MessageType.ONLINE if is_online else MessageType.OFFLINE
        return _worded(kind, sender=user, to=self._room(channel), updateAt=_stamp(seconds))

    async def _try(self, connection: Connection, room: str, work: Any) -> None:
        """Do something for a client; why it could not be done is told to it alone."""
        try:
            await work
        except Refused as refusal:
            self._notice(connection, str(refusal), room)
        except PublishFailed as failure:
            self._notice(connection, f"not sent: {failure}", room)

    async def _take(self, connection: Connection, message: Message) -> None:
        match message.messageType:
            case MessageType.SINGLE:
                await self._send_to_users(connection, message)
            case MessageType.GROUP:
                await self._send_to_room(connection, message)
            case MessageType.ENTER:
                await self._enter(connection, _room_of(message))
            case MessageType.LEAVE:
                self.server.leave(connection, self._checked(_room_of(message)))
            case MessageType.MEMBERS:
                await self._tell_members(connection, _room_of(message))
            case _:
                raise Refused(f"messageType {message.messageType} is the server's to send")

    async def _enter(self, connection: Connection, room: str) -> None:
        channel = self._checked(room)
        if len(connection.channels) > self.options.rooms and channel not in connection.channels:
            raise Refused(f"you are in {self.options.rooms} rooms already")
        grace = self.options.grace_seconds
        await self.server.join(
            connection, channel, replay=True, presence=True, grace_seconds=grace, keep=self.options.keep
        )

    async def _send_to_room(self, connection: Connection, message: Message) -> None:
        room = _room_of(message)
        channel = self._channel(room)
        if channel not in connection.channels:
            raise Refused("you are not in this room")
        await self.server.publish(
            channel, _passed_on(message, connection.user, room), exclude=connection, keep=self.options.keep
        )

    async def _send_to_users(self, connection: Connection, message: Message) -> None:
        receivers = [message.to] if isinstance(message.to, str) else list(dict.fromkeys(message.to))
        if "" in receivers:
            raise Refused("`to` names no user")
        texts = {receiver: _passed_on(message, connection.user, receiver) for receiver in receivers}
        counts = await asyncio.gather(
            *(self.server.push(receiver, text, exclude=connection) for receiver, text in texts.items())
        )
        own = [text for receiver, text in texts.items() if receiver != connection.user]
        # The sender's other connections show what was said here.
        await asyncio.gather(*(self.server.push(connection.user, text, exclude=connection) for text in own))
        for receiver, count in zip(receivers, counts, strict=True):
            if not count and receiver != connection.user:
                log.info("connection not exist", extra=fields(connection=connection.id, user=receiver))
                self._notice(connection, f"{receiver} is not online", "")

    async def _tell_members(self, connection: Connection, room: str) -> None:
        channel = self._channel(room)
        if channel not in connection.channels:
            raise Refused("you are not in this room")
        members = await self.server.online_users(channel, MEMBERS_MAX)
        online = len(members) if len(members) < MEMBERS_MAX else (await self.server.online(channel)).users
        if connection.is_open:
            told = _worded(MessageType.MEMBERS, sender="", to=room, members=members, online=online, you=connection.user)
            connection.send(told)

    def _notice(self, connection: Connection, text: str, room: str) -> None:
        if connection.is_open:
            connection.send(_worded(MessageType.NOTICE, sender="", to=room, content=text, updateAt=_stamp(time())))

    def _checked(self, room: str) -> str:
        """Return the channel of a room. Raises: Refused: no room is called so."""
        channel = self._channel(room)
        if len(room) > ROOM_CHARACTERS_MAX or not room.isprintable() or len(channel.encode()) > CHANNEL_BYTES_MAX:
            raise Refused(
                f"a room's name has at most {ROOM_CHARACTERS_MAX} printable characters, and not too many bytes"
            )
        return channel

    def _channel(self, room: str) -> str:
        return f"{self.server.path}:{room}" if room else self.server.path

    def _room(self, channel: str) -> str:
        return channel.removeprefix(self.server.path).removeprefix(":")


def _room_of(message: Message) -> str:
    if not isinstance(message.to, str):
        raise Refused("`to` must be one room")
    return message.to


def _passed_on(message: Message, sender: str, to: str) -> str:
    """Return a client's message as others get it. Raises: Refused: an image or a file without a link."""
    if message.mediaType != MediaType.TEXT:
        _check_url(message.url)
    return _worded(
        message.messageType, message.mediaType, sender=sender, to=to, content=message.content, fileId=message.fileId,
        url=message.url, createAt=message.createAt, updateAt=_stamp(time()),
    )  # fmt: skip


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_link = parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        is_link = False
    if not is_link:
        raise Refused("images and files travel as links: url must begin with https:// or http://")


def _worded(kind: MessageType, media: MediaType = MediaType.TEXT, *, sender: str, to: str, **optional: Any) -> str:
    """Return a message's text: four fields always, the others where there is something in them (S3-11, S3-12)."""
    always = {"messageType": int(kind), "mediaType": int(media), "from": sender, "to": to}
    return msgspec.json.encode(always | {name: value for name, value in optional.items() if value != ""}).decode()


def _stamp(seconds: float) -> str:
    """Return a Unix time as RFC 3339, UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
