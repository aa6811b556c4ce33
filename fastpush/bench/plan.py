"""What one run does: the options, checked, and what follows from them."""

import json
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from fastpush.bench.messages import MESSAGE_BYTES_MIN, PUBLISHERS_MAX
from fastpush.errors import ConfigError

PROCESS_CONNECTIONS_MAX = 15_000  # of the 20,000 file descriptors that a process may usually have
SOURCE_CONNECTIONS_MAX = 20_000  # of the 28,000 ports that one source address has to one server
BACKGROUND_USERS = 16
BACKGROUND_PUBLISHERS = 8
BACKGROUND_FIRST_PUBLISHER = 9000
_BACKGROUND_BYTES = 64
_PUBLISHERS_FOR_RATE = 32
_CONNECTIONS_MAX = 1_000_000
_PLACEHOLDERS = ("{user}", "{token}", "{event}")
_BODY = '{"userId":"{token}","event":"{event}","message":"{message}"}'
_BODY_FOR_ALL = '{"event":"{event}","message":"{message}"}'


@dataclass(frozen=True)
class Load:
    """One stream of pushes. Exactly one of rate and window, or neither: idle.

    groups: what sequences are counted for: users, or 1 for everybody.  first_user: number of the first group's user.
    """

    name: str
    groups: int
    first_user: int
    publishers: int
    first_publisher: int
    rate: float | None
    window: int | None
    size_bytes: int
    push_url: str
    body: str
    via: str


