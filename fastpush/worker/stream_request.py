"""A request for Server-Sent Events: every check before it is answered, then the answer that does not end.

It takes the steps of a WebSocket's handshake (worker/upgrade.py), and one more: the stream enters its channels before
its client is answered, so that whatever is published after the answer arrives.

    begin ──► address ──► token ──► user ──► subtokens ──► keys ──► channels ──► 200
              counted     known     counted  known       confirmed  entered

A browser's EventSource cannot read the status of a refusal, but gives up; other clients can. Pages of the origins in
[server] origins may read what is answered here; who is turned away by an overloaded worker (worker/overload.py) is
turned away before its origin is known.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from fastpush import errors
from fastpush.bus.client import BusUnavailable
from fastpush.channels.client import Entered
from fastpush.errors import AuthUnavailable, RequestError, TokenRejected
from fastpush.http.auth.contract import Subscription as Ticket
from fastpush.http.head import Head
from fastpush.protocol.bus import Join
from fastpush.protocol.server_sent import parse_identifier
from fastpush.worker.connection import Connection
from fastpush.worker.event_stream import EventStream, stream_head
from fastpush.worker.upgrade import Handshake

if TYPE_CHECKING:
    from fastpush.worker.dispatch import HttpConnection
    from fastpush.worker.mount import Mount
    from fastpush.worker.services import Services
    from fastpush.worker.stream_mount import StreamMount


class StreamRequest(Handshake):
    """One request for an event stream, until it is answered with one or refused.

    _stream: what it becomes; in channels, perhaps, before it has begun.
    """

    __slots__ = ("_joins", "_stream", "_streams")

    def __init__(self, services: "Services", http: "HttpConnection", head: Head, address: str) -> None:
        super().__init__(services, http, head, address)
        self._streams = cast("StreamMount", self._mount)
        self._stream: EventStream | None = None
        self._joins: list[Join] = []

    # -- the steps ---------------------------------------------------------------

    def _check_head(self, head: Head) -> None:
        if head.method != "GET":
            raise errors.method_not_allowed("GET")
        if head.content_length or head.is_chunked:
            raise errors.illegal_request("a request for an event stream has no body")

    def _announce(self) -> None:
        """Find out what the client may, and have its stream enter it."""
        last_event_id = self._head.headers.get("last-event-id")
        asked = self._asked
        if last_event_id is not None and asked.stream is not None:  # newer than what the URL has
            self._asked = asked._replace(stream=asked.stream._replace(resumed=parse_identifier(last_event_id)))
        subtokens = self._streams.subtokens(asked)
        if subtokens:
            self._services.spawn(self._await_tickets(subtokens))
        else:
            self._prepare(())

    async def _await_tickets(self, subtokens: Sequence[str]) -> None:
        tickets = []
        try:
            for subtoken in subtokens:
                found = self._services.token_auth.subscription(subtoken)
                tickets.append(found if isinstance(found, Ticket) else await found)
        except Exception as error:  # noqa: BLE001 - it is logged there
            self._fail(error)
        else:
            self._take(self._prepare, tickets)

    def _prepare(self, tickets: Sequence[Ticket]) -> None:
        services, identity, http = self._services, self._identity, self._http
        assert http is not None
        headers = services.kept_headers(self._head.headers)
        self._stream = stream = EventStream(services.environment, self._mount, http.peer, headers)
        if identity is not None:
            stream.user = identity.user
        self._joins = self._streams.joins(stream, identity, self._asked, tickets)
        super()._announce()

    def _open(self) -> None:
        """Enter the channels, and have the client answered where the broker's answer stands in what it sends."""
        if not self._joins:
            super()._open()
            return
        assert self._stream is not None
        self._wait_for_broker()
        try:
            self._streams.enter_channels(self._stream, self._joins, self._on_entered)
        except BusUnavailable as error:
            raise errors.unavailable(str(error)) from None

    def _on_entered(self, entered: Entered) -> None:
        if self._http is not None:
            self._take(self._begin_at, entered)

    def _begin_at(self, entered: Entered) -> None:
        stream = self._stream
        assert stream is not None
        super()._open()
        if stream.has_begun:
            self._streams.resume(stream, entered)

    # -- the end -----------------------------------------------------------------

    def _hand_over(self, mount: "Mount") -> tuple[Connection, bytes] | None:
        """Let the stream own the transport, and answer; as for WebSockets."""
        http, stream = self._http, self._stream
        assert http is not None and stream is not None  # noqa: PT018 - one fact
        head = stream_head(self._services.date_header(), http.request_id, self._shared_headers())
        taken = http.hand_over()
        if taken is None:
            return None
        transport, unread = taken
        stream.admitted, self._admitted = self._admitted, ()
        stream.begin(transport, head)
        return stream, unread

    def _shared_headers(self) -> tuple[tuple[str, str], ...]:
        """Return the headers that let a page of another origin read the answer (CORS)."""
        headers, http = self._head.headers, self._http
        origin = headers.get("origin")
        if origin is None or http is None or not self._services.guard.allows_origin(headers, is_tls=http.is_tls):
            return ()
        return (("Access-Control-Allow-Origin", origin), ("Vary", "Origin"))

    def _answer(self, error: RequestError) -> RequestError:
        headers = (*error.headers, *self._shared_headers())
        return RequestError(error.status, error.code, error.reason, text=error.text, headers=headers)

    def _reject(self, error: TokenRejected | AuthUnavailable) -> None:
        self._refuse_token(error)

    def _end(self) -> None:
        stream, is_first = self._stream, self._http is not None
        super()._end()
        if stream is not None and not stream.has_begun:
            if is_first:
                self._services.environment.notebook.closed(stream, 1006, "the stream could not begin", "server")
            if stream.standing is not None:
                stream.standing.give_up(stream)
