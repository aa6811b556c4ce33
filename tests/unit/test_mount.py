"""fastpush.worker.mount and fastpush.applications.loading: from an [[application]] to what serves its path."""

import logging
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, cast

import msgspec
import pytest
from multidict import MultiDictProxy

from fastpush.applications import Application, Connection, Options, Request
from fastpush.applications.loading import load
from fastpush.config import Application as Entry
from fastpush.config import Auth, Config, Connections, Limits
from fastpush.errors import ConfigError, RequestError
from fastpush.fanout import ENVELOPE, GZIP
from fastpush.protocol.bus import Notice
from fastpush.protocol.frames import data_frame, text_frame
from fastpush.protocol.push import channel_key, user_key
from fastpush.worker.environment import ConnectionTicks
from fastpush.worker.mount import Mount, PushMount, applications
from fastpush.worker.timers import ticks

HERE = __name__


class PricesOptions(Options):
    kept: Annotated[int, msgspec.Meta(ge=1)] = 100
    name: str = "prices"


class Prices(Application):
    """Has options, limits of its own, and channels by URL."""

    options_class: ClassVar = PricesOptions
    default_limits: ClassVar = {"message_bytes": 500, "send_queue_messages": 7}
    default_connections: ClassVar = {"ping_interval_seconds": 3}
    user_parameter = "userId"

    def channels(self, request: Request) -> list[str]:
        return [self.server.path, *request.query.getall("symbol", []), self.server.path]

    def on_presence(self, channel: str, user: str, is_online: bool, seconds: float) -> str | bytes | None:  # noqa: FBT001
        return {"jack": f"{channel} {user} {is_online} {seconds}", "bytes": b"\x00"}.get(user)

    def on_close(self, connection: Connection, code: int, reason: str) -> None: ...


class BadLimits(Application):
    default_limits: ClassVar = {"message_bytes": 0}


class BadName(Application):
    default_connections: ClassVar = {"ping": "often"}


class Failing(Application):
    def __init__(self, server: Any, options: Any) -> None:
        raise OSError("no database")


def function(server: Any, options: Any) -> None:
    """No class."""


class Other:
    """No application."""


def entry(**keys: Any) -> Entry:
    return msgspec.convert({"path": "/prices", "handler": f"{HERE}:Prices"} | keys, Entry)


def mounted(config: Config | None = None, **keys: Any) -> Mount:
    loaded = load(1, entry(**keys))
    server = cast(Any, type("Server", (), {"path": "/prices"}))
    return Mount("/prices", loaded.application_class(server, loaded.options), config or Config(), loaded)


def asked(mount: Mount, query: str, user: str = "") -> Request:
    return Request("/prices", mount.read(query).query, {}, "peer", user, {})


# -- loading -------------------------------------------------------------------------


def test_options_are_the_class_s_own() -> None:
    """Defaults where nothing is said, else what the table says, as the declared types."""
    assert load(1, entry()).options == PricesOptions()
    loaded = load(1, entry(options={"kept": 3, "name": "x"}))
    assert loaded.application_class is Prices and loaded.options == PricesOptions(kept=3, name="x")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"options": {"kept": 0}}, ["options", ">= 1", "kept"]),
        ({"options": {"kept": "many"}}, ["options", "int", "kept"]),
        ({"options": {"keep": 1}}, ["options", "keep"]),
        ({"handler": f"{HERE}:Nobody"}, ["handler", "Nobody"]),
        ({"handler": "nowhere.at.all:Prices"}, ["handler", "nowhere"]),
        ({"handler": f"{HERE}:function"}, ["handler", "function", "Application"]),
        ({"handler": f"{HERE}:Other"}, ["handler", "Other", "Application"]),
        ({"handler": f"{HERE}:BadLimits"}, ["BadLimits", "limits", "message_bytes"]),
        ({"handler": f"{HERE}:BadName"}, ["BadName", "connections", "ping"]),
    ],
)
def test_what_cannot_be_loaded(keys: dict[str, Any], says: list[str]) -> None:
    """An error that names the application's number or class, the key, and what is wrong."""
    with pytest.raises(ConfigError) as caught:
        load(3, entry(**keys))
    told = str(caught.value)
    assert [text for text in says if text not in told] == []
    assert "number 3" in told or "BadLimits" in told or "BadName" in told


def test_a_constructor_that_fails_names_its_application() -> None:
    """In the worker, with what it has raised."""
    config = Config(application=[entry(handler=f"{HERE}:Failing")])
    with pytest.raises(ConfigError, match=r"number 1, handler: .*Failing.*OSError: no database"):
        applications(config, lambda path: cast(Any, SimpleNamespace(path=path)))


def test_limits_of_configuration_class_and_table() -> None:
    """[limits] and [connections], over them the class's, over these the application's own tables."""
    config = Config(
        limits=Limits(message_bytes=1000, send_queue_messages=50, receive_queue_messages=60),
        connections=Connections(ping_interval_seconds=100, close_timeout_seconds=2),
    )
    mount = mounted(config, limits={"send_queue_messages": 9}, connections={"write_timeout_seconds": 4})
    limits, connections = mount.limits, mount.connections
    assert (limits.message_bytes, limits.send_queue_messages, limits.receive_queue_messages) == (500, 9, 60)
    assert (connections.ping_interval_seconds, connections.close_timeout_seconds) == (3, 2)
    assert mount.times == ConnectionTicks.of(limits, connections)
    assert (mount.times.ping_interval, mount.times.write_timeout) == (ticks(3), ticks(4))
    mount.configure(Config(limits=Limits(message_bytes=2000, receive_queue_messages=61)))
    limits = mount.limits
    assert (limits.message_bytes, limits.send_queue_messages, limits.receive_queue_messages) == (500, 9, 61)
    assert mount.connections.ping_interval_seconds == 3 and mount.times.write_timeout == ticks(4)


