"""Settings: what is read from where, what each mistake is told, what may change live."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from datetime import date
from pathlib import Path

import msgspec
import pytest

from fastpush import config as configuration
from fastpush.config import (
    Application,
    Auth,
    Bus,
    Client,
    Config,
    Connections,
    Jwt,
    JwtKey,
    Limits,
    Log,
    Namespace,
    Push,
    Server,
    Tls,
)
from fastpush.config.file import DEFAULT_PATHS, key_lines
from fastpush.config.schema import Key, keys, members, overridable, sections
from fastpush.errors import ConfigError
from fastpush.protocol import control
from tools import config_toml

PROJECT = Path(__file__).parents[2]
LONG_SECRET = "0123456789abcdef0123456789abcdef"
PUSH_KEY = "a-key-of-16-char"
ECHO = "[[application]]\npath = '/echo'\nhandler = 'fastpush.applications.echo:Echo'\n"
OVERRIDABLE = "messages_per_second, message_bytes, message_fragments, receive_queue_messages, receive_queue_bytes, "
OVERRIDABLE += "send_queue_messages, send_queue_bytes, slow_policy"


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Config]:
    """Load a text as config.toml in a folder of its own."""

    def loaded(text: str | bytes, **environ: str) -> Config:
        path = tmp_path / "config.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return configuration.load(path, environ=environ)

    return loaded


def complaint(load: Callable[..., Config], text: str | bytes, **environ: str) -> str:
    with pytest.raises(ConfigError) as raised:
        load(text, **environ)
    return str(raised.value)


# The file that is delivered


def test_delivered_file_is_generated() -> None:
    """config.toml is what the schema generates: `python -m tools.config_toml > config.toml`."""
    assert (PROJECT / "config.toml").read_text(encoding="utf-8") == config_toml.render()


def test_delivered_file_is_the_defaults() -> None:
    """Loading the delivered file gives exactly the defaults, so it may be deleted without a change."""
    assert configuration.load(PROJECT / "config.toml", environ={}) == Config()
    assert configuration.load(None, environ={}) == Config()


def test_delivered_file_has_every_key() -> None:
    """Each key stands in the delivered file, except tables that nobody must have, which stand there as an example."""
    text = (PROJECT / "config.toml").read_text(encoding="utf-8")
    lines = key_lines(text)
    as_example = [place for place, key in keys() if place not in lines]
    assert as_example == [place for place, key in keys() if key.entries or key.named or key.is_table]
    assert max(map(len, text.splitlines())) <= 100


def test_examples_of_the_delivered_file_work(load: Callable[..., Config]) -> None:
    """The lines that start with # and no space are valid when the # is taken away, and hold every key of an entry."""
    text = re.sub(r"^#(?=[\[a-z])", "", (PROJECT / "config.toml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    config, raw = load(text, FASTPUSH_CLIENT_HANDLER="package.module:Class"), tomllib.loads(text)
    assert raw["auth"]["jwt"]["key"] == [msgspec.to_builtins(JwtKey())]
    [example] = raw["application"]
    assert list(example) == list(members(Application))
    assert (example["path"], example["handler"]) == ("/echo", "fastpush.applications.echo:Echo")
    assert list(raw["channels"]) == ["chat"]
    assert list(raw["channels"]["chat"]) == list(members(Namespace))
    assert config.channels["chat"].recovery, "it shows what channels are for"
    assert config.client.options == {"greeting": "hello"}
    [echo] = config.application
    assert (list(echo.limits), list(echo.connections)) == (list(overridable(Limits)), list(overridable(Connections)))
    assert (echo.limits_over(config.limits), echo.connections_over(config.connections)) == (Limits(), Connections())


def test_generator_prints_the_file() -> None:
    """The command in the tool's docstring writes the file to standard output."""
    printed = subprocess.run(
        [sys.executable, "-m", "tools.config_toml"], cwd=PROJECT, capture_output=True, check=True, encoding="utf-8"
    )
    assert printed.stdout == config_toml.render()


# Where values come from


def test_paths_and_address_are_configurable(load: Callable[..., Config]) -> None:
    """S0-01 S0-02 S0-03: WebSocket path, push path and listen address have defaults and are configurable."""
    default = Config().server
    assert (default.websocket_path, default.push_path) == ("/ws", "/push")
    server = load('[server]\nlisten = "[::1]:12345"\nwebsocket_path = "/live"\npush_path = "/send"').server
    assert (server.listen, server.websocket_path, server.push_path) == ("[::1]:12345", "/live", "/send")


def test_read_buffer_is_configurable(load: Callable[..., Config]) -> None:
    """S0-04: the size of the read buffer is configurable."""
    assert load("[server]\nread_buffer_bytes = 4096").server.read_buffer_bytes == 4096


def test_find_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file asked for wins even when it does not exist; then ./config.toml, then the system's, then none."""
    system = tmp_path / "etc" / "config.toml"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastpush.config.file.DEFAULT_PATHS", (DEFAULT_PATHS[0], system))
    assert configuration.find("missing.toml") == Path("missing.toml")
    assert configuration.find(None) is None
    system.parent.mkdir()
    system.write_text("")
    assert configuration.find(None) == system
    Path("config.toml").symlink_to("nowhere")
    assert configuration.find(None) == Path("config.toml"), "a dangling link is an error later, not defaults"


def test_layers(tmp_path: Path) -> None:
    """The command line overrides the environment, which overrides the file; an option not given changes nothing."""
    path = tmp_path / "config.toml"
    path.write_text('[server]\nworkers = 1\nhang_seconds = 11\ndrain_seconds = 1\n[log]\nlevel = "error"')
    config = configuration.load(
        path,
        environ={"FASTPUSH_SERVER_WORKERS": "2", "FASTPUSH_SERVER_HANG_SECONDS": "12.5"},
        overrides={"server.workers": 3, "server.listen": ("127.0.0.1:1", "127.0.0.1:2"), "log.level": None},
    )
    server = config.server
    assert (server.workers, server.hang_seconds, server.drain_seconds, config.log.level) == (3, 12.5, 1, "error")
    assert server.listen == ["127.0.0.1:1", "127.0.0.1:2"]


def test_override_beats_a_mistake_below(tmp_path: Path) -> None:
    """A value that is overridden is not judged."""
    path = tmp_path / "config.toml"
    path.write_text('[server]\nworkers = "many"')
    assert configuration.load(path, environ={"FASTPUSH_SERVER_WORKERS": "2"}).server.workers == 2


def test_environment_names_are_unique() -> None:
    """No two keys have the same environment variable."""
    names = ["_".join(place).upper() for place, _ in keys()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("variable", "text", "dotted", "expected"),
    [
        ("FASTPUSH_COMPRESSION_ENABLED", "true", "compression.enabled", True),
        ("FASTPUSH_SERVER_LISTEN", "127.0.0.1:9", "server.listen", "127.0.0.1:9"),
        ("FASTPUSH_SERVER_LISTEN", '["127.0.0.1:9"]', "server.listen", ["127.0.0.1:9"]),
        ("FASTPUSH_SERVER_ORIGINS", '["*"]', "server.origins", ["*"]),
        ("FASTPUSH_AUTH_JWT_JWKS_URL", "https://x.example/k", "auth.jwt.jwks_url", "https://x.example/k"),
        ("FASTPUSH_AUTH_JWT_AUDIENCE", "2024", "auth.jwt.audience", "2024"),
        ("FASTPUSH_AUTH_JWT_AUDIENCE", '"2024"', "auth.jwt.audience", "2024"),
        ("FASTPUSH_AUTH_JWT_AUDIENCE", "", "auth.jwt.audience", ""),
        ("FASTPUSH_AUTH_JWT_KEY", '[{kid = "a"}]', "auth.jwt.key", [JwtKey(kid="a")]),
        (
            "FASTPUSH_APPLICATION",
            '[{path = "/a", handler = "a:B", limits = {message_bytes = 128}}]',
            "application",
            [Application(path="/a", handler="a:B", limits={"message_bytes": 128})],
        ),
        ("FASTPUSH_CHANNELS", "{chat = {presence = true}}", "channels", {"chat": Namespace(presence=True)}),
        ("FASTPUSH_CLIENT_ANONYMOUS", "everywhere", "client.anonymous", "everywhere"),
    ],
)
def test_environment_values(variable: str, text: str, dotted: str, expected: object) -> None:
    """A variable is a TOML value where one is allowed, else its text; nested sections too."""
    value: object = configuration.load(None, environ={variable: text})
    for name in dotted.split("."):
        value = getattr(value, name)
    assert value == expected


def test_environment_of_a_namespace(load: Callable[..., Config]) -> None:
    """A variable overrides a key of a namespace that there is, in the file or in FASTPUSH_CHANNELS; - reads as _."""
    given = {"FASTPUSH_CHANNELS_CHAT_HISTORY_MESSAGES": "7", "FASTPUSH_CHANNELS_TO_DO_SUBSCRIBE": "users"}
    config = load("[channels.chat]\nrecovery = true\n[channels.to-do]", **given)
    assert config.channels == {
        "chat": Namespace(recovery=True, history_messages=7),
        "to-do": Namespace(subscribe="users"),
    }
    whole = {"FASTPUSH_CHANNELS": "{news = {}}", "FASTPUSH_CHANNELS_NEWS_GRACE_SECONDS": "0.5"}
    assert load("[channels.chat]", **whole).channels == {"news": Namespace(grace_seconds=0.5)}


def test_foreign_variables_are_ignored() -> None:
    """What Kubernetes sets for a service called fastpush, and other programs' variables, are none of ours."""
    environ = {
        "PATH": "/bin",
        "FASTPUSHED": "1",
        "FASTPUSH_SERVICE_HOST": "10.0.0.1",
        "FASTPUSH_SERVICE_PORT_HTTP": "80",
        "FASTPUSH_PORT": "tcp://10.0.0.1:80",
        "FASTPUSH_PORT_80_TCP_ADDR": "10.0.0.1",
        "FASTPUSH_API_SERVICE_HOST": "10.0.0.1",
        "FASTPUSH_TEST_SCALE": "3",
    }
    assert configuration.load(None, environ=environ) == Config()


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("FASTPUSH_SERVER_WORKER", "3", "names no key; did you mean FASTPUSH_SERVER_WORKERS?"),
        ("FASTPUSH_SERVER_PORT", "80", "variable FASTPUSH_SERVER_PORT: names no key"),
        ("FASTPUSH_API_ZZ", "", "there are FASTPUSH_API_LISTEN, FASTPUSH_API_PAGE"),
        ("FASTPUSH_CHANNELS_CHAT_PRESENCE", "true", "names no key; "),
        ("FASTPUSH_CHANNELS", "{chat = {presense = true}}", "[channels.chat] presense: no such key; did you mean pres"),
        ("FASTPUSH_CHANNELS", "chat", "[channels]: found a string; must be tables headed [channels.<namespace>]"),
        ("FASTPUSH_ECHO_ENABLED", "true", "names no key; echo is an application now"),
        ("FASTPUSH_APPLICATION", "[{path = 3}]", "[[application]] number 1, path: found 3 (integer)"),
        ("FASTPUSH_SEVER_LISTEN", "x", "did you mean FASTPUSH_SERVER_LISTEN?"),
        ("FASTPUSH_Q", "x", "the form is FASTPUSH_<SECTION>_<KEY>"),
        ("FASTPUSH_SERVER_WORKERS", "many", '[server] workers: found "many" (string); must be an integer from 0'),
        ("FASTPUSH_SERVER_LISTEN", ":80", "FASTPUSH_SERVER_LISTEN: [server] listen: found"),
        ("FASTPUSH_LOG_FILE", "\udcff", "is not valid UTF-8"),
    ],
)
def test_bad_environment(variable: str, text: str, expected: str) -> None:
    """A variable that names no key or holds a wrong value is an error that names it."""
    with pytest.raises(ConfigError) as raised:
        configuration.load(None, environ={variable: text})
    assert str(raised.value).startswith(f"environment variable {variable}: ")
    assert expected in str(raised.value)


