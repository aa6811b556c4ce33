"""The schema: every key with its unit, default, range, meaning and whether it changes live.

This is the only list of settings. `file.py` validates against it, `rules.py` asks it what may
change live, and `config.toml` in the project's root is generated from it. To add a key, add it
here and run `python -m tools.config_toml > config.toml`.

Values are frozen. Lists in them are shared, never changed in place.
"""

import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import cache
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Place = tuple[str | int, ...]
"""Where a value stands: names of tables and key, and the index of an entry of an array."""


def setting(
    meaning: str,
    *,
    form: str = "",
    live: bool = True,
    secret: bool = False,
    path: bool = False,
    per_application: bool = False,
    overrides: "type[Section] | None" = None,
    example: Any = None,
    **limits: Any,
) -> Meta:
    """Describe one key.

    Args:  meaning: for the operator; full sentences.  form: what is allowed, where type and limits do not say it.
           live: SIGHUP takes it over, else a restart does.  secret: its value is never printed.
           path: names a file or folder; `load` makes it absolute.  per_application: an [[application]] may override it.
           overrides: a table of such keys of this section.  example: stands in config.toml in place of the default.
           limits: msgspec's ge, le, min_length.
    """
    extra = {
        "form": form,
        "live": live,
        "secret": secret,
        "path": path,
        "per_application": per_application,
        "overrides": overrides,
        "example": example,
    }
    return Meta(description=meaning, extra=extra, **limits)


_PATH = 'a string that starts with "/"'
_ADDRESSES = 'a string "host:port" or an array of them'
_CALLABLE = 'a string "package.module:function"'
_CLASS = 'a string "package.module:Class"'
_NAMESPACES = "tables headed [channels.<namespace>]"
_ANONYMOUS = (
    "Who needs no token. no: everybody needs one, which [auth] judges. loopback: programs and pages of this machine "
    "need none; what carries a proxy's headers does (X-Forwarded-…, Forwarded, Via). everywhere: nobody needs one."
)
_URL = 'a string "https://…" or "http://…"'


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One table of the configuration file; its docstring is the table's comment there.

    Printed or logged it shows of a secret only that there is one.
    """

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [(name, self._printable(name, member)) for name, member in members(type(self)).items()]

    def _printable(self, name: str, member: "Key | type[Section]") -> Any:
        is_secret = isinstance(member, Key) and member.secret and not member.entries
        value = getattr(self, name)
        return "hidden" if is_secret and value else value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


class Server(Section, frozen=True):
    """Where the server listens and how its processes live."""

    listen: Annotated[
        str | list[str],
        setting(
            "Address and port, or a list of them; IPv6 in brackets. Anything but loopback needs [auth] mode and "
            "[push] auth.",
            form=_ADDRESSES,
            live=False,
        ),
    ] = "127.0.0.1:8080"
    workers: Annotated[int, setting("Worker processes; 0 means one per core.", ge=0, le=256, live=False)] = 0
    websocket_path: Annotated[
        str, setting("Path of the WebSocket on which clients register.", form=_PATH, live=False)
    ] = "/ws"
    push_path: Annotated[
        str,
        setting(
            "Path to which back-ends push; the same path with /all added reaches everybody.", form=_PATH, live=False
        ),
    ] = "/push"
    drop_path: Annotated[
        str, setting("Path on which back-ends close the connections of a user.", form=_PATH, live=False)
    ] = "/drop"
    origins: Annotated[
        list[str],
        setting(
            "Origins of web pages that may connect, beside pages of this host itself, as the browser sends them: "
            'scheme://host[:port]; "*" allows every page, "null" sandboxed pages and local files.',
        ),
    ] = []
    trusted_proxies: Annotated[
        list[str],
        setting(
            "Addresses or networks of proxies in front. Of a client that comes through one the address counts that "
            "X-Forwarded-For names, for limits and in the log; without any that header is ignored.",
            form='an array of addresses and networks, ["127.0.0.1", "10.0.0.0/8"]',
        ),
    ] = []
    runtime_directory: Annotated[
        str,
        setting(
            "Folder for the lock and the Unix sockets. Empty: $RUNTIME_DIRECTORY, else $XDG_RUNTIME_DIR/fastpush-PORT, "
            "else a private folder under the temporary directory.",
            path=True,
            live=False,
        ),
    ] = ""
    hang_seconds: Annotated[
        float, setting("A worker or broker that is silent for so long is killed and replaced.", ge=1, le=600)
    ] = 10
    drain_seconds: Annotated[float, setting("Time from SIGTERM until what is left is killed.", ge=0, le=3600)] = 10
    read_buffer_bytes: Annotated[
        int,
        setting(
            "First size of a connection's read buffer; it grows up to message_bytes.", ge=2048, le=1048576, live=False
        ),
    ] = 2048
    write_buffer_bytes: Annotated[
        int, setting("Most bytes of a slow connection's send queue in one write.", ge=1024, le=1048576, live=False)
    ] = 65536
    head_bytes: Annotated[int, setting("Largest head of an HTTP request.", ge=1024, le=65536)] = 16384
    head_seconds: Annotated[
        float,
        setting(
            "Time a client has for the head of a request, for its body, and, kept alive, to send the next one.",
            ge=1,
            le=3600,
        ),
    ] = 75


class Api(Section, frozen=True):
    """Where everything but WebSocket paths is served."""

    listen: Annotated[
        str | list[str],
        setting(
            "Address and port, or a list of them. Keeps the push side inside the firewall. Empty: on [server] listen.",
            form=_ADDRESSES,
            live=False,
        ),
    ] = ""
    page: Annotated[
        Literal["loopback", "on", "off"],
        setting("The chat page at /: on loopback addresses only, on every address, or nowhere."),
    ] = "loopback"


class Tls(Section, frozen=True):
    """TLS 1.2 and 1.3 on the server's own addresses. Without a certificate it speaks plain text."""

    certificate: Annotated[
        str,
        setting(
            "PEM file with the certificate, and behind it those that it was signed with. Empty: no TLS. SIGHUP takes "
            "a new one over, but switching TLS on or off needs a restart.",
            path=True,
        ),
    ] = ""
    key: Annotated[
        str,
        setting(
            "PEM file with the private key, without passphrase. Empty: it stands in the certificate's file.",
            path=True,
        ),
    ] = ""
    api: Annotated[bool, setting("Speak TLS on [api] listen too.", live=False)] = True