@dataclass(frozen=True)
class Plan:
    """Options as `fastpush bench` has them; None stands for a default that depends on others."""

    url: str = "ws://127.0.0.1:8080/ws"
    connections: int = 1000
    users: int | None = None
    mode: str = "unicast"
    rate: float | None = None
    window: int | None = None
    idle: bool = False
    background: float = 0
    duration_seconds: float = 10
    warm_up_seconds: float = 1
    ramp: float = 0
    size_bytes: int = 128
    churn: float = 0
    connect_rate: float = 0
    slow: int = 0
    processes: int | None = None
    register: str = "url"
    token: str = "user{user}"  # noqa: S105 - a template
    event: str = "bench"
    register_message: str = '{"token":"{token}","event":"{event}"}'
    register_reply: bool = False
    push_url: str | None = None
    push_body: str | None = None
    push_headers: tuple[str, ...] = ()
    push_via: str = "http"
    key: str | None = None
    publishers: int | None = None
    insecure: bool = False
    compression: bool = False
    source_addresses: tuple[str, ...] = ()
    pid: int | None = None

    def check(self) -> None:
        """Raise ConfigError for options that contradict each other or are out of range."""
        loads = [self.rate is not None, self.window is not None, self.idle]
        faults = {
            "--rate, --window and --idle exclude each other": sum(loads) > 1,
            f"--connections is between 1 and {_CONNECTIONS_MAX}": not 1 <= self.connections <= _CONNECTIONS_MAX,
            "--users is between 1 and --connections": not 1 <= self.user_count <= self.connections,
            f"--size is at least {MESSAGE_BYTES_MIN}, room for the stamp": self.size_bytes < MESSAGE_BYTES_MIN,
            f"--publishers is between 1 and {PUBLISHERS_MAX}": not 1 <= self.publisher_count <= PUBLISHERS_MAX,
            "--slow is less than --connections": not 0 <= self.slow < self.connections,
            f"more than {PROCESS_CONNECTIONS_MAX} connections a process: raise --processes": (
                self.connections > self.process_count * PROCESS_CONNECTIONS_MAX
            ),
            "--processes is between 1 and --connections": not 1 <= self.process_count <= self.connections,
            "--background pushes need --push-via http": bool(self.background) and self.push_via != "http",
            "--push-body has no {message}": "{message}" not in self.body,
            "a --push-header is written like 'Name: value'": not all(":" in text for text in self.push_headers),
        }
        for text, is_wrong in faults.items():
            if is_wrong:
                raise ConfigError(text)

    # -- what follows --------------------------------------------------------------

    @property
    def user_count(self) -> int:
        if self.users is not None:
            return self.users
        return 1 if self.mode == "fan-out" else self.connections

    @property
    def process_count(self) -> int:
        """Client processes that hold the connections; the background has one more to itself."""
        return self.processes or -(-self.connections // PROCESS_CONNECTIONS_MAX)

    @property
    def background_process(self) -> int | None:
        """Index of the client process with the background's users and publishers."""
        return self.process_count if self.background else None

    @property
    def window_size(self) -> int | None:
        """Most pushes outstanding; None in an open loop or when nothing is pushed."""
        return None if self.rate is not None or self.idle else (self.window or 1)

    @property
    def publisher_count(self) -> int:
        if self.publishers is not None:
            return self.publishers
        if self.push_via == "websocket":
            return 1
        return min(self.window_size or _PUBLISHERS_FOR_RATE, PUBLISHERS_MAX)

    @property
    def background_users(self) -> int:
        return BACKGROUND_USERS if self.background else 0

    @property
    def body(self) -> str:
        if self.push_body is not None:
            return self.push_body
        if self.push_via == "websocket":
            return "{message}"
        return _BODY_FOR_ALL if self.mode == "broadcast" else _BODY

    @property
    def loads(self) -> tuple[Load, ...]:
        """The measured load, and the background."""
        groups = 1 if self.mode == "broadcast" else self.user_count
        url = self.push_url or (self.url if self.push_via == "websocket" else self._push_url(self.mode))
        main = Load(
            "pushes", groups, 0, self.publisher_count, 0, self.rate, self.window_size, self.size_bytes, url, self.body,
            self.push_via,
        )  # fmt: skip
        if not self.background:
            return (main,)
        size = min(_BACKGROUND_BYTES, max(self.size_bytes, MESSAGE_BYTES_MIN))
        return (
            main,
            Load(
                "background", BACKGROUND_USERS, self.connections, BACKGROUND_PUBLISHERS, BACKGROUND_FIRST_PUBLISHER,
                self.background, None, size, self._push_url("unicast"), _BODY, "http",
            ),
        )  # fmt: skip

    def _push_url(self, mode: str) -> str:
        parts = urlsplit(self.url)
        scheme = "https" if parts.scheme == "wss" else "http"
        return f"{scheme}://{parts.netloc}/push{'/all' if mode == 'broadcast' else ''}"

    @cached_property
    def sources(self) -> tuple[str | None, ...]:
        """Source addresses, used in turn; None: the kernel's choice."""
        if self.source_addresses:
            return self.source_addresses
        needed = -(-self.connections // SOURCE_CONNECTIONS_MAX) + (1 if self.connect_rate else 0)
        if needed <= 1 or not _is_loopback_4(urlsplit(self.url).hostname or ""):
            return (None,)
        return tuple(f"127.0.0.{number}" for number in range(2, 2 + needed))

    # -- texts for one user --------------------------------------------------------

    def token_of(self, user: int) -> str:
        return self.token.replace("{user}", str(user))

    def target(self, user: int) -> str:
        """Return path and query of the WebSocket URL."""
        target = self._target_in(self.url)
        if self.register != "url" or any(mark in target for mark in _PLACEHOLDERS):
            return self._fill_target(target, user)
        path, _, query = target.partition("?")
        values = [*parse_qsl(query, keep_blank_values=True), ("token", self.token_of(user)), ("event", self.event)]
        return f"{path}?{urlencode(values)}"

    def push_target(self, load: Load, user: int) -> str:
        """Return path and query of the URL of pushes to a user."""
        return self._fill_target(self._target_in(load.push_url), user)

    def _target_in(self, url: str) -> str:
        parts = urlsplit(url)
        return urlunsplit(("", "", parts.path or "/", parts.query, ""))

    def _fill_target(self, target: str, user: int) -> str:
        return self._fill(target, str(user), quote(self.token_of(user), ""), quote(self.event, ""))

    def registration(self, user: int) -> str:
        """Return the text that registers by message."""
        return self._fill(self.register_message, str(user), _in_json(self.token_of(user)), _in_json(self.event))

    def body_around(self, load: Load, group: int) -> tuple[str, str]:
        """Return what stands before and after the message in a push."""
        user = load.first_user + group
        text = self._fill(load.body, str(user), _in_json(self.token_of(user)), _in_json(self.event))
        before, _, after = text.partition("{message}")
        return before, after

    def _fill(self, text: str, user: str, token: str, event: str) -> str:
        for mark, value in zip(_PLACEHOLDERS, (user, token, event), strict=True):
            text = text.replace(mark, value)
        return text


def _in_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _is_loopback_4(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address.version == 4 and address.is_loopback  # noqa: PLR2004