def test_bad_override() -> None:
    """A wrong value from the command line is blamed on it."""
    with pytest.raises(ConfigError, match=r"^command line: \[server\] listen: found \"8080\"; must be host:port"):
        configuration.load(None, environ={}, overrides={"server.listen": "8080"})


# What is wrong in a file


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        # unknown names
        ("[server]\n\nwrokers = 3", 3, "[server] wrokers: no such key; did you mean workers (an integer"),
        ("[sever]\nlisten = 3", 1, "[sever]: no such section; did you mean [server]?"),
        ("[jwt]\nissuer = 'x'", 1, "[jwt]: no such section; did you mean [auth.jwt]?"),
        ("[auth.jwtt]\nissuer = 'x'", 1, "[auth.jwtt]: no such section; did you mean [auth.jwt]?"),
        ("listen = 'x'\n[server]", 1, "listen: stands above all sections; it belongs in [server] or [api]"),
        ("[server]\nmessage_bytes = 1", 2, "no such key in this section; it belongs in [limits]"),
        ("[bus]\nzzzz = 1", 2, "[bus] zzzz: no such key; there are queue_bytes, confirm_ms, history_bytes"),
        ('[bus]\n"a\\u0007b" = 1', 2, '[bus] "a\\U00000007b": no such key'),
        ("[[auth.jwt.key]]\n[[auth.jwt.key]]\nalg = 'x'", 3, "number 2, alg: no such key; did you mean"),
        ("[auth.jwt]\nsecret = 'x'", 2, "no such key in this section; it belongs in [[auth.jwt.key]]"),
        ("[[auth.jwt.keys]]\nkid = 'x'", 1, "[[auth.jwt.keys]]: no such section; did you mean [[auth.jwt.key]]?"),
        # types and ranges
        ("[server]\nworkers = '4'", 2, 'workers: found "4" (string); must be an integer from 0 to 256 (default 0)'),
        ("[server]\nworkers = 257", 2, "found 257 (integer); must be an integer from 0 to 256 (default 0)"),
        ("[server]\nworkers = true", 2, "found true (boolean)"),
        ("[server]\nhang_seconds = nan", 2, "found nan (float); must be a number from 1 to 600 (default 10)"),
        ("[server]\nhang_seconds = inf", 2, "found inf (float)"),
        ("[bus]\nqueue_bytes = 1", 2, "an integer from 65536 (64 KiB) to 1073741824 (1 GiB) (default 8388608 (8 MiB))"),
        ("[compression]\nenabled = 1979-05-27", 2, "found 1979-05-27 (date); must be true or false (default false)"),
        ("[log]\n# x\nlevel = 'trace'", 3, 'must be one of "debug", "info", "warning", "error" (default "info")'),
        ("[server]\norigins = [\n '*',\n 3,\n]", 2, "[server] origins: found 3 (integer) as entry 2; must be an array"),
        ("[server]\nlisten = 8080", 2, 'found 8080 (integer); must be a string "host:port" or an array of them'),
        ("[auth.jwt]\nuser_claim = ''", 2, 'must be a non-empty string (default "sub")'),
        ("server = 3", 1, "[server]: found an integer; must be a section headed [server]"),
        ("[[log]]", 1, "[log]: found an array; must be a section headed [log]"),
        ("[auth.jwt.key]\nkid = 'a'", 1, "must be tables headed [[auth.jwt.key]], in double brackets"),
        # addresses
        ("[server]\nlisten = ''", 2, "names no address; write one"),
        ("[server]\nlisten = ['127.0.0.1:1', '::1:80']", 2, 'entry 2: found "::1:80"; only IPv6 stands in brackets'),
        ("[server]\nlisten = '::1:80'", 2, 'write "[::1]:80"'),
        ("[server]\nlisten = ':80'", 2, '"127.0.0.1:80" for this machine alone or "0.0.0.0:80" for every address'),
        ("[server]\nlisten = 'push.example.com:80'", 2, "the host must be an IP address of this machine or localhost"),
        ("[server]\nlisten = '127.0.0.1:65536'", 2, "must be 0 to 65535"),
        ("[server]\nlisten = '[127.0.0.1]:80'", 2, 'write "127.0.0.1:80"'),
        ("[api]\nlisten = '127.0.0.1:8080'", 2, '"127.0.0.1:8080" stands in [server] listen already'),
        # origins
        ("[server]\norigins = ['https://A.example/']", 2, 'did you mean "https://a.example"?'),
        ("[server]\norigins = ['a.example']", 2, 'did you mean "https://a.example"?'),
        ("[server]\norigins = ['https://a.example:443']", 2, 'did you mean "https://a.example"?'),
        ("[server]\norigins = ['https://a:99999']", 2, '[server] origins, entry 1: found "https://a:99999"'),
        # authentication
        ("[auth]\nmode = 'static'", 2, '"static" needs [auth] tokens_file'),
        ("[auth]\nmode = 'jwt'", 2, '"jwt" needs at least one [[auth.jwt.key]] table or [auth.jwt] jwks_url'),
        ("[auth]\nmode = 'jwt'\njwt.jwks_url = 'x'", 3, "must be a URL that starts with https:// or http://"),
        ("[auth]\nmode = 'jwt'\n[[auth.jwt.key]]\nsecret = 'short'", 4, "has 5 bytes; HS256 needs at least 32"),
        ("[auth]\nmode = 'jwt'\n[[auth.jwt.key]]", 3, '"HS256" without a key; it takes secret or secret_file'),
        ("[auth]\nmode = 'jwt'\n[[auth.jwt.key]]\nsecret = 'a'\nsecret_file = 'b'", 5, "stands beside secret"),
        ("[auth]\nmode = 'jwt'\n[[auth.jwt.key]]\npublic_key_file = 'b'", 4, 'does not go with algorithm "HS256"'),
        ("[auth]\nmode = 'jwt'\n[[auth.jwt.key]]\nalgorithm = 'ES256'\nsecret = 'a'", 5, "which takes public_key_file"),
        (
            "[auth]\nmode = 'jwt'" + 2 * f"\n[[auth.jwt.key]]\nsecret = '{LONG_SECRET}'",
            5,
            'number 2, kid: "" is the kid of an earlier key too',
        ),
        ("[auth]\nmode = 'webhook'", 2, "needs [auth.webhook] url"),
        ("[auth]\nmode = 'webhook'\nwebhook.url = 'ftp://me:pw@x'", 3, 'found "ftp://…@x" (string); must be a URL'),
        ("[auth]\nmode = 'python'", 2, "needs [auth.python] callable"),
        ("[auth]\nmode = 'python'\npython.callable = 'a.b.c'", 3, 'must have the form "package.module:function"'),
        ("[push]\nauth = 'keys'", 2, '"keys" needs at least one key in [push] keys or keys_file'),
        ("[push]\nauth = 'keys'\nkeys = ['short']", 3, "[push] keys, entry 1: has 5 characters; needs at least 16"),
        ("[push]\nauth = 'keys'\nkeys = ['a key with a space in it']", 3, "an HTTP header cannot carry"),
        ("[push]\nauth = 'python'", 2, "needs [push] callable"),
        ("[push]\nauth = 'python'\ncallable = 'a:b()'", 3, 'must have the form "package.module:function"'),
        ("[admin]\nkey = 'short'", 2, "[admin] key: has 5 characters; needs at least 16: `openssl rand -hex 16` makes"),
        ('[admin]\nkey = "0123456789abcdef\\n"', 2, "[admin] key: holds a character that nobody can type"),
        ("[admin]\nkey = '0123456789abcdef'\nkey_file = 'b'", 3, "stands beside key; give only one of them"),
        ("[admin]\nkey_file = 'missing'", 2, "missing: no such file"),
        # files that settings name
        ("[log]\nfile = '${NOPE}/x'", 2, 'found "${NOPE}/x" (string); the environment has no NOPE'),
        ("[push]\nauth = 'keys'\nkeys_file = '${CREDENTIALS_DIRECTORY}/x'", 3, "with LoadCredential="),
        ("[push]\nauth = 'keys'\nkeys_file = 'missing'", 3, "missing: no such file"),
        ("[push]\nauth = 'keys'\nkeys_file = '.'", 3, "is a directory; must be a file"),
        ("[push]\nauth = 'keys'\nkeys_file = 'a\\u0000b'".replace("'", '"'), 3, "cannot be read: embedded null byte"),
        ("[auth]\nmode = 'static'\ntokens_file = 'missing'", 3, "missing: no such file"),
        # not TOML
        ("[server\n", 1, "not valid TOML: Expected ']' at the end of a table declaration (column 8)"),
        ("[log]\nlevel = debug", 2, 'Invalid value (column 9); text needs quotes, as in name = "text"'),
        ("[log]\nlevel = info", 2, "after a statement (column 12); one key = value a line, and text needs quotes"),
        ("[log]\n[server]\n[log]", 3, "the section has a heading already; put all its keys below one"),
        ("[log]\nlevel = 'info'\nlevel = 'info'", 3, "the same key stands above with another value"),
        ('[log]\n\nlevel = """x\n\n', 5, "not valid TOML: Unterminated string"),
        (b"[log]\nlevel = '\xff'", 2, "not valid UTF-8 (byte 0xff); save it as UTF-8"),
    ],
)
def test_mistake_in_file(
    load: Callable[..., Config], tmp_path: Path, text: str | bytes, line: int, expected: str
) -> None:
    """Each mistake is told with file, line, key, what was found and what is allowed."""
    told = complaint(load, text)
    assert told.startswith(f"{tmp_path / 'config.toml'}:{line}: ")
    assert expected in told
    assert "\n" not in told, "one mistake, one line"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[server]\npush_path = 'push'", 'found "push" (string); must start with a slash: "/push"'),
        ("[server]\npush_path = '/ws'", '"/ws" is also [server] websocket_path; every path must differ'),
        ("[server]\ndrop_path = '/ws'", '"/ws" is also [server] websocket_path'),
        ("[server]\ndrop_path = '/push/all'", '"/push/all" is also [server] push_path with /all'),
        ("[[application]]\nhandler = 'a:B'\npath = '/push'", 'number 1, path: "/push" is also [server] push_path'),
        ("[[application]]\nhandler = 'a:B'\npath = '/push/all'", '"/push/all" is also [server] push_path with /all'),
        ("[[application]]\nhandler = 'a:B'\npath = '/ws'", '"/ws" is also [server] websocket_path'),
        ("[[application]]\nhandler = 'a:B'\npath = 'a'", 'must start with a slash: "/a"'),
        ("[[application]]\nhandler = 'a:B'\npath = '/a b'", "must consist of letters, digits and"),
        ("[[application]]\nhandler = 'a:B'\npath = '/online'", "the server's own pages are there"),
        (
            ECHO + "[[application]]\nhandler = 'a:B'\npath = '/echo'",
            'number 2, path: "/echo" is also [[application]] number 1, path; every path must differ from the others',
        ),
        (
            "[server]\nwebsocket_path = '/'",
            "the server's own pages are there (/, /health, /ready, /metrics, /online, /applications.json, /connection",
        ),
        ("[server]\nwebsocket_path = '/metrics'", "the server's own pages are there"),
        ("[server]\nwebsocket_path = '/assets/x'", "the server's own pages are there"),
        ("[server]\nwebsocket_path = '/connection/websocket'", "the server's own pages are there"),
        ("[[application]]\nhandler = 'a:B'\npath = '/connection/uni_sse'", "the server's own pages are there"),
        ("[[application]]\nhandler = 'a:B'\npath = '/sse'", "the server's own pages are there"),
        ("[server]\npush_path = '/api'", "the server's own pages are there"),
        ("[server]\npush_path = '/api/push'", "/sse, /assets, /api and /admin and all below these)"),
        ("[[application]]\nhandler = 'a:B'\npath = '/admin'", "the server's own pages are there"),
        ("[server]\nwebsocket_path = '/admin/live'", "the server's own pages are there"),
        ("[server]\nwebsocket_path = '/w s'", "must consist of letters, digits and"),
        ("[server]\nwebsocket_path = '/ws?x=1'", "must consist of letters, digits and"),
        ("[server]\nwebsocket_path = '/a/../b'", "must not hold . or .. between slashes"),
    ],
)
def test_paths(load: Callable[..., Config], tmp_path: Path, text: str, expected: str) -> None:
    """S0-38: paths start with a slash and differ from each other and from the server's own."""
    told = complaint(load, text)
    assert told.startswith(f"{tmp_path / 'config.toml'}:{len(text.splitlines())}: ")
    assert expected in told