class Connections(Section, frozen=True):
    """How a WebSocket connection is kept."""

    socket_send_bytes: Annotated[
        int,
        setting(
            "Kernel send buffer; the kernel doubles it. 0: the kernel's own choice.", ge=0, le=16777216, live=False
        ),
    ] = 65536
    ping_interval_seconds: Annotated[
        float,
        setting(
            "A client that is silent for so long is pinged. Stay below a proxy's idle time-out.",
            ge=1,
            le=3600,
            per_application=True,
        ),
    ] = 25
    pong_timeout_seconds: Annotated[
        float,
        setting("A client that stays silent for so long after a ping is gone.", ge=1, le=3600, per_application=True),
    ] = 10
    close_timeout_seconds: Annotated[
        float,
        setting(
            "Time a client has to take what is still queued and to answer a close frame.",
            ge=0.1,
            le=600,
            per_application=True,
        ),
    ] = 5
    write_timeout_seconds: Annotated[
        float,
        setting(
            "A client that takes nothing of what waits for it for so long is closed with 1013. 0: no such limit.",
            ge=0,
            le=3600,
            per_application=True,
        ),
    ] = 0


class Limits(Section, frozen=True):
    """Bounds on what one client, one push or one worker may use."""

    register_timeout_seconds: Annotated[
        float, setting("A client that has not registered by then is closed with 1008.", ge=0.1, le=3600)
    ] = 10
    handshakes_per_second: Annotated[
        int,
        setting(
            "Most WebSocket handshakes a second that one worker takes up, a second's worth at once; more get 503. "
            "0: no limit.",
            ge=0,
            le=1000000,
        ),
    ] = 0
    connections: Annotated[
        int,
        setting(
            "Most WebSockets of one worker; more get 503. 0: as many as its file descriptors allow, with some kept "
            "back for pushes.",
            ge=0,
            le=100000000,
        ),
    ] = 0
    connections_per_user: Annotated[
        int,
        setting(
            "Most connections of one user on this host; one more gets 429, or 1008 when it registers by message. "
            "0: no limit.",
            ge=0,
            le=1000000,
        ),
    ] = 0
    connections_per_address: Annotated[
        int,
        setting(
            "Most connections from one address on this host, of IPv6 from one /64; one more gets 429. Behind a proxy "
            "set [server] trusted_proxies first, or all clients share its address. 0: no limit.",
            ge=0,
            le=1000000,
        ),
    ] = 0
    max_lag_ms: Annotated[
        int,
        setting(
            "A worker whose event loop is so far behind answers new handshakes with 503 until it has caught up. "
            "0: never.",
            ge=0,
            le=60000,
        ),
    ] = 500
    messages_per_second: Annotated[
        int,
        setting(
            "Most messages a second from one client, a second's worth at once; more close with 1008. 0: no limit.",
            ge=0,
            le=1000000,
            per_application=True,
        ),
    ] = 0
    message_bytes: Annotated[
        int,
        setting(
            "Largest message from a client; a larger one closes with 1009.", ge=128, le=67108864, per_application=True
        ),
    ] = 65536
    message_fragments: Annotated[
        int, setting("Most fragments of one message; more close with 1009.", ge=1, le=1000000, per_application=True)
    ] = 1024
    receive_queue_messages: Annotated[
        int,
        setting(
            "Most messages of one client that wait for a busy application; at the bound nothing more is read from it.",
            ge=1,
            le=1000000,
            per_application=True,
        ),
    ] = 1000
    receive_queue_bytes: Annotated[
        int,
        setting(
            "Most bytes of one client that wait for a busy application; at the bound nothing more is read from it.",
            ge=1024,
            le=1073741824,
            per_application=True,
        ),
    ] = 1048576
    registrations: Annotated[int, setting("Most events that one connection may register.", ge=1, le=100000)] = 100
    channels_per_connection: Annotated[
        int,
        setting("Most channels that one connection of [client] may be subscribed to.", ge=1, le=65535),
    ] = 128
    idempotency_keys: Annotated[
        int,
        setting(
            "Most idempotency keys that are remembered, each for 5 minutes; beyond it the oldest are forgotten. "
            "0: a publication that is sent again is published again.",
            ge=0,
            le=10000000,
        ),
    ] = 100000
    name_bytes: Annotated[int, setting("Longest user id and longest event, as UTF-8.", ge=1, le=65535)] = 512
    pushes_per_second: Annotated[
        int,
        setting(
            "Most pushes a second that one worker takes, a second's worth at once, publications of the server API "
            "among them; more get 429. 0: no limit.",
            ge=0,
            le=1000000,
        ),
    ] = 0
    push_body_bytes: Annotated[
        int,
        setting(
            "Largest body of a push, or of any request of the server API; a larger one is answered with 413.",
            ge=1024,
            le=67108864,
        ),
    ] = 1048576
    push_users: Annotated[
        int,
        setting(
            "Most users in the userId list of one push, channels of a broadcast, and commands of a batch.",
            ge=1,
            le=1000000,
        ),
    ] = 10000
    send_queue_messages: Annotated[
        int,
        setting(
            "Most messages waiting for one slow client; slow_policy says what happens beyond.",
            ge=1,
            le=1000000,
            per_application=True,
        ),
    ] = 1000
    send_queue_bytes: Annotated[
        int,
        setting(
            "Most bytes waiting for one slow client; slow_policy says what happens beyond. A push larger than this is "
            "answered with 413.",
            ge=1024,
            le=1073741824,
            per_application=True,
        ),
    ] = 1048576
    slow_policy: Annotated[
        Literal["disconnect", "drop-oldest"],
        setting(
            "What happens to a slow client at these bounds: it is closed with 1013, or its oldest waiting messages are "
            "dropped and counted.",
            per_application=True,
        ),
    ] = "disconnect"
    worker_send_bytes: Annotated[
        int,
        setting(
            "Most bytes waiting for all clients of one worker; at the bound the slowest clients are closed first.",
            ge=1048576,
            le=1099511627776,
        ),
    ] = 268435456


