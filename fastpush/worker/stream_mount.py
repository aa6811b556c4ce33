"""The paths of event streams in one worker: the simple protocol with channels at /sse, and the client protocol."""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import cast

import orjson
from multidict import MultiDict, MultiDictProxy

from fastpush.applications.interface import Application, Request
from fastpush.applications.push import Push
from fastpush.channels.client import Client, Entered, Host, Opening
from fastpush.channels.endpoint import ClientProtocol
from fastpush.channels.namespaces import check_name
from fastpush.config import Config
from fastpush.errors import CloseCode, RequestError, TokenRejected, forbidden, illegal_request
from fastpush.fanout import ENVELOPE, EVENTS, UNIDIRECTIONAL
from fastpush.fanout.batch import channel_frames
from fastpush.http.auth import Identity
from fastpush.http.auth.contract import Subscription as Ticket
from fastpush.http.guard import Guard
from fastpush.protocol.bus import Join, Position, Publication
from fastpush.protocol.client import Recover
from fastpush.protocol.push import EVERYBODY, NO_OPTIONS, channel_key, channel_of, is_channel_key, user_key
from fastpush.protocol.server_sent import (
    Resumed,
    StreamOptions,
    event,
    parse_stream,
    parse_unidirectional,
    tag,
)
from fastpush.worker.connection import Connection
from fastpush.worker.event_stream import EventStream
from fastpush.worker.mount import Asked, Mount

EVENTS_PATH = "/sse"
UNIDIRECTIONAL_PATH = "/connection/uni_sse"

_NO_PARAMETERS: MultiDictProxy[str] = MultiDictProxy(MultiDict())
_FRESH = Recover(recover=False, offset=0, epoch="")


class StreamMount(Mount):
    """A path whose clients only listen.

    clients: who knows the rules of channels.  host: by whom streams enter these.
    """

    streams = True

    def __init__(self, path: str, application: Application, config: Config, clients: ClientProtocol, host: Host) -> None:
        self._clients = clients
        self._host = host
        super().__init__(path, application, config)

    def configure(self, config: Config) -> None:
        super().configure(config)
        self.anonymous = config.client.anonymous
        self.guard = Guard(('[client] anonymous to "everywhere"',), config.server.origins)

    def slow_policy(self, key: bytes) -> str:
        return self._clients.slow_policy(key) if is_channel_key(key) else self.limits.slow_policy

    def subtokens(self, asked: Asked) -> tuple[str, ...]:
        """Return the subscription tokens in a URL."""
        return ()

    def joins(self, stream: EventStream, asked: Asked, resumed: Resumed, tickets: Iterable[Ticket]) -> list[Join]:
        """Return how a stream, which has its user, enters the channels that its URL names.

        Raises: RequestError 403, 404: it may not.  TokenRejected: a ticket is somebody else's.
        """
        return []

    def enter_channels(self, stream: EventStream, joins: list[Join], take: "Take") -> None:
        """Let a stream that is not answered yet into channels; see Memberships.enter. Raises: BusUnavailable."""
        self._host.enter(stream, joins, take)

    def resume(self, stream: EventStream, entered: Entered) -> None:
        """Send a stream, which has just been answered, what it has missed."""