def test_all_mistakes_at_once(load: Callable[..., Config]) -> None:
    """All mistakes of a file and the environment are told together, one a line."""
    told = complaint(load, "[server]\nworkers = 'x'\nlisen = 1\n[log]\nlevel = 3", FASTPUSH_NO_KEY="1")
    assert len(told.splitlines()) == 4


def test_flood_of_mistakes_is_cut(load: Callable[..., Config]) -> None:
    """A file of nothing but mistakes does not fill the screen."""
    lines = complaint(load, "[server]\n" + "".join(f"zz{number} = 1\n" for number in range(100))).splitlines()
    assert (len(lines), lines[-1]) == (51, "… and 50 more")


@pytest.mark.parametrize(
    "text",
    [
        "[push]\nkeys = 'SECRET-SECRET'",
        "[push]\nkeys = [1, ['SECRET-SECRET']]",
        "[push]\nauth = 'keys'\nkeys = ['SECRET-SECRET']",
        "[push]\nkey = 'SECRET-SECRET'",
        "[auth.jwt]\nkey = 'SECRET-SECRET'",
        "[[auth.jwt.key]]\nsecret = ['SECRET-SECRET']",
        "[admin]\nkey = 'SECRET-SECRET'",
        "[[auth.jwt.key]]\nsecrets = 'SECRET-SECRET'",
        "[auth]\nmode = 'jwt'\n[[auth.jwt.key]]\nsecret = 'SECRET-SECRET'",
        "push = 'SECRET-SECRET'",
        "[push]\nkeys = [SECRET-SECRET]",
        "[[application]]\noptions = 'SECRET-SECRET'",
        "[[application]]\n[application.option]\nkey = 'SECRET-SECRET'",
    ],
)
def test_secrets_are_not_told(load: Callable[..., Config], text: str) -> None:
    """No message holds the value of a secret, nor of a key that does not exist and may be a misspelt secret."""
    assert "SECRET-SECRET" not in complaint(load, text)