class Fanout(Section, frozen=True):
    """How a publication is written to many connections."""

    max_delay_ms: Annotated[
        float,
        setting(
            "Longest time for which messages of a busy routing key gather, so that several leave in one write. "
            "An idle key's message never waits. 0: no longer than a turn of the event loop.",
            ge=0,
            le=1000,
        ),
    ] = 3
    slice_ms: Annotated[
        float,
        setting(
            "Time that writing to large groups may take before other work of the worker has its turn.",
            ge=0.1,
            le=100,
        ),
    ] = 1


class Compression(Section, frozen=True):
    """Smaller messages for more CPU: a message is compressed once, however many receive it."""

    enabled: Annotated[bool, setting("Offer permessage-deflate to clients that ask for it.")] = False
    min_bytes: Annotated[int, setting("Smaller messages stay plain.", ge=0, le=1073741824)] = 1024
    max_bytes: Annotated[
        int,
        setting("Larger messages stay plain: compressing them would hold up the worker.", ge=0, le=1073741824),
    ] = 262144
    level: Annotated[
        int, setting("From fastest (1) to smallest (9); for support_gzip=1 in a URL, too.", ge=1, le=9)
    ] = 1


class Bus(Section, frozen=True):
    """The broker, and the link between it and the workers."""

    queue_bytes: Annotated[
        int,
        setting("Most bytes waiting for one process; beyond it pushes get 503.", ge=65536, le=1073741824, live=False),
    ] = 8388608
    confirm_ms: Annotated[
        int,
        setting(
            "A worker that has not counted a push by then is reported as unconfirmed.", ge=10, le=60000, live=False
        ),
    ] = 1000
    history_bytes: Annotated[
        int,
        setting(
            "Most bytes of what all channels keep together; beyond it the channel that was published to longest ago "
            "loses its oldest messages.",
            ge=65536,
            le=1099511627776,
        ),
    ] = 67108864


