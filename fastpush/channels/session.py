"""A client's session: commands in, replies and pushes out. No I/O, no clock, no permissions.

    NEW ──connect──► CONNECTING ──answered──► CONNECTED ──► ENDED      ENDED is reached from every state
                                └──refused──► REFUSED

What may come when stands in TABLE, and nowhere else. While CONNECTED each channel has states of its own:

    none ──subscribe──► SUBSCRIBING ──answered──► SUBSCRIBED ──unsubscribe, by either side──► none
                                    └──refused──► none

The owner feeds frames, performs the requests that come out, tells the answers, and writes what `take` gives:

    for request in session.feed(frame):          the next command is read when the next request is asked for:
        …                                        it meets the state that its predecessor has left
        session.subscribed(request, result)
    connection.send(session.take())
    if session.disconnect: connection.close(*session.disconnect)

A request is answered once at most. An answer that comes too late, after the end or for a subscription that the server
has ended meanwhile, is ignored and returns False: the owner undoes what it has done.
"""

from collections.abc import Iterable, Iterator
from enum import Enum, IntEnum
from typing import NamedTuple

import msgspec

from fastpush.channels.namespaces import check_name
from fastpush.protocol.client import (
    EMPTY,
    BadCommand,
    Command,
    Connect,
    ConnectResult,
    DisconnectCode,
    ErrorCode,
    History,
    Pong,
    Presence,
    PresenceStats,
    Publish,
    Refresh,
    Request,
    Rpc,
    Send,
    SubRefresh,
    Subscribe,
    SubscribeResult,
    Unsubscribe,
    Unsupported,
    bare,
    connect_push,
    disconnect_push,
    encode_result,
    error_reply,
    read_command,
    reply,
    resubscribes,
    subscribe_push,
    unsubscribe_push,
)


class State(IntEnum):
    """Where a session is. SUBSCRIBING and SUBSCRIBED are states of a channel, in a session that is CONNECTED."""

    NEW = 0
    CONNECTING = 1
    CONNECTED = 2
    SUBSCRIBING = 3
    SUBSCRIBED = 4
    REFUSED = 5  # connect was answered with an error: the client is expected to close, else it is stale
    ENDED = 6


class Outcome(Enum):
    """What happens to a command that is not refused."""

    ASK = 1  # the owner performs it
    DONE = 2  # it is so already
    PONG = 3  # it was due, or it is BAD
    BAD = 4  # no client says this here: the session is ended with 3501


_ASK, _DONE, _PONG, _BAD = Outcome
_TWICE, _DENIED, _WRONG = ErrorCode.ALREADY_SUBSCRIBED, ErrorCode.PERMISSION_DENIED, ErrorCode.BAD_REQUEST

# By the state of the session, or of the channel where it has one. In REFUSED and ENDED nothing is read.
TABLE: dict[type[Command], tuple[Outcome | ErrorCode, ...]] = {
    #              NEW   CONNECTING CONNECTED SUBSCRIBING SUBSCRIBED
    Connect:       (_ASK,   _BAD,    _BAD,     _BAD,       _BAD),
    Subscribe:     (_BAD,   _BAD,    _ASK,     _TWICE,     _TWICE),
    Unsubscribe:   (_BAD,   _BAD,    _DONE,    _ASK,       _ASK),
    SubRefresh:    (_BAD,   _BAD,    _DENIED,  _DENIED,    _ASK),
    Publish:       (_BAD,   _BAD,    _ASK,     _ASK,       _ASK),
    Presence:      (_BAD,   _BAD,    _ASK,     _ASK,       _ASK),
    PresenceStats: (_BAD,   _BAD,    _ASK,     _ASK,       _ASK),
    History:       (_BAD,   _BAD,    _ASK,     _ASK,       _ASK),
    Rpc:           (_BAD,   _BAD,    _ASK,     _ASK,       _ASK),
    Send:          (_BAD,   _BAD,    _ASK,     _ASK,       _ASK),
    Refresh:       (_BAD,   _BAD,    _ASK,     _ASK,       _ASK),
    Unsupported:   (_BAD,   _BAD,    _WRONG,   _WRONG,     _WRONG),
    Pong:          (_BAD,   _BAD,    _PONG,    _PONG,      _PONG),
}  # fmt: skip