def test_secrets_are_not_printed() -> None:
    """A Config that ends up in a log shows no secret."""
    config = Config(auth=Auth(jwt=Jwt(key=[JwtKey(kid="k1", secret=LONG_SECRET)])), push=Push(keys=[PUSH_KEY]))
    assert LONG_SECRET not in repr(config)
    assert PUSH_KEY not in repr(config)
    assert "JwtKey(kid='k1', algorithm='HS256', secret='hidden'" in str(config)
    application = Application(path="/a", handler="a:B", options={"password": LONG_SECRET})
    assert LONG_SECRET not in repr(Config(application=[application])), "what an application's options hold is its own"


def test_long_values_are_cut(load: Callable[..., Config]) -> None:
    """A message shows the start of a long value."""
    assert len(complaint(load, f"[server]\nworkers = '{'x' * 10000}'")) < 400


@pytest.mark.parametrize(
    ("path", "expected"), [("missing.toml", "no such file"), (".", "is a directory; must be a file")]
)
def test_unreadable_file(path: str, expected: str, tmp_path: Path) -> None:
    """A file that was asked for and cannot be read is an error, never the defaults."""
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path / path}: {expected}")):
        configuration.load(tmp_path / path, environ={})


def test_forbidden_file(load: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without read permission is told with the user id that lacks it."""

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(ConfigError, match=r"config\.toml: user id \d+ may not read it"):
        configuration.load(Path("config.toml"), environ={})


@pytest.mark.parametrize("text", ["x = " + "[" * 9000, "x = " + "9" * 9000])
def test_hostile_toml(load: Callable[..., Config], text: str) -> None:
    """What Python's parser gives up on is an error of the file, not a crash."""
    assert "not valid TOML" in complaint(load, text)


def test_lines_are_exact() -> None:
    """Lines are found across comments, arrays and strings of several lines, CRLF, dotted keys and arrays of tables."""
    text = '# c\r\n[a]\r\nx = [ # "\r\n1,\r\n]\r\ny = """\n[b]\nz = 1\n"""\nq.r = {s = 1}\n'
    text += "[[k]]\n[k.t]\nm = 1\n[[k]]\nn = 1\n"
    assert key_lines(text) == {
        ("a",): 2,
        ("a", "x"): 3,
        ("a", "y"): 6,
        ("a", "q"): 10,
        ("a", "q", "r"): 10,
        ("a", "q", "r", "s"): 10,
        ("k",): 11,
        ("k", 0): 11,
        ("k", 0, "t"): 12,
        ("k", 0, "t", "m"): 13,
        ("k", 1): 14,
        ("k", 1, "n"): 15,
    }


# Applications


def test_no_application_by_default() -> None:
    """Without [[application]] only [server] websocket_path is served."""
    assert Config().application == []


def test_applications(load: Callable[..., Config]) -> None:
    """Each [[application]] has a path, a class, who may come in, and tables that are its own."""
    text = (
        ECHO
        + "[[application]]\npath = '/chat'\nhandler = 'my.chat:Rooms.Chat'\nanonymous = 'loopback'\n"
        + "heartbeat_seconds = 0.5\n[application.options]\nwords = ['a']\nnested.since = 1979-05-27\n"
        + "[application.limits]\nslow_policy = 'drop-oldest'\n[application.connections]\nwrite_timeout_seconds = 60"
    )
    echo, chat = load(text).application
    assert echo == Application(path="/echo", handler="fastpush.applications.echo:Echo")
    assert (echo.anonymous, echo.heartbeat_seconds, echo.options, echo.limits, echo.connections) == (
        "no",
        0,
        {},
        {},
        {},
    )
    assert chat == Application(
        path="/chat",
        handler="my.chat:Rooms.Chat",
        anonymous="loopback",
        heartbeat_seconds=0.5,
        options={"words": ["a"], "nested": {"since": date(1979, 5, 27)}},
        limits={"slow_policy": "drop-oldest"},
        connections={"write_timeout_seconds": 60},
    )


def test_limits_of_an_application(load: Callable[..., Config]) -> None:
    """An application's own limits stand over the general ones; every other limit is the general one."""
    text = "[limits]\nmessage_bytes = 1000\nsend_queue_messages = 7\n[connections]\npong_timeout_seconds = 3\n" + ECHO
    text += "[application.limits]\nmessage_bytes = 128\n[application.connections]\nping_interval_seconds = 9"
    config = load(text)
    [echo] = config.application
    assert echo.limits_over(config.limits) == Limits(message_bytes=128, send_queue_messages=7)
    assert echo.limits_over(Limits(name_bytes=9)) == Limits(message_bytes=128, name_bytes=9), "those of a reload too"
    kept = Connections(ping_interval_seconds=9, pong_timeout_seconds=3)
    assert echo.connections_over(config.connections) == kept


def test_what_an_application_may_override() -> None:
    """What belongs to one connection may be overridden; what is counted for a worker, user or address may not."""
    assert ", ".join(overridable(Limits)) == OVERRIDABLE
    assert list(overridable(Connections)) == [
        "ping_interval_seconds",
        "pong_timeout_seconds",
        "close_timeout_seconds",
        "write_timeout_seconds",
    ]
    others = [table for table, section in sections() if section not in {Limits, Connections} and overridable(section)]
    assert others == []


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        # the entry itself
        ("[[application]]\npath = '/a'", 1, 'number 1, handler: is missing; must be a string "package.module:Class"'),
        (ECHO + "[[application]]\nhandler = 'a:B'", 4, "number 2, path: is missing; must be a string that starts with"),
        ("[[application]]\npath = '/a'\nhandler = 'a.B'", 3, 'found "a.B" (string); must have the form "package.modu'),
        ("[[application]]\npath = '/a'\nhandler = 'a:B()'", 3, 'must have the form "package.module:Class"'),
        (ECHO + "anonymous = true", 4, 'must be one of "no", "loopback", "everywhere" (default "no")'),
        (ECHO + "heartbeat_seconds = -1", 4, "found -1 (integer); must be a number from 0 to 3600 (default 0)"),
        (ECHO + "paths = '/b'", 4, 'did you mean path (a string that starts with "/", default none)?'),
        (ECHO + "options = 3", 4, "found an integer; must be a table headed [application.options]"),
        (ECHO + f"options.a = [{2**64}]", 4, "number 1, options: holds an integer of more than 64 bits"),
        (ECHO + "limits = 3", 4, "limits: found 3 (integer); must be a table headed [application.limits]"),
        (
            "[application]\npath = '/a'",
            1,
            "[application]: found a table; must be tables headed [[application]], in dou",
        ),
        ("[[applications]]\npath = '/a'", 1, "[[applications]]: no such section; did you mean [[application]]?"),
        ("handler = 'a:B'", 1, "handler: stands above all sections; it belongs in [client] or [[application]]"),
        (
            ECHO + "[application.limit]\nx = 1",
            4,
            "[application.limit]: no such section; did you mean [application.limits]",
        ),
        (
            ECHO + "message_bytes = 128",
            4,
            "no such key in this section; it belongs in [limits] or [application.limits]",
        ),
        # overrides
        (
            ECHO + "[application.limits]\n# c\nmessage_bytes = '1'",
            6,
            'limits.message_bytes: found "1" (string); must be an integer from 128 to 67108864 (64 MiB) (default',
        ),
        (ECHO + "limits.message_bytes = 127", 4, "found 127 (integer); must be an integer from 128"),
        (ECHO + "[application.limits]\nslow_policy = 'x'", 5, 'must be one of "disconnect", "drop-oldest"'),
        (
            ECHO + "[application.connections]\npong_timeout_seconds = 0",
            5,
            "number 1, connections.pong_timeout_seconds: found 0 (integer); must be a number from 1 to 3600",
        ),
        (
            ECHO + "[application.limits]\nregistrations = 3",
            5,
            f"limits.registrations: an application cannot override it; what it can override is {OVERRIDABLE}",
        ),
        (
            ECHO + "[application.limits]\nmesage_bytes = 3",
            5,
            "what it can override is messages_per_second, message_bytes,",
        ),
        (
            ECHO + "[application.connections]\nsocket_send_bytes = 0",
            5,
            "what it can override is ping_interval_seconds,",
        ),
        # the second entry is not taken for the first
        (ECHO + "[application.limits]\n" + ECHO + "[application.limits]\nmessage_bytes = 1", 9, "number 2, limits.mes"),
        (
            ECHO
            + '[application.options]\na = """\n[x]\n"""\n[[application.options.b]]\n'
            + "[application.limits]\nx = 1",
            10,
            "number 1, limits.x: an application cannot",
        ),
        # the section of earlier releases
        (
            "[echo]\nenabled = true",
            1,
            "[echo]: no such section; echo is an application now; where it was enabled write, each on a line of its ",
        ),
    ],
)
def test_mistake_in_an_application(
    load: Callable[..., Config], tmp_path: Path, text: str, line: int, expected: str
) -> None:
    """Each mistake in an [[application]] is told with its line, its number, what was found and what is allowed."""
    told = complaint(load, text)
    assert told.startswith(f"{tmp_path / 'config.toml'}:{line}: ")
    assert expected in told
    assert "\n" not in told, "one mistake, one line"