class JwtKey(Section, frozen=True):
    """One key that signs tokens: exactly one of secret, secret_file and public_key_file."""

    kid: Annotated[str, setting("Key id, as in the header of the token. Empty: for tokens that name no key.")] = ""
    algorithm: Annotated[Literal["HS256", "RS256", "ES256"], setting("The only algorithm accepted with this key.")] = (
        "HS256"
    )
    secret: Annotated[str, setting("HS256: the secret, at least 32 bytes.", secret=True)] = ""
    secret_file: Annotated[str, setting("HS256: file that holds the secret.", path=True)] = ""
    public_key_file: Annotated[str, setting("RS256 and ES256: PEM file that holds the public key.", path=True)] = ""


class Jwt(Section, frozen=True):
    """mode = "jwt": tokens are signed by your own back-end. Needs a key or jwks_url."""

    key: Annotated[list[JwtKey], setting("Keys that sign tokens, one table each.", secret=True)] = []
    jwks_url: Annotated[
        str, setting("URL of a JSON Web Key Set, fetched at start and again for unknown key ids.", form=_URL)
    ] = ""
    jwks_seconds: Annotated[float, setting("Age at which the key set is fetched again.", ge=1, le=86400)] = 300
    user_claim: Annotated[str, setting("Claim that holds the user id.", min_length=1)] = "sub"
    audience: Annotated[str, setting("Required aud claim. Empty: not checked.")] = ""
    issuer: Annotated[str, setting("Required iss claim. Empty: not checked.")] = ""
    leeway_seconds: Annotated[float, setting("Clock difference allowed for exp and nbf.", ge=0, le=600)] = 0


class Webhook(Section, frozen=True):
    """mode = "webhook": your own back-end is asked about each token."""

    url: Annotated[str, setting('URL that gets {"token": …} and answers {"userId": …} or 4xx.', form=_URL)] = ""
    headers: Annotated[list[str], setting("Request headers of the client that are passed on.")] = []
    timeout_seconds: Annotated[float, setting("Time the back-end has to answer.", ge=0.1, le=60)] = 3
    concurrency: Annotated[int, setting("Most questions of one worker that are under way at once.", ge=1, le=10000)] = (
        100
    )
    cache_seconds: Annotated[float, setting("How long an answer is remembered. 0: not at all.", ge=0, le=3600)] = 10
    cache_entries: Annotated[int, setting("Most answers that one worker remembers.", ge=0, le=1000000)] = 10000


class PythonAuth(Section, frozen=True):
    """mode = "python": your own function decides, inside the worker."""

    callable: Annotated[
        str,
        setting(
            "Your function(token, headers), which returns the user id or None; async or sync.",
            form=_CALLABLE,
        ),
    ] = ""
    threads: Annotated[int, setting("Threads of one worker for sync functions.", ge=1, le=256)] = 4
    queue: Annotated[
        int,
        setting("Most calls waiting for a thread; beyond it the answer is 503 or 1013.", ge=1, le=100000),
    ] = 1000
    timeout_seconds: Annotated[
        float,
        setting(
            "Time your function has to answer, [push] callable too; then the answer is 503 or 1013. What is async is "
            "cancelled; a thread goes on, and when all of one worker have been stuck for [server] hang_seconds the "
            "worker is replaced.",
            ge=0.1,
            le=600,
        ),
    ] = 5


