"""Settings as data: every key with its unit, default, range, meaning and whether it changes live.

The schema below is the only list of settings: `config.toml` is generated from it
(`python -m tools.config_toml`), `load` validates against it, and `live` in a key's
metadata decides what SIGHUP may change. `serve` and `check` read it alike.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta


def setting(meaning: str, *, live: bool = False, **limits: Any) -> Meta:
    """Describe one key. limits: msgspec's ge, le, min_length, pattern."""
    return Meta(description=meaning, extra={"live": live}, **limits)


Path = Annotated[str, Meta(pattern=r"^/[^\s?#]*$")]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One table of the configuration file."""


class Server(Section):
    """Where the server listens and how its processes live."""

    listen: Annotated[
        str | list[str], setting("host:port, or a list of them. Anything but loopback needs [auth] and [push] auth.")
    ] = "127.0.0.1:8080"
    workers: Annotated[int, setting("worker processes; 0 means one per core.", ge=0, le=256)] = 0
    websocket_path: Annotated[str, setting("path of the WebSocket that clients register on.")] = "/ws"
    push_path: Annotated[str, setting("path back-ends push to; <push_path>/all reaches everybody.")] = "/push"
    drop_path: Annotated[str, setting("path on which back-ends close a user's connections.")] = "/drop"
    origins: Annotated[
        list[str],
        setting('origins of web pages that may connect, beside this host; "*" allows all.', live=False),
    ] = []
    runtime_directory: Annotated[
        str,
        setting(
            "folder for lock and Unix sockets; empty: $RUNTIME_DIRECTORY, else $XDG_RUNTIME_DIR/fastpush-PORT, "
            "else a private folder under the temporary directory."
        ),
    ] = ""
    hang_seconds: Annotated[
        float, setting("a worker or broker silent for this long is killed and replaced.", ge=1, le=600)
    ] = 10
    drain_seconds: Annotated[
        float, setting("time from SIGTERM until what is left is killed.", ge=0, le=3600)
    ] = 10
    read_buffer_bytes: Annotated[
        int, setting("first size of a connection's read buffer; it grows up to message_bytes.", ge=2048, le=1048576)
    ] = 2048
    head_bytes: Annotated[int, setting("largest HTTP request head.", ge=1024, le=65536)] = 16384
    head_seconds: Annotated[
        float, setting("time a client has for a request head, and a kept-alive connection to send the next one.", ge=1, le=3600)
    ] = 75


class Api(Section):
    """Where everything but WebSocket paths is served."""

    listen: Annotated[
        str | list[str],
        setting("host:port, or a list; empty: on [server] listen. Keeps the push side inside the firewall."),
    ] = ""
    page: Annotated[
        Literal["loopback", "on", "off"], setting("the page at /: on loopback listeners only, everywhere, or nowhere.")
    ] = "loopback"


class Connections(Section):
    """How a WebSocket connection is kept."""

    socket_send_bytes: Annotated[
        int, setting("kernel send buffer; the kernel doubles it. 0: the kernel's own choice.", ge=0, le=16777216)
    ] = 65536
    ping_interval_seconds: Annotated[
        float, setting("a silent client is pinged after this long; below a proxy's idle time-out.", ge=1, le=3600)
    ] = 25
    pong_timeout_seconds: Annotated[
        float, setting("a client that stays silent this long after a ping is gone.", ge=1, le=3600)
    ] = 10
    close_timeout_seconds: Annotated[
        float, setting("time a client has to answer a close frame and to take what is still queued.", ge=0.1, le=600)
    ] = 5


class Limits(Section):
    """Bounds on what one client, one push or one worker may use."""

    register_timeout_seconds: Annotated[
        float, setting("a client that has not registered by then is closed with 1008.", ge=0.1, le=3600)
    ] = 10
    message_bytes: Annotated[
        int, setting("largest message from a client; more closes with 1009.", ge=128, le=67108864)
    ] = 65536
    message_fragments: Annotated[
        int, setting("most fragments of one message; more closes with 1009.", ge=1, le=1000000)
    ] = 1024
    registrations: Annotated[int, setting("most events one connection may register.", ge=1, le=100000)] = 100
    name_bytes: Annotated[int, setting("longest userId and longest event, as UTF-8.", ge=1, le=65535)] = 512
    push_body_bytes: Annotated[int, setting("largest body of a push; more is 413.", ge=1024, le=67108864)] = 1048576
    push_users: Annotated[int, setting("most users in one push's userId list.", ge=1, le=1000000)] = 10000
    send_queue_messages: Annotated[
        int, setting("most messages waiting for one slow client; more closes with 1013.", ge=1, le=1000000)
    ] = 1000
    send_queue_bytes: Annotated[
        int,
        setting("most bytes waiting for one slow client; more closes with 1013. A larger push is 413.", ge=1024, le=1073741824),
    ] = 1048576
    worker_send_bytes: Annotated[
        int,
        setting("most bytes waiting for all clients of a worker; at the bound the slowest are closed.", ge=1048576, le=1099511627776),
    ] = 268435456


class Bus(Section):
    """The link between workers and broker."""

    queue_bytes: Annotated[
        int, setting("most bytes waiting for one process; more answers pushes with 503.", ge=65536, le=1073741824)
    ] = 8388608
    confirm_ms: Annotated[
        int, setting("a worker that has not counted a push by then is reported as unconfirmed.", ge=10, le=60000)
    ] = 1000


class JwtKey(Section):
    """One key that signs tokens. Exactly one of secret, secret_file, public_key_file."""

    kid: Annotated[str, setting("key id as in the token's header; empty: for tokens without one.", live=True)] = ""
    algorithm: Annotated[Literal["HS256", "RS256", "ES256"], setting("the only algorithm accepted with this key.", live=True)] = "HS256"
    secret: Annotated[str, setting("HS256 secret, at least 32 bytes.", live=True)] = ""
    secret_file: Annotated[str, setting("file holding the HS256 secret.", live=True)] = ""
    public_key_file: Annotated[str, setting("PEM file with the RS256 or ES256 public key.", live=True)] = ""


class Jwt(Section):
    """Tokens signed by your own back-end."""

    key: Annotated[list[JwtKey], setting("keys, as [[auth.jwt.key]] tables.", live=True)] = []
    jwks_url: Annotated[str, setting("URL of a JSON Web Key Set; fetched at start, refetched for unknown key ids.", live=True)] = ""
    jwks_seconds: Annotated[float, setting("age at which the key set is fetched again.", live=True, ge=1, le=86400)] = 300
    user_claim: Annotated[str, setting("claim that holds the user id.", live=True, min_length=1)] = "sub"
    audience: Annotated[str, setting("required aud; empty: not checked.", live=True)] = ""
    issuer: Annotated[str, setting("required iss; empty: not checked.", live=True)] = ""
    leeway_seconds: Annotated[float, setting("clock difference allowed for exp and nbf.", live=True, ge=0, le=600)] = 0


class Webhook(Section):
    """Your own back-end is asked about each token."""

    url: Annotated[str, setting('URL that gets {"token": …} and answers {"userId": …} or 4xx.', live=True)] = ""
    headers: Annotated[list[str], setting("request headers of the client that are passed on.", live=True)] = []
    timeout_seconds: Annotated[float, setting("time the back-end has to answer.", live=True, ge=0.1, le=60)] = 3
    concurrency: Annotated[int, setting("most questions under way at once in a worker.", live=True, ge=1, le=10000)] = 100
    cache_seconds: Annotated[float, setting("how long an answer is remembered; 0: not at all.", live=True, ge=0, le=3600)] = 10
    cache_entries: Annotated[int, setting("most answers remembered in a worker.", live=True, ge=0, le=1000000)] = 10000


class PythonAuth(Section):
    """Your own function decides, inside the worker."""

    callable: Annotated[str, setting("package.module:function(token, headers) -> user id or None; async or sync.")] = ""
    threads: Annotated[int, setting("threads for a sync function.", ge=1, le=256)] = 4
    queue: Annotated[int, setting("most calls waiting for a thread; more is answered as unavailable.", ge=1, le=100000)] = 1000


class Auth(Section):
    """Who a client is."""

    mode: Annotated[
        Literal["token-is-user", "static", "jwt", "webhook", "python"],
        setting("how a token becomes a user; token-is-user believes everybody: loopback only.", live=True),
    ] = "token-is-user"
    tokens_file: Annotated[str, setting("static: file of `token = user` lines.", live=True)] = ""
    jwt: Jwt = Jwt()
    webhook: Webhook = Webhook()
    python: PythonAuth = PythonAuth()


class Push(Section):
    """Who may push."""

    auth: Annotated[
        Literal["none", "keys", "python"], setting("none lets everybody push: loopback only.", live=True)
    ] = "none"
    keys: Annotated[list[str], setting("keys, sent as X-API-Key or Authorization: Bearer; at least 16 characters.", live=True)] = []
    keys_file: Annotated[str, setting("file with one key a line, added to keys.", live=True)] = ""
    callable: Annotated[str, setting("package.module:function(headers) -> bool; async or sync.")] = ""


class Echo(Section):
    """Returns every message; for tests."""

    enabled: Annotated[bool, setting("serve the echo path.")] = False
    path: Annotated[str, setting("its path.")] = "/echo"


class Log(Section):
    """One line an event."""

    level: Annotated[Literal["debug", "info", "warning", "error"], setting("least severe level that is written.", live=True)] = "info"
    format: Annotated[Literal["auto", "human", "json"], setting("auto: human on a terminal, else json.")] = "auto"
    file: Annotated[str, setting("file to append to, reopened on SIGHUP; empty: standard error.")] = ""


class Config(Section):
    """All settings of a server, validated."""

    server: Server = Server()
    api: Api = Api()
    connections: Connections = Connections()
    limits: Limits = Limits()
    bus: Bus = Bus()
    auth: Auth = Auth()
    push: Push = Push()
    echo: Echo = Echo()
    log: Log = Log()