def test_hint_for_echo_is_right(load: Callable[..., Config]) -> None:
    """The three lines that replace [echo] are a valid configuration."""
    lines = complaint(load, "[echo]\nenabled = true").partition("of its own, ")[2].split(" and ")
    [echo] = load("\n".join(lines)).application
    assert (echo.path, echo.handler) == ("/echo", "fastpush.applications.echo:Echo")


# Secrets and tokens from files


def test_push_keys_from_file(load: Callable[..., Config], tmp_path: Path) -> None:
    """Keys of keys_file are added to keys; blank lines and comments are none; the path becomes absolute."""
    (tmp_path / "keys").write_text(f"# from the vault\n\n{PUSH_KEY}-2\r\n")
    push = load(f"[push]\nauth = 'keys'\nkeys = ['{PUSH_KEY}']\nkeys_file = 'keys'").push
    assert push.keys == [PUSH_KEY, PUSH_KEY + "-2"]
    assert push.keys_file == str(tmp_path / "keys")


def test_bad_key_in_file(load: Callable[..., Config], tmp_path: Path) -> None:
    """A bad key in keys_file is told with the line of that file."""
    (tmp_path / "keys").write_text(f"{PUSH_KEY}\nshort\n")
    told = complaint(load, "[push]\nauth = 'keys'\nkeys_file = 'keys'")
    assert told.startswith(f"{tmp_path / 'keys'}:2: [push] keys, entry 2: has 5 characters")