# What connecting without commands ends with, by the error that would be the reply; else with SERVER_ERROR.
_UNIDIRECTIONAL_ENDS: dict[int, DisconnectCode] = {
    ErrorCode.EXPIRED: DisconnectCode.EXPIRED,
    ErrorCode.TOKEN_EXPIRED: DisconnectCode.EXPIRED,
    ErrorCode.TOO_MANY_REQUESTS: DisconnectCode.TOO_MANY_REQUESTS,
    ErrorCode.PERMISSION_DENIED: DisconnectCode.PERMISSION_DENIED,
}


class Bounds(NamedTuple):
    """channels: most subscriptions of one session, those on their way included."""

    channels: int


class Disconnect(NamedTuple):
    """Why a session has ended: code and reason of the close frame."""

    code: int
    reason: str


class Subscription(msgspec.Struct, gc=False):
    """A session's place in a channel.

    request_id: of the subscribe that is not answered yet, 0 once SUBSCRIBED.
    expires_at, flags: the owner's; the session does not look at them.
    """

    request_id: int = 0
    is_server_side: bool = False
    expires_at: float | None = None
    flags: int = 0

    @property
    def state(self) -> State:
        """SUBSCRIBING or SUBSCRIBED."""
        return State.SUBSCRIBING if self.request_id else State.SUBSCRIBED