class Auth(Section, frozen=True):
    """Who a client is."""

    mode: Annotated[
        Literal["token-is-user", "static", "jwt", "webhook", "python"],
        setting(
            "How a token becomes a user id. token-is-user believes everybody and works on loopback only; static looks "
            "it up in tokens_file; jwt, webhook and python have a table of their own below.",
        ),
    ] = "token-is-user"
    tokens_file: Annotated[
        str,
        setting('mode = "static": file with one line "token" = "user" for each token.', path=True),
    ] = ""
    jwt: Jwt = Jwt()
    webhook: Webhook = Webhook()
    python: PythonAuth = PythonAuth()


class Push(Section, frozen=True):
    """Who may push."""

    auth: Annotated[
        Literal["none", "keys", "python"],
        setting("How a back-end proves that it may push. none lets everybody push and works on loopback only."),
    ] = "none"
    keys: Annotated[
        list[str],
        setting(
            'auth = "keys": what back-ends send as X-API-Key or as Authorization: Bearer.',
            form='an array of strings, ["…", "…"], of at least 16 characters each',
            secret=True,
        ),
    ] = []
    keys_file: Annotated[str, setting('auth = "keys": file with one key a line, in addition to keys.', path=True)] = ""
    callable: Annotated[
        str,
        setting('auth = "python": your function(headers), which returns a bool; async or sync.', form=_CALLABLE),
    ] = ""


class Admin(Section, frozen=True):
    """The administration page at /admin, and what is remembered for `fastpush why`."""

    key: Annotated[
        str,
        setting(
            "What operators log in with; another one ends all their sessions. Empty: there is no page.",
            form="a string of at least 16 characters, or none",
            secret=True,
        ),
    ] = ""
    key_file: Annotated[str, setting("File that holds the key, in place of key.", path=True)] = ""
    actions: Annotated[
        bool, setting("Operators may also push, drain and restart, from the page and from `fastpush top`.")
    ] = False
    show_messages: Annotated[
        bool, setting("Operators are shown how the last pushes of a user begin. Else their size alone.")
    ] = False
    session_seconds: Annotated[
        float,
        setting("Operators log in again after this time; without a sign of life after an hour.", ge=1, le=2592000),
    ] = 43200
    remember_seconds: Annotated[
        float,
        setting("How long it is remembered what happened to a user's connections.", ge=60, le=86400),
    ] = 3600
    remember_notes: Annotated[
        int,
        setting("Most such notes of this host, of all users; beyond it the oldest are forgotten.", ge=100, le=200000),
    ] = 20000
    remember_pushes: Annotated[
        int,
        setting(
            "Most pushes that each worker remembers, and as many of those that were not delivered; beyond it the "
            "oldest are forgotten.",
            ge=100,
            le=100000,
        ),
    ] = 2000
    trace_events_per_second: Annotated[
        int,
        setting("Most events a second of each process in all live traces; the rest is counted.", ge=1, le=100000),
    ] = 500