def test_empty_keys_file(load: Callable[..., Config], tmp_path: Path) -> None:
    """A file of comments protects nothing."""
    (tmp_path / "keys").write_text("# none yet\n")
    assert ":3: [push] keys_file: holds no key" in complaint(load, "[push]\nauth = 'keys'\nkeys_file = 'keys'")


def test_jwt_secret_from_credential(load: Callable[..., Config], tmp_path: Path) -> None:
    """secret_file is read into secret, through a systemd credential, without the newline at its end."""
    (tmp_path / "jwt").write_text(LONG_SECRET + "\n")
    text = "[auth]\nmode = 'jwt'\n[[auth.jwt.key]]\nsecret_file = '${CREDENTIALS_DIRECTORY}/jwt'"
    config = load(text, CREDENTIALS_DIRECTORY=str(tmp_path))
    assert config.auth.jwt.key == [JwtKey(secret=LONG_SECRET)]
    configuration.check(config)


def test_short_secret_in_file(load: Callable[..., Config], tmp_path: Path) -> None:
    """A short secret is blamed on the file that holds it; an empty file on the key that names it."""
    text = "[auth]\nmode = 'jwt'\n[[auth.jwt.key]]\nsecret_file = 'jwt'"
    (tmp_path / "jwt").write_text("short\n")
    assert complaint(load, text).startswith(f"{tmp_path / 'jwt'}: [[auth.jwt.key]] number 1, secret: has 5 bytes")
    (tmp_path / "jwt").write_text("\n")
    assert ":4: [[auth.jwt.key]] number 1, secret_file: " in complaint(load, text)


def test_operators_key_from_file(load: Callable[..., Config], tmp_path: Path) -> None:
    """[admin] key_file is read into key without the newline at its end; a bad one is blamed on the file."""
    (tmp_path / "key").write_text("a key of operators\n")
    config = load("[admin]\nkey_file = 'key'")
    assert (config.admin.key, config.admin.key_file) == ("a key of operators", "")
    configuration.check(config)
    (tmp_path / "key").write_text("short\n")
    assert complaint(load, "[admin]\nkey_file = 'key'").startswith(f"{tmp_path / 'key'}: [admin] key: has 5 characters")
    (tmp_path / "key").write_text("\n")
    assert ":2: [admin] key_file: " in complaint(load, "[admin]\nkey_file = 'key'")


def test_admin_changes_live(load: Callable[..., Config]) -> None:
    """A reload takes all of [admin] over."""
    old, new = load(""), load("[admin]\nkey = '0123456789abcdef'\nactions = true\nremember_notes = 100")
    assert configuration.changes(old, new) == (["admin.key", "admin.actions", "admin.remember_notes"], [])
    assert configuration.merge_live(old, new).admin == new.admin


@pytest.mark.parametrize(
    ("pem", "algorithm", "expected"),
    [
        ("-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----", "RS256", "holds a private key"),
        ("hello", "RS256", "holds no public key in PEM form"),
        ("-----BEGIN PUBLIC KEY-----\n%%\n-----END PUBLIC KEY-----", "RS256", "is damaged"),
        ("-----BEGIN PUBLIC KEY-----\nBggqhkjOPQMBBw==\n-----END PUBLIC KEY-----", "RS256", "holds no RSA key"),
        ("-----BEGIN PUBLIC KEY-----\nBgkqhkiG9w0BAQE=\n-----END PUBLIC KEY-----", "ES256", "holds no P-256 key"),
    ],
)
def test_unfit_public_key(load: Callable[..., Config], tmp_path: Path, pem: str, algorithm: str, expected: str) -> None:
    """A public key file of the wrong kind is refused at start, not at the first token."""
    (tmp_path / "key.pem").write_text(pem)
    text = f"[auth]\nmode = 'jwt'\n[[auth.jwt.key]]\nalgorithm = '{algorithm}'\npublic_key_file = 'key.pem'"
    told = complaint(load, text)
    assert ":5: [[auth.jwt.key]] number 1, public_key_file: " in told
    assert expected in told


def test_fit_public_keys(load: Callable[..., Config], tmp_path: Path) -> None:
    """Real RSA and P-256 public keys are taken and their paths made absolute."""
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    asymmetric = pytest.importorskip("cryptography.hazmat.primitives.asymmetric")
    rsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.rsa")
    ec = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec")
    assert asymmetric
    form = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "rsa").write_bytes(rsa.generate_private_key(65537, 2048).public_key().public_bytes(*form))
    (tmp_path / "ec").write_bytes(ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(*form))
    table = "[[auth.jwt.key]]\nkid = '{0}'\nalgorithm = '{1}'\npublic_key_file = '{0}'\n"
    config = load("[auth]\nmode = 'jwt'\n" + table.format("rsa", "RS256") + table.format("ec", "ES256"))
    assert [key.public_key_file for key in config.auth.jwt.key] == [str(tmp_path / "rsa"), str(tmp_path / "ec")]


def test_files_of_other_modes_are_not_read(load: Callable[..., Config]) -> None:
    """A file that the chosen modes do not need may be missing."""
    config = load("[auth]\ntokens_file = 'missing'\n[push]\nkeys_file = 'missing'")
    assert config.auth.mode == "token-is-user"


def test_read_secret_strips_one_newline(tmp_path: Path) -> None:
    """Only the newline that editors add is taken away, from a path relative to a folder."""
    for content, expected in ((b"a\n\n", "a\n"), (b"a\r\n", "a"), (b" a ", " a ")):
        (tmp_path / "s").write_bytes(content)
        assert configuration.read_secret("s", folder=tmp_path) == expected


def test_tokens(load: Callable[..., Config], tmp_path: Path) -> None:
    """With mode = "static" tokens, quoted or bare, name users; several tokens may name one user."""
    (tmp_path / "tokens").write_text('aaa = "jack"\n"b.b" = "jack" # second device\n')
    config = load("[auth]\nmode = 'static'\ntokens_file = 'tokens'")
    assert config.auth.tokens_file == str(tmp_path / "tokens")
    assert configuration.load_tokens(config) == {"aaa": "jack", "b.b": "jack"}


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ('SECRET.b = "u"', 1, "a token that holds dots needs quotes"),
        ('[SECRET]\nb = "u"', 1, "sections are not allowed"),
        ("a = 'u'\nSECRET = 3", 2, "the user is an integer; must be a string in quotes"),
        ("SECRET = ''", 1, "the user is empty"),
        ("'' = 'u'", 1, "the token is empty"),
        ("SECRET = 'u'\nSECRET = 'v'", 2, "the same key stands above"),
        ("[SECRET]\n[SECRET]", 2, "not valid TOML"),
        ("SECRET = u", 1, "not valid TOML"),
        ("SECRET u", 1, "not valid TOML"),
    ],
)
def test_bad_tokens(load: Callable[..., Config], tmp_path: Path, text: str, line: int, expected: str) -> None:
    """A bad tokens file is told with both files' lines and without any token."""
    (tmp_path / "tokens").write_text(text)
    told = complaint(load, "[auth]\nmode = 'static'\ntokens_file = 'tokens'")
    assert told.startswith(f"{tmp_path}/config.toml:3: [auth] tokens_file: {tmp_path}/tokens:{line}: ")
    assert expected in told
    assert "SECRET" not in told.replace(str(tmp_path), "")