def test_applications_are_made_in_order() -> None:
    """One object each, with the server of its own path, even of one class twice."""
    served: list[str] = []

    def serve(path: str) -> Any:
        served.append(path)
        return path

    config = Config(application=[entry(), entry(path="/more", options={"kept": 2}, heartbeat_seconds=5)])
    first, second = applications(config, serve)
    assert served == [first.path, second.path] == ["/prices", "/more"]
    assert first.application is not second.application and second.application.options.kept == 2
    assert (first.heartbeat_seconds, second.heartbeat_seconds, first.anonymous, first.kind) == (0, 5, "no", "prices")


# -- what a handshake asks ---------------------------------------------------------------


def test_a_url_is_read() -> None:
    """Parameters in order, repeated ones too, decoded; the token apart."""
    mount = mounted()
    found = mount.read("token=t%20t&symbol=A&symbol=%C3%A4&x=")
    assert found.token == "t t"
    assert isinstance(found.query, MultiDictProxy)
    assert list(found.query.items()) == [("symbol", "A"), ("symbol", "ä"), ("x", "")]
    assert mount.read("") == (None, {}, found.options, False, None)
    with pytest.raises(RequestError):
        mount.read("a=%zz")


def test_the_user_s_parameter_counts_where_every_token_is_believed() -> None:
    """As a token, and only then; a token comes first."""
    believing = mounted(Config(auth=Auth(mode="token-is-user")))
    assert believing.read("userId=jack").token == "jack"
    assert believing.read("userId=jack&token=jill").token == "jill"
    assert mounted(Config(auth=Auth(mode="jwt"))).read("userId=jack").token is None
    assert Mount("/x", Application(cast(Any, None), Options()), Config()).read("userId=jack").token is None


def test_keys_from_the_first_moment() -> None:
    """The application's channels, each once, and a user's key of this path; nothing for nobody."""
    mount = mounted()
    request = asked(mount, "symbol=A&symbol=B&symbol=A", "jack")
    channels = tuple(map(channel_key, ("/prices", "A", "B")))
    assert mount.keys(request, mount.read("")) == (*channels, user_key("jack", "/prices"))
    assert mount.keys(asked(mount, ""), mount.read("")) == channels[:1]


def test_what_an_application_hears() -> None:
    """A method that a class does not write is not called."""
    assert (mounted().hears_open, mounted().hears_close) == (False, True)


def test_presence_is_worded_by_the_application() -> None:
    """str is a text, bytes a binary message, None is nothing; what it raises comes out."""
    mount = mounted()
    key = channel_key("/prices:ä")
    notice = Notice("jack", is_online=True, seconds=1.5)
    assert mount.word(key, notice) == text_frame("/prices:ä jack True 1.5".encode())
    assert mount.word(key, Notice("bytes", is_online=False, seconds=1.5)) == data_frame(b"\x00")
    assert mount.word(key, Notice("jill", is_online=False, seconds=1.5)) is None


def test_a_call_that_holds_the_loop_is_remembered(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest one is the figure of this second and the next; over 0.1 s each is logged."""
    monkeypatch.setattr(logging.getLogger("fastpush"), "propagate", True)
    mount = mounted()
    for seconds in (0.01, 0.2, 0.1, 0.15):
        mount.observe(seconds)
    assert mount.longest.value == 0.2
    assert [vars(record)["fields"] for record in caplog.records] == [
        {"path": "/prices", "seconds": 0.2}, {"path": "/prices", "seconds": 0.15}
    ]  # fmt: skip


def test_the_simple_protocol_reads_its_registrations() -> None:
    """/ws takes events and options by URL, and refuses what it refused: its parameters are no application's."""
    mount = PushMount("/ws", cast(Any, Application(cast(Any, None), Options())), Config())
    found = mount.read("token=t&event=a&event=b&envelope=1&support_gzip=1&heartbeat=5")
    assert (found.token, found.options.events, len(found.query)) == ("t", ("a", "b"), 0)
    request = Request("/ws", found.query, {}, "peer", "jack", {})
    assert mount.keys(request, found) == (b"*", user_key("jack", "a"), user_key("jack", "b"))
    assert mount.keys(request, mount.read("")) == ()
    connection = cast(Any, type("Connection", (), {"form": 0, "beats": []})())
    connection.beat_every = connection.beats.append
    mount.enter(connection, None, (), found)
    assert (connection.form, connection.wants_confirm, connection.beats) == (ENVELOPE | GZIP, False, [5])
    with pytest.raises(RequestError):
        mount.read("token=a&token=b")


def test_a_client_of_ws_is_not_read_from_while_its_token_is_looked_up() -> None:
    """However large the queues of applications are, before a reload and after it: it may be anybody."""
    mount = PushMount("/ws", cast(Any, Application(cast(Any, None), Options())), Config())
    assert mount.limits.receive_queue_messages == 1
    mount.configure(Config(limits=Limits(receive_queue_messages=500, message_bytes=777)))
    assert (mount.limits.receive_queue_messages, mount.limits.message_bytes) == (1, 777)