class Namespace(Section, frozen=True):
    """What holds for channels whose names begin with the namespace and a colon: [channels.chat] for chat:42."""

    subscribe: Annotated[
        Literal["token", "users", "everybody", "nobody"],
        setting(
            "Who may subscribe. token: who has a subscription token of your back-end, which needs [auth] mode jwt. "
            "users: everybody but anonymous connections. everybody: these too. nobody: clients do not ask, the server "
            "subscribes them. A subscription token opens the channel whatever stands here. The name of a channel may "
            "narrow it: $chat:42 always takes a subscription token, chat:#jack is for the user jack alone, without "
            "token, and chat:#jack,rose for two.",
        ),
    ] = "token"
    publish: Annotated[
        Literal["nobody", "subscribers", "users", "everybody"],
        setting(
            "Which clients may publish; back-ends always may. subscribers: who is subscribed to the channel. "
            "users: everybody but anonymous connections.",
        ),
    ] = "nobody"
    history_messages: Annotated[
        int,
        setting(
            "Newest publications that each channel keeps, for clients that come back and for those that ask. 0: none.",
            ge=0,
            le=65535,
        ),
    ] = 0
    history_seconds: Annotated[
        float,
        setting(
            "How long a publication is kept, and how long the position of a channel without any is known.",
            ge=1,
            le=2592000,
        ),
    ] = 300
    history_bytes: Annotated[
        int,
        setting(
            "Most bytes that each channel keeps; beyond it its oldest publications go. [bus] history_bytes bounds all "
            "channels together.",
            ge=1024,
            le=67108864,
        ),
    ] = 1048576
    recovery: Annotated[
        bool,
        setting(
            "A client that comes back gets what it missed, in order, or is told that this is kept no longer. Needs "
            "history_messages.",
        ),
    ] = False
    presence: Annotated[bool, setting("Who is subscribed is known: to subscribers that ask, and to back-ends.")] = False
    join_leave: Annotated[
        Literal["off", "connections", "users"],
        setting(
            "Subscribers are told who comes and leaves: not at all, of each connection, or once of each user, with "
            "its first and its last connection. Needs presence.",
        ),
    ] = "off"
    grace_seconds: Annotated[
        float,
        setting('join_leave = "users": who comes back within this time has not left.', ge=0, le=3600),
    ] = 2
    join_leave_members: Annotated[
        int,
        setting(
            "A channel with more connections than this tells nobody who comes and leaves; who asks for presence is "
            "answered still.",
            ge=1,
            le=1000000,
        ),
    ] = 1000
    slow_policy: Annotated[
        Literal["disconnect", "drop-oldest", "latest"],
        setting(
            "What happens when a client falls behind by [limits] send_queue_messages or send_queue_bytes. disconnect: "
            "it is closed, and may recover. drop-oldest: its oldest publications of such channels go, and it is told "
            "how many. latest: as soon as it is behind, only the newest publication of each channel waits for it.",
        ),
    ] = "disconnect"


class Client(Section, frozen=True):
    """Clients of channels: the Centrifugal client protocol at /connection/websocket, and Server-Sent Events."""

    anonymous: Annotated[Literal["no", "loopback", "everywhere"], setting(_ANONYMOUS)] = "no"
    personal_namespace: Annotated[
        str,
        setting(
            "The server subscribes every connection of a user to NAMESPACE:#USER, so that back-ends reach users "
            "wherever they are. Such a namespace has a table [channels.<namespace>]. Empty: to none.",
            form='a string, the name of a namespace, or ""',
        ),
    ] = ""
    expired_close_seconds: Annotated[
        float,
        setting(
            "Time a client has to refresh a token that has expired; then its connection is closed, or the "
            "subscription ended.",
            ge=0,
            le=3600,
        ),
    ] = 25
    handler: Annotated[
        str,
        setting(
            "Your class for what channels do not do: remote procedure calls (on_rpc) and messages (on_message). It "
            "derives from fastpush.applications.Application; workers import it when they start. Empty: clients are "
            "told that there is none.",
            form=_CLASS,
            live=False,
        ),
    ] = ""
    options: Annotated[
        dict[str, Any],
        setting(
            "What the class is given; it says itself what is allowed.",
            form="a table headed [client.options]",
            live=False,
            secret=True,
            example={"greeting": "hello"},
        ),
    ] = {}


class Application(Section, frozen=True):
    """A WebSocket path, and the class that serves it."""

    path: Annotated[str, setting("Its path; every path differs from the others.", form=_PATH, example="/echo")]
    handler: Annotated[
        str,
        setting(
            "Your class, or one that comes with the server: Echo, Broadcast, Chat or Hub, each in its module of "
            "fastpush.applications. Workers import it when they start.",
            form=_CLASS,
            example="fastpush.applications.echo:Echo",
        ),
    ]
    anonymous: Annotated[
        Literal["no", "loopback", "everywhere"],
        setting(_ANONYMOUS),
    ] = "no"
    heartbeat_seconds: Annotated[
        float,
        setting('Each connection gets the text "heartbeat" at once and then every so often. 0: never.', ge=0, le=3600),
    ] = 0
    options: Annotated[
        dict[str, Any],
        setting(
            "What the class is given; it says itself what is allowed.",
            form="a table headed [application.options]",
            secret=True,
            example={"binary": "text"},
        ),
    ] = {}
    limits: Annotated[
        dict[str, Any],
        setting(
            "What differs from [limits] for these connections, any of these keys.",
            form="a table headed [application.limits]",
            overrides=Limits,
        ),
    ] = {}
    connections: Annotated[
        dict[str, Any],
        setting(
            "What differs from [connections] for these connections, any of these keys.",
            form="a table headed [application.connections]",
            overrides=Connections,
        ),
    ] = {}

    def limits_over(self, limits: Limits) -> Limits:
        """Return the limits of this application's connections: `limits` with its own in their places."""
        return msgspec.structs.replace(limits, **self.limits)

    def connections_over(self, connections: Connections) -> Connections:
        """Return how this application's connections are kept: `connections` with its own keys in their places."""
        return msgspec.structs.replace(connections, **self.connections)