def test_tokens_without_a_file() -> None:
    """Asking for tokens without a file says which key is missing."""
    with pytest.raises(ConfigError, match=r"\[auth\] tokens_file"):
        configuration.load_tokens(Config())


# Addresses and exposure


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
        ("[::]:80", ("::", 80)),
        ("[0:0::1]:80", ("::1", 80)),
        ("[fe80::1%eth0]:80", ("fe80::1%eth0", 80)),
        ("LocalHost:8080", ("localhost", 8080)),
    ],
)
def test_parse_listen(text: str, expected: tuple[str, int]) -> None:
    """Addresses, IPv6 in brackets, and localhost are split into host and port."""
    assert configuration.parse_listen(text) == expected
    assert configuration.addresses([text, text]) == [expected, expected]


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "80",
        "::1",
        "[::1]",
        "a:80",
        "1.2.3:80",
        "127.0.0.1:-1",
        "127.0.0.1:٣",
        "[x]:1",
        "127.0.0.1:" + "9" * 5000,
    ],
)
def test_parse_listen_refuses(text: str) -> None:
    """Anything else is a ConfigError that shows the text."""
    with pytest.raises(ConfigError, match=r"^found "):
        configuration.parse_listen(text)


def test_open_keys() -> None:
    """token-is-user and none count as no authentication; each closes its own side."""
    assert configuration.open_keys(Config()) == ["[auth] mode", "[push] auth"]
    assert configuration.open_keys(Config(push=Push(auth="keys"))) == ["[auth] mode"]
    assert configuration.open_keys(Config(auth=Auth(mode="static"))) == ["[push] auth"]
    assert configuration.open_keys(Config(auth=Auth(mode="jwt"), push=Push(auth="python"))) == []


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", ["localhost:1", "[::1]:1"]])
def test_open_server_on_loopback(listen: str | list[str]) -> None:
    """An open server may listen where only this machine reaches it."""
    configuration.check_exposure(Config(server=Server(listen=listen)))


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", ["127.0.0.1:1", "192.168.1.1:1"], "[::ffff:7f00:1]:1"]
)
def test_open_server_elsewhere(listen: str | list[str]) -> None:
    """An open server on any other address is refused with the address and the keys to set; a closed one is not."""
    server = Server(listen=listen)
    address = listen[-1] if isinstance(listen, list) else listen
    with pytest.raises(ConfigError) as raised:
        configuration.check_exposure(Config(server=server))
    start = f'[server] listen: "{address}" can be reached from other machines; set [auth] mode'
    assert str(raised.value).startswith(start)
    assert "[push] auth (now" in str(raised.value)
    configuration.check_exposure(Config(server=server, auth=Auth(mode="jwt"), push=Push(auth="keys")))


def test_open_api_elsewhere() -> None:
    """[api] listen is judged like [server] listen, and one open side is enough."""
    api = configuration.Api(listen="10.0.0.1:1")
    with pytest.raises(ConfigError, match=r"^\[api\] listen: .* set \[push\] auth"):
        configuration.check_exposure(Config(api=api, auth=Auth(mode="jwt")))


# Channels


def test_no_channels_by_default() -> None:
    """Without a table below [channels] clients of channels can subscribe to nothing, and nobody comes without token."""
    assert (Config().channels, Config().client.anonymous, Config().client.handler) == ({}, "no", "")
    assert (Namespace().subscribe, Namespace().publish, Namespace().history_messages) == ("token", "nobody", 0)


def test_namespaces(load: Callable[..., Config]) -> None:
    """Each table below [channels] is a namespace; what it leaves out has its default."""
    text = (
        "[channels.chat]\nsubscribe = 'users'\nhistory_messages = 10\nrecovery = true\n"
        "[channels.without_namespace]\nslow_policy = 'latest'\n[channels]\nA-1 = {presence = true}\n"
        "[client]\npersonal_namespace = 'chat'\nhandler = 'my:Calls'\n[client.options]\nsince = 1979-05-27"
    )
    config = load(text)
    assert config.channels == {
        "chat": Namespace(subscribe="users", history_messages=10, recovery=True),
        "without_namespace": Namespace(slow_policy="latest"),
        "A-1": Namespace(presence=True),
    }
    assert config.client == Client(personal_namespace="chat", handler="my:Calls", options={"since": date(1979, 5, 27)})


def test_namespaces_reach_running_processes() -> None:
    """A configuration with channels is handed to a child, and read there, as it was."""
    config = Config(channels={"chat": Namespace(presence=True)}, client=Client(handler="a:B", options={"a": 1}))
    assert control.decode_to_child(control.encode(control.Prepare(1, config))) == control.Prepare(1, config)


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        # names
        (
            "[channels.chat]\n\nhistroy_messages = 3",
            3,
            "[channels.chat] histroy_messages: no such key; did you mean his",
        ),
        (
            "[channels.chat]\nzz = 3",
            2,
            "[channels.chat] zz: no such key; there are subscribe, publish, history_messages,",
        ),
        (
            "[channels.chat]\nmessage_bytes = 3",
            2,
            "no such key in this section; it belongs in [limits] or [application.",
        ),
        ("[channels.chat]\n[channels.chat.history]", 2, "[channels.chat.history]: no such section"),
        ("[chanels.chat]", 1, "[chanels]: no such section; did you mean [channels.<namespace>]?"),
        ("[limits]\nhistory_messages = 3", 2, "no such key in this section; it belongs in [channels.<namespace>]"),
        ("[channels.'a b']", 1, '[channels] "a b": the name of a namespace must consist of 1 to 64 letters, digits, _'),
        (f"[channels.{'a' * 65}]", 1, "must consist of 1 to 64 letters"),
        ("[channels.'']", 1, "must consist of 1 to 64 letters"),
        # types and ranges
        (
            "[channels]\npresence = true",
            2,
            "stands outside a namespace; it belongs in tables headed [channels.<namespac",
        ),
        ("[channels]\nchat = true", 2, "[channels] chat: found a boolean; must be a table headed [channels.chat]"),
        ("[[channels.chat]]", 1, "[channels] chat: found an array; must be a table headed [channels.chat]"),
        ("[[channels]]", 1, "[channels]: found an array; must be tables headed [channels.<namespace>]"),
        (
            "[channels.chat]\nslow_policy = 'drop'",
            2,
            'must be one of "disconnect", "drop-oldest", "latest" (default "di',
        ),
        (
            "[channels.a]\n[channels.b]\nhistory_messages = 65536",
            3,
            "[channels.b] history_messages: found 65536 (integer",
        ),
        (
            "[channels.chat]\nhistory_bytes = 1",
            2,
            "an integer from 1024 (1 KiB) to 67108864 (64 MiB) (default 1048576 (1",
        ),
        ("[limits]\nchannels_per_connection = 0", 2, "must be an integer from 1 to 65535 (default 128)"),
        # keys that need each other
        ("[channels.chat]\nrecovery = true", 2, "[channels.chat] recovery: needs history_messages of at least 1"),
        ("[channels.chat]\njoin_leave = 'users'", 2, '[channels.chat] join_leave: "users" needs presence = true'),
        ("[client]\npersonal_namespace = 'me'", 2, "there is no table [channels.me]; add [channels.me]"),
        ("[channels.mine]\n[client]\npersonal_namespace = 'min'", 3, 'no table [channels.min]; did you mean "mine"?'),
        (
            "[channels.without_namespace]\n[client]\npersonal_namespace = 'without_namespace'",
            3,
            'must be the name of a namespace; "without_namespace" is for names without',
        ),
        (
            "[client]\nhandler = 'a.B'",
            2,
            '[client] handler: found "a.B" (string); must have the form "package.module:Cla',
        ),
        ("[client]\n[client.options]\na = 1", 2, "[client] options: are for the class that [client] handler names"),
        ("[client]\noptions = 3", 2, "[client] options: found an integer; must be a table headed [client.options]"),
        ("[client]\nanonymus = 'no'", 2, '[client] anonymus: no such key; did you mean anonymous (one of "no", "loopb'),
    ],
)
def test_mistake_in_channels(load: Callable[..., Config], tmp_path: Path, text: str, line: int, expected: str) -> None:
    """A mistake inside a namespace is told as one in a section: line, key, what was found and what is allowed."""
    told = complaint(load, text)
    assert told.startswith(f"{tmp_path / 'config.toml'}:{line}: ")
    assert expected in told
    assert "\n" not in told, "one mistake, one line"