class Session:
    """One connection's session; see the module.

    unidirectional: the client says nothing; the request of its transport stands for the connect command, so that the
    session begins in CONNECTING. Pushes go out bare, and the end is told by a push.
    subscriptions: by channel, at most `bounds.channels`; still there after the end, for the owner to leave.
    disconnect: None until the session has ended.
    pongs_due: pings that the client has not answered.
    """

    __slots__ = ("_out", "bounds", "disconnect", "pongs_due", "state", "subscriptions", "unidirectional")

    def __init__(self, bounds: Bounds, *, unidirectional: bool = False) -> None:
        self.bounds = bounds
        self.unidirectional = unidirectional
        self.state = State.CONNECTING if unidirectional else State.NEW
        self.subscriptions: dict[str, Subscription] = {}
        self.disconnect: Disconnect | None = None
        self.pongs_due = 0
        self._out: list[bytes] | None = None

    # What the client says.

    def feed(self, frame: str | bytes) -> Iterable[Request]:
        """Take a frame and give what the owner has to do, one after the other.

        Answer a request before asking for the next one: the commands of a frame are read as the iteration proceeds.
        What needs nobody else is answered here. Behind a command that ends the session, and a connect that is refused,
        nothing is read.
        """
        if isinstance(frame, bytes):
            try:
                frame = frame.decode()
            except UnicodeDecodeError:
                self.ended(DisconnectCode.BAD_REQUEST)
                return ()
        if "\n" in frame:
            return self._read_lines(frame)
        request = self._read(frame)
        return () if request is None else (request,)

    def _read_lines(self, frame: str) -> Iterator[Request]:
        """Read command by command: one line feed may end the frame, an empty line is no command."""
        start = 0
        while start < len(frame) and self.state < State.REFUSED:
            end = frame.find("\n", start)
            if end < 0:
                end = len(frame)
            request = self._read(frame[start:end])
            if request is not None:
                yield request
            start = end + 1

    def _read(self, line: str) -> Request | None:
        if self.state >= State.REFUSED:
            return None
        try:
            command = read_command(line)
        except BadCommand:
            self.ended(DisconnectCode.BAD_REQUEST)
            return None
        outcome = TABLE[type(command)][self._state_for(command)]
        if outcome is Outcome.ASK:
            assert not isinstance(command, Unsupported | Pong)
            return command if self._is_taken(command) else None
        if outcome is Outcome.PONG and self.pongs_due:
            self.pongs_due -= 1
        elif outcome is Outcome.DONE:
            self._write(reply(command.id, command.method, EMPTY))
        elif isinstance(outcome, ErrorCode):
            self._write(error_reply(command.id, outcome))
        else:
            self.ended(DisconnectCode.BAD_REQUEST)
        return None

    def _state_for(self, command: Command) -> State:
        if self.state is State.CONNECTED and isinstance(command, Subscribe | Unsubscribe | SubRefresh):
            subscription = self.subscriptions.get(command.channel)
            if subscription is not None:
                return subscription.state
        return self.state

    def _is_taken(self, request: Request) -> bool:
        """Take a request that its state allows, or refuse it: channels have names and bounds, subscriptions tokens."""
        if isinstance(request, Connect):
            self.state = State.CONNECTING
        elif isinstance(request, SubRefresh):
            if not request.token:
                return self._refuse(request, ErrorCode.BAD_REQUEST)
        elif isinstance(request, Subscribe | Publish | Presence | PresenceStats | History):
            try:
                check_name(request.channel)
            except ValueError as error:
                return self._refuse(request, ErrorCode.BAD_REQUEST, str(error))
            if isinstance(request, Subscribe):
                return self._enters(request)
        return True

    def _enters(self, request: Subscribe) -> bool:
        if len(self.subscriptions) >= self.bounds.channels:
            return self._refuse(request, ErrorCode.LIMIT_EXCEEDED)
        self.subscriptions[request.channel] = Subscription(request.id)
        return True

    def _refuse(self, request: Request, code: ErrorCode, message: str = "") -> bool:
        self._write(error_reply(request.id, code, message))
        return False

    # What the owner answers.

    def connected(self, request: Connect, result: ConnectResult) -> bool:
        """Answer a connect. `result.subs` are the server-side subscriptions that the session has from now on.

        More of them than the bound end it with 3505.
        """
        if self.state is not State.CONNECTING:
            return False
        if len(result.subs) > self.bounds.channels:
            self.ended(DisconnectCode.CHANNEL_LIMIT)
            return False
        self.state = State.CONNECTED
        for channel in result.subs:
            self.subscriptions[channel] = Subscription(is_server_side=True)
        if self.unidirectional:
            self.push(connect_push(result))
        else:
            self._write(reply(request.id, request.method, encode_result(result)))
        return True

    def subscribed(
        self, request: Subscribe, result: SubscribeResult, *, expires_at: float | None = None, flags: int = 0
    ) -> bool:
        """Answer a subscribe. What is published in the channel may be sent behind this reply, not before it."""
        subscription = self._subscription(request)
        if subscription is None:
            return False
        subscription.request_id = 0
        subscription.expires_at = expires_at
        subscription.flags = flags
        self._write(reply(request.id, request.method, encode_result(result)))
        return True

    def unsubscribed(self, request: Unsubscribe) -> bool:
        """Answer an unsubscribe: the subscription is gone."""
        if self.state is not State.CONNECTED:
            return False
        self._remove(request.channel, ErrorCode.PERMISSION_DENIED)
        self._write(reply(request.id, request.method, EMPTY))
        return True

    def answered(self, request: Request, result: bytes = EMPTY) -> bool:
        """Answer any other request; a Send has no answer. result: of protocol.client."""
        if self.state is not State.CONNECTED or isinstance(request, Send):
            return False
        self._write(reply(request.id, request.method, result))
        return True

    def refused(self, request: Request, code: int, message: str = "") -> bool:
        """Answer any request but a Send with an error. message: default the code's own.

        The client whose connect is refused is expected to close; a unidirectional session ends instead.
        """
        if isinstance(request, Connect):
            return self._refuse_connect(request, code, message)
        if self.state is not State.CONNECTED or isinstance(request, Send):
            return False
        if isinstance(request, Subscribe):
            if self._subscription(request) is None:
                return False
            del self.subscriptions[request.channel]
        self._write(error_reply(request.id, code, message))
        return True

    def _refuse_connect(self, request: Connect, code: int, message: str) -> bool:
        if self.state is not State.CONNECTING:
            return False
        if self.unidirectional:
            self.ended(_UNIDIRECTIONAL_ENDS.get(code, DisconnectCode.SERVER_ERROR))
        else:
            self.state = State.REFUSED
            self._write(error_reply(request.id, code, message))
        return True

    def ended(self, code: int, reason: str = "") -> None:
        """End the session, whatever its state; the first end counts. What is written before can still be taken.

        Args:  code: a DisconnectCode, whose own reason is the default; or another one from 3000 to 4999.
        """
        if self.state is State.ENDED:
            return
        if not reason and isinstance(code, DisconnectCode):
            reason = code.reason
        self.disconnect = Disconnect(int(code), reason)
        if self.unidirectional:
            self._write(bare(disconnect_push(*self.disconnect)))
        self.state = State.ENDED

    # What the server does by itself.

    def ping(self) -> None:
        """Ask whether the client is there: a pong is due from now on, of one that can answer."""
        if self.state is State.CONNECTED:
            self._write(EMPTY)
            self.pongs_due += not self.unidirectional

    def push(self, push: bytes) -> None:
        """Write a push of protocol.client, in the form that the transport carries; only while CONNECTED."""
        if self.state is State.CONNECTED:
            self._write(bare(push) if self.unidirectional else push)

    def subscribe(
        self, channel: str, result: SubscribeResult, *, expires_at: float | None = None, flags: int = 0
    ) -> bool:
        """Subscribe the client to a channel and tell it. False: it is in it, or on its way, or the session is not on.

        Over the bound the session ends with 3505.
        """
        if self.state is not State.CONNECTED or channel in self.subscriptions:
            return False
        if len(self.subscriptions) >= self.bounds.channels:
            self.ended(DisconnectCode.CHANNEL_LIMIT)
            return False
        self.subscriptions[channel] = Subscription(0, is_server_side=True, expires_at=expires_at, flags=flags)
        self.push(subscribe_push(channel, result))
        return True

    def unsubscribe(self, channel: str, code: int, reason: str) -> bool:
        """End a subscription and tell the client. False: there is none.

        One that is on its way is refused instead: temporarily, where clients subscribe again after `code`.
        """
        subscription = self.subscriptions.get(channel)
        if self.state is not State.CONNECTED or subscription is None:
            return False
        if not subscription.request_id:
            self.push(unsubscribe_push(channel, code, reason))
        self._remove(channel, ErrorCode.INTERNAL if resubscribes(code) else ErrorCode.PERMISSION_DENIED)
        return True

    def take(self) -> bytes:
        """Empty the out-box and return what was in it, one object a line; b"" for nothing."""
        out = self._out
        if out is None:
            return b""
        self._out = None
        return b"\n".join(out)

    def _subscription(self, request: Subscribe) -> Subscription | None:
        """Return what this very request waits for, unless the session or the server has ended it meanwhile."""
        subscription = self.subscriptions.get(request.channel)
        if self.state is not State.CONNECTED or subscription is None or subscription.request_id != request.id:
            return None
        return subscription

    def _remove(self, channel: str, code: ErrorCode) -> None:
        """Forget a subscription; one that is on its way is refused with `code`."""
        subscription = self.subscriptions.pop(channel, None)
        if subscription is not None and subscription.request_id:
            self._write(error_reply(subscription.request_id, code))

    def _write(self, text: bytes) -> None:
        if self._out is None:
            self._out = [text]
        else:
            self._out.append(text)