class Log(Section, frozen=True):
    """One line an event."""

    level: Annotated[Literal["debug", "info", "warning", "error"], setting("Least severe level that is written.")] = (
        "info"
    )
    format: Annotated[
        Literal["auto", "human", "json"], setting("auto means human on a terminal, json elsewhere.", live=False)
    ] = "auto"
    file: Annotated[
        str, setting("File to append to; SIGHUP opens it anew. Empty: standard error.", path=True, live=False)
    ] = ""


class Config(Section, frozen=True):
    """All settings of a server. `load` returns only validated ones."""

    server: Server = Server()
    api: Api = Api()
    tls: Tls = Tls()
    connections: Connections = Connections()
    limits: Limits = Limits()
    fanout: Fanout = Fanout()
    compression: Compression = Compression()
    bus: Bus = Bus()
    auth: Auth = Auth()
    push: Push = Push()
    admin: Admin = Admin()
    client: Client = Client()
    channels: Annotated[
        dict[str, Namespace],
        setting(
            "A namespace of channels: what holds for all whose names begin with it and a colon, such as chat:42. Names "
            "without a colon follow [channels.without_namespace]. Clients subscribe only where there is such a table.",
            form=_NAMESPACES,
            example={
                "chat": Namespace(
                    subscribe="users",
                    publish="subscribers",
                    history_messages=100,
                    history_seconds=3600,
                    recovery=True,
                    presence=True,
                    join_leave="users",
                )
            },
        ),
    ] = {}
    application: Annotated[
        list[Application],
        setting("WebSocket paths beside [server] websocket_path, and the class that serves each.", live=False),
    ] = []
    log: Log = Log()


_SHOWN_CHARACTERS = 80
_TOML_TYPES: tuple[tuple[type, str], ...] = (
    (bool, "boolean"),  # before int and date: Python's subclasses first
    (int, "integer"),
    (float, "float"),
    (str, "string"),
    (list, "array"),
    (dict, "table"),
    (datetime, "date-time"),
    (date, "date"),
    (time, "time"),
)


# What follows reads the classes above, for messages, environment variables, comments and reloads.


@dataclass(frozen=True)
class Key:
    """One key of a section, as the schema describes it."""

    name: str
    annotation: Any
    default: Any
    meaning: str
    form: str
    live: bool
    secret: bool
    path: bool
    per_application: bool
    overrides: type[Section] | None
    example: Any

    @property
    def is_required(self) -> bool:
        """Whether the key must be given."""
        return self.default is msgspec.NODEFAULT

    @property
    def is_table(self) -> bool:
        """Whether its value is a table with a heading of its own, and no section."""
        return typing.get_origin(_bare(self.annotation)) is dict and self.named is None

    @property
    def named(self) -> type[Section] | None:
        """The section of each table when the key is a table of tables with names of the operator's choice."""
        bare = _bare(self.annotation)
        inner = typing.get_args(bare)[1] if typing.get_origin(bare) is dict else None
        return inner if isinstance(inner, type) and issubclass(inner, Section) else None

    @property
    def entries(self) -> type[Section] | None:
        """The section of each entry when the key is an array of tables."""
        bare = _bare(self.annotation)
        inner = typing.get_args(bare)[0] if typing.get_origin(bare) is list else None
        return inner if isinstance(inner, type) and issubclass(inner, Section) else None

    @property
    def allowed(self) -> str:
        """What may stand there: type, range or choices, without the default."""
        if self.form:
            return self.form
        bare, meta = _bare(self.annotation), typing.get_args(self.annotation)[1]
        if bare in {int, float}:
            kind = "an integer" if bare is int else "a number"
            return f"{kind} from {readable(meta.ge, self.name)} to {readable(meta.le, self.name)}"
        if typing.get_origin(bare) is Literal:
            return "one of " + ", ".join(shown(choice) for choice in typing.get_args(bare))
        if self.entries:
            return "an array of tables"
        names = {
            bool: "true or false",
            str: "a non-empty string" if meta.min_length else "a string",
            list[str]: 'an array of strings, ["…", "…"]',
            str | list[str]: 'a string or an array of strings, ["…", "…"]',
        }
        return names[bare]