def test_options_of_the_handler_are_not_printed() -> None:
    """What the class of [client] is given may hold secrets, so it does not show in a log."""
    assert "swordfish" not in repr(Config(client=Client(handler="a:B", options={"password": "swordfish"})))


# Reload


def test_what_is_live() -> None:
    """A reload takes everything over but what processes, sockets, paths and the bus are made of once."""
    assert [".".join(place) for place, key in keys() if not key.live] == [
        "server.listen",
        "server.workers",
        "server.websocket_path",
        "server.push_path",
        "server.drop_path",
        "server.runtime_directory",
        "server.read_buffer_bytes",
        "server.write_buffer_bytes",
        "api.listen",
        "tls.api",
        "connections.socket_send_bytes",
        "bus.queue_bytes",
        "bus.confirm_ms",
        "client.handler",
        "client.options",
        "application",
        "log.format",
        "log.file",
    ]


def test_changes_and_merge() -> None:
    """Changed keys are listed as live or waiting for a restart, and only live ones are taken over."""
    old = Config(push=Push(auth="keys", keys=[PUSH_KEY]))
    new = Config(
        server=Server(workers=3), push=Push(auth="keys", keys=[PUSH_KEY + "2"]), log=Log(level="debug", format="json")
    )
    assert configuration.changes(old, new) == (["push.keys", "log.level"], ["server.workers", "log.format"])
    assert configuration.changes(new, new) == ([], [])
    merged = configuration.merge_live(old, new)
    assert merged == Config(push=Push(auth="keys", keys=[PUSH_KEY + "2"]), log=Log(level="debug"))


def test_tls_is_switched_by_a_restart_only() -> None:
    """A certificate in place of another one is taken over; one where there was none, or none any more, is not."""
    plain, first, second = Config(), Config(tls=Tls(certificate="/a", key="/k")), Config(tls=Tls(certificate="/b"))
    assert configuration.changes(first, second) == (["tls.certificate", "tls.key"], [])
    assert configuration.merge_live(first, second) == second
    for old, new in ((plain, first), (first, plain)):
        assert configuration.changes(old, new) == ([], ["tls.certificate", "tls.key"])
        assert configuration.merge_live(old, new) == old


def test_a_reload_never_opens_a_server() -> None:
    """A file that no longer asks who pushes or connects, as a half-written one does not, is refused as a whole."""
    old = Config(
        auth=Auth(mode="jwt", jwt=Jwt(key=[JwtKey(secret=LONG_SECRET)])), push=Push(auth="keys", keys=[PUSH_KEY])
    )
    with pytest.raises(ConfigError, match=r"nothing is reloaded: \[auth\] mode and \[push\] auth would ask nobody"):
        configuration.merge_live(old, Config())
    assert configuration.merge_live(Config(), old) == old


def test_applications_wait_for_a_restart() -> None:
    """Any change of an application, in its own tables too, waits for a restart; the general limits do not."""
    old = Config(application=[Application(path="/a", handler="a:B")])
    new = Config(
        limits=Limits(message_bytes=128),
        bus=Bus(history_bytes=65536),
        application=[Application(path="/a", handler="a:B", limits={"message_bytes": 256})],
    )
    assert configuration.changes(old, new) == (["limits.message_bytes", "bus.history_bytes"], ["application"])
    merged = configuration.merge_live(old, new)
    assert (merged.application, merged.limits, merged.bus) == (old.application, new.limits, new.bus)
    assert configuration.changes(old, Config()) == ([], ["application"])


def test_channels_are_live() -> None:
    """A reload takes namespaces over, new, changed and gone, and names each; the handler of [client] waits."""
    old = Config(
        channels={"chat": Namespace(), "news": Namespace()}, client=Client(handler="a:B", options={"since": 1})
    )
    new = Config(
        channels={"chat": Namespace(presence=True), "shop": Namespace()},
        client=Client(anonymous="everywhere", handler="a:C", options={"since": 2}),
    )
    assert configuration.changes(old, new) == (
        ["client.anonymous", "channels.chat.presence", "channels.news", "channels.shop"],
        ["client.handler", "client.options"],
    )
    merged = configuration.merge_live(old, new)
    assert merged.channels == new.channels
    assert merged.client == Client(anonymous="everywhere", handler="a:B", options={"since": 1})


def test_new_workers_take_new_handlers() -> None:
    """What `restart --rolling` reads anew are the classes and their options; every other key waits."""
    old = Config(limits=Limits(name_bytes=9), client=Client(handler="a:B", expired_close_seconds=1))
    applications = [Application(path="/a", handler="a:B")]
    new = Config(application=applications, client=Client(handler="a:C", options={"since": 2}))
    merged = configuration.merge_handlers(old, new)
    assert (merged.application, merged.limits) == (applications, old.limits)
    assert merged.client == Client(handler="a:C", options={"since": 2}, expired_close_seconds=1)


# The schema


def test_check_names_keys_without_a_file() -> None:
    """`check` on values says which key is wrong."""
    with pytest.raises(ConfigError, match=r"^\[server\] push_path: \"/ws\" is also"):
        configuration.check(Config(server=Server(push_path="/ws")))


def test_every_key_is_described() -> None:
    """Each key has a sentence, a default that its own limits allow, and a name that ends in its unit."""
    for section in [section for _, section in sections()] + [Config, JwtKey, Application, Namespace]:
        assert section.__doc__
        for key in members(section).values():
            if isinstance(key, Key):
                assert key.meaning.endswith("."), key.name
                assert key.allowed
                example = key.default if key.example is None else key.example
                assert msgspec.convert(example, key.annotation) == example
                if isinstance(key.default, float):
                    assert key.name.endswith("_seconds")