def _bare(annotated: Any) -> Any:
    return typing.get_args(annotated)[0]


@cache
def members(section: type[Section]) -> dict[str, "Key | type[Section]"]:
    """Return the keys and the nested sections of a section by name, in order."""
    hints = typing.get_type_hints(section, include_extras=True)
    return {field.name: _member(field, hints[field.name]) for field in msgspec.structs.fields(section)}


def _member(field: msgspec.structs.FieldInfo, hint: Any) -> "Key | type[Section]":
    if isinstance(hint, type) and issubclass(hint, Section):
        return hint
    has_factory = field.default_factory is not msgspec.NODEFAULT  # lists and tables, so that defaults are not shared
    default = field.default_factory() if has_factory else field.default
    meta = typing.get_args(hint)[1]
    return Key(field.name, hint, default, meta.description, **meta.extra)


def overridable(section: type[Section]) -> dict[str, Key]:
    """Return the keys of a section that an [[application]] may override, by name, in order."""
    own = members(section).items()
    return {name: member for name, member in own if isinstance(member, Key) and member.per_application}


def keys(section: type[Section] = Config, table: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Key]]:
    """Yield every key with its place; keys of the tables in an array, or in a table of tables, are not among them."""
    for name, member in members(section).items():
        if isinstance(member, Key):
            yield (*table, name), member
        else:
            yield from keys(member, (*table, name))


def sections(
    section: type[Section] = Config, table: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], type[Section]]]:
    """Yield every section below `section` with its place."""
    for name, member in members(section).items():
        if not isinstance(member, Key):
            yield (*table, name), member
            yield from sections(member, (*table, name))


def default_of(key: Key) -> str:
    """Return a key's default in TOML notation; "none" for one that must be given."""
    if key.is_required:
        return "none"
    return readable(key.default, key.name) if type(key.default) in {int, float} else shown(key.default)


def bare_or_quoted(name: str) -> str:
    """Return a name as TOML would write it."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else shown(name)


def title(place: Place) -> str:
    """Return a place as an operator reads it: `[auth.jwt] issuer`, `[[auth.jwt.key]] number 2, secret`."""
    for position, part in enumerate(place):
        if isinstance(part, int):
            before, after = place[:position], place[position + 1 :]
            if after:
                heading = f"[[{'.'.join(map(str, before))}]] number {part + 1}"
                return f"{heading}, {'.'.join(bare_or_quoted(str(name)) for name in after)}"
            return f"{title(before)}, entry {part + 1}"
    *tables, name = (bare_or_quoted(str(part)) for part in place)
    return f"[{'.'.join(tables)}] {name}" if tables else f"[{name}]"


def readable(number: float, name: str) -> str:
    """Return a bound or default; round sizes in bytes also in KiB, MiB, GiB or TiB."""
    if name.endswith("_bytes"):
        for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
            if number >= 1024**power and number % 1024**power == 0:
                return f"{number} ({int(number // 1024**power)} {unit})"
    return f"{number}"


def shown(value: Any) -> str:
    """Return a value in TOML notation; characters that a terminal would not print are escaped."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return '"' + "".join(map(_escaped, value)) + '"'
        case list():
            return "[" + ", ".join(map(shown, value)) + "]"
        case dict():
            return "{" + ", ".join(f"{shown(str(name))} = {shown(inner)}" for name, inner in value.items()) + "}"
        case _:
            return str(value)


def found(value: Any, *, secret: bool = False) -> str:
    """Return a value and its TOML type for a message: cut when long, without passwords of URLs, hidden when secret."""
    if not secret:
        text = re.sub(r"(?<=//)[^/@\s]*@", "…@", shown(value))
        return f"{text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + '…'} ({toml_type(value)})"
    if isinstance(value, str):
        return f"a {toml_type(value)} of {len(value)} characters"
    if isinstance(value, list):
        return f"an {toml_type(value)} of {len(value)}"
    return article(toml_type(value))


def toml_type(value: Any) -> str:
    """Return TOML's word for the type of a value."""
    return next((word for python, word in _TOML_TYPES if isinstance(value, python)), type(value).__name__)


def article(word: str) -> str:
    """Put a or an before a word."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(character, f"\\U{ord(character):08X}")
