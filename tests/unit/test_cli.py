"""The command line without a server: usage, exit codes, messages, and what `token` signs."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import click
import pytest
from click.testing import CliRunner, Result
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

from fastpush import __version__
from fastpush.cli import main
from fastpush.cli.common import Interval, count_of, server_url
from fastpush.cli.status import _print, duration
from fastpush.config import Config, Jwt, JwtKey, load
from fastpush.errors import TokenRejected
from fastpush.http.auth import Identity, check_signed
from fastpush.http.auth.jwt import JwtAuth
from tests.server import toml

COMMANDS = (
    "serve", "check", "install-service", "status", "why", "trace", "top", "debug", "reload", "drain",
    "restart", "push", "drop", "listen", "token", "bench",
)  # fmt: skip
PUSH = ("push", "jack", "topic1", "hello")
SECRET = "0123456789abcdef0123456789abcdef"


pytestmark = pytest.mark.usefixtures("alone")


def fastpush(*arguments: str) -> Result:
    result = CliRunner().invoke(main, arguments, prog_name="fastpush")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    return result


def write(folder: Path, sections: dict[str, dict[str, Any]], more: str = "") -> str:
    path = folder / "config.toml"
    path.write_text(toml(sections) + more)
    return str(path)


# -- Usage --------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    """--help of every command: exit code 0, usage first, each option with a text, in lines that fit a terminal."""
    result = fastpush(command, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: fastpush {command}")
    assert ("--config" in result.stdout) == (command not in {"bench", "install-service"})  # which know no server's own
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_the_list_of_commands_is_complete() -> None:
    """fastpush alone and fastpush --help name every command with a whole sentence, nothing cut."""
    result = fastpush("--help")
    assert result.exit_code == 0
    lines = result.stdout.partition("Commands:")[2].splitlines()
    assert sorted(line.split()[0] for line in lines if line.strip()) == sorted(COMMANDS)
    assert "..." not in result.stdout.partition("Commands:")[2]
    assert fastpush().exit_code == 2


def test_version() -> None:
    """--version names program and version."""
    assert fastpush("--version").stdout == f"fastpush, version {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("serv",), "No such command 'serv'"),
        (("serve", "--bogus"), "No such option '--bogus'"),
        (("serve", "--workers", "many"), "'many' is not a valid integer"),
        (("push", "jack", "topic1"), "Missing argument 'MESSAGE'"),
        (("push", "jack", "topic1", ""), "is empty"),
        (("push", "ja\udcffck", "topic1", "hello"), "is not UTF-8"),
        ((*PUSH, "--every", "soon"), "'soon' is not a time; write it like 500ms, 1s or 2m"),
        ((*PUSH, "--every", "0s"), "'0s' is not between 0 and a day"),
        ((*PUSH, "--every", "9999999m"), "'9999999m' is not between 0 and a day"),
        ((*PUSH, "--url", "ftp://host"), "'ftp://host' is not a server; write it like http://127.0.0.1:8080"),
        ((*PUSH, "--url", "http://"), "is not a server"),
        ((*PUSH, "--url", "http://host:port"), "is not a server"),
        ((*PUSH, "--url", "http://ho\nst"), "is not a server"),
        ((*PUSH, "--key", "two\nlines"), "holds characters that no HTTP header can carry"),
        (("drop",), "Missing argument 'USER'"),
        (("debug", "heap", "0"), "'heap' is not one of 'stacks', 'tasks', 'connections'"),
        (("debug", "stacks"), "Missing argument 'WORKER'"),
        (("debug", "stacks", "w0"), "'w0' is no process; name a worker by its number like 0, or as in logs"),
        (("debug", "stacks", "0", "--limit", "1001"), "1001 is not in the range"),
        (("listen", "--token", "aaa"), "Missing option '--event'"),
        (("listen", "--token", "aaa", "--event", "e", "--count", "0"), "0 is not in the range"),
        (("token", "jack", "--expires", "soon"), "is not a valid integer"),
        (("token", "jack", "--channel", ""), "the channel's name is empty"),
        (("token", "jack", "--subscribe", "/chat"), "starts with a slash"),
        (("token", "jack", "--info", "Jack"), "is not JSON"),
        (("token", "jack", "--info", "NaN"), "is not JSON"),
        (("token", "jack", "--channel", "a", "--subscribe", "b"), "--channel makes a subscription token"),
        (("token", "jack", "--channel", "a", "--url", "wss://host/"), "--channel makes a subscription token"),
        (("token", "jack", "--url", "ftp://host/"), "is not a URL of a server; write it like wss://host/path?"),
        (("token", "jack", "--url", "host/broadcast"), "is not a URL of a server"),
        (("token", "jack", "--url", "wss:///broadcast"), "is not a URL of a server"),
        (("token", "jack", "--url", "wss://host:port/"), "is not a URL of a server"),
        (("token", "jack", "--url", "wss://host/?a=b c"), "is not a URL of a server"),
        (("token", "jack", "--url", "wss://host/?a=b\n"), "is not a URL of a server"),
        (("token", "jack", "--url", "wss://host/?a=\udcff"), "is not a URL of a server"),
        (("token", "jack", "--url", "wss://host/?a=1#"), "a fragment (# and what follows) never reaches a server"),
        (("token", "jack", "--url", "wss://host/?a=1&%74oken="), "there is a parameter token already"),
        (("token", "jack", "--url", "wss://host/?a=1&b=2&%61=1"), "the parameter 'a' is repeated"),
        (("token", "jack", "--url", "wss://host/?a=%zz"), "not percent-encoded UTF-8"),
        (("token", "jack", "--url", "wss://host/?a=%ff"), "not percent-encoded UTF-8"),
        (("token", "jack", "--url", f"wss://host/?{'&'.join(f'p{n}=' for n in range(33))}"), "more than 32 parameters"),
    ],
)
def test_wrong_usage_is_named(arguments: tuple[str, ...], text: str) -> None:
    """Exit code 2 and a text that names the word that is wrong, on standard error."""
    result = fastpush(*arguments)
    assert result.exit_code == 2
    assert text in result.stderr
    assert result.stdout == ""


def test_a_wrong_key_is_not_repeated() -> None:
    """A key that cannot be sent is a secret all the same: the message does not show it."""
    assert "s3cret" not in fastpush(*PUSH, "--key", "s3cret\x00").output


def test_intervals() -> None:
    """Times are written like 500ms, 1s, 2m; a bare number is seconds."""
    for text, seconds in (("1s", 1.0), ("500ms", 0.5), ("2m", 120.0), ("0.25", 0.25), ("1.5s", 1.5)):
        assert Interval().convert(text, None, None) == seconds


def test_counts_have_their_plural() -> None:
    """One worker, two workers."""
    assert [count_of(number, "worker") for number in (0, 1, 2)] == ["0 workers", "1 worker", "2 workers"]


# -- Configuration ------------------------------------------------------------------


@pytest.mark.parametrize("command", [("serve",), ("check",), PUSH, ("drop", "u"), ("token", "u"), ("status",)])
def test_a_bad_configuration_is_named_by_line(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Every command: exit code 2, file and line, the key, and the nearest valid one."""
    path = write(tmp_path, {"server": {"listen": "127.0.0.1:0", "workrs": 2}})
    result = fastpush(*command, "--config", path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {path}:3: [server] workrs: no such key; did you mean workers")


def test_each_problem_has_its_own_line(tmp_path: Path) -> None:
    """Two mistakes are two lines that say error."""
    path = write(tmp_path, {"server": {"workers": "many"}, "log": {"level": "loud"}})
    lines = fastpush("check", "--config", path).stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"error: {path}:") for line in lines)


def test_an_unreadable_configuration_is_an_error(tmp_path: Path) -> None:
    """No such file, a directory, not TOML, not UTF-8: exit code 2 and the path."""
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "broken.toml").write_text("[server\n")
    reasons = {"none.toml": "no such file", ".": "is a directory", "binary.toml": "", "broken.toml": ":1"}
    for name, text in reasons.items():
        result = fastpush("serve", "--config", str(tmp_path / name))
        assert result.exit_code == 2
        assert str(tmp_path / name) in result.stderr
        assert text in result.stderr


def test_options_of_the_command_line_are_named_when_wrong() -> None:
    """--workers goes through the same checks as the file: exit code 2."""
    result = fastpush("serve", "--workers", "1000")
    assert result.exit_code == 2
    assert "workers" in result.stderr and "from 0 to 256" in result.stderr


@pytest.mark.parametrize(
    ("listen", "api", "url"),
    [
        ("127.0.0.1:9000", "", "http://127.0.0.1:9000"),
        ("[::1]:9000", "", "http://[::1]:9000"),
        ("127.0.0.1:9000", "127.0.0.1:9001", "http://127.0.0.1:9001"),
        (["127.0.0.2:1", "127.0.0.3:2"], "", "http://127.0.0.2:1"),
        ("localhost:9000", "", "http://localhost:9000"),
    ],
)
def test_the_server_is_found_by_its_configuration(listen: str | list[str], api: str, url: str) -> None:
    """S0-03: commands go where the configuration lets the server listen, pushes to [api] listen where there is one."""
    config = load(None, environ={}, overrides={"server.listen": listen, "api.listen": api})
    assert server_url(config, None, api=True) == url
    assert server_url(config, "http://elsewhere", api=True) == "http://elsewhere"


def test_any_address_is_reached_on_loopback(tmp_path: Path) -> None:
    """A server that listens on every address is asked at this machine's own."""
    keys = tmp_path / "keys"
    keys.write_text("0123456789abcdef0123\n")
    (tmp_path / "tokens").write_text('"a" = "b"\n')
    for listen, url in (("0.0.0.0:9000", "http://127.0.0.1:9000"), ("[::]:9000", "http://[::1]:9000")):
        overrides = {
            "server.listen": listen, "auth.mode": "static", "auth.tokens_file": str(tmp_path / "tokens"),
            "push.auth": "keys", "push.keys_file": str(keys),
        }  # fmt: skip
        assert server_url(load(None, environ={}, overrides=overrides), None, api=False) == url


def test_port_0_needs_a_url(tmp_path: Path) -> None:
    """A port that the kernel chooses is not known to a command: exit code 2 and what to give."""
    result = fastpush(*PUSH, "--config", write(tmp_path, {"server": {"listen": "127.0.0.1:0"}}))
    assert (result.exit_code, result.stderr) == (
        2,
        "error: the configuration lets the kernel choose the port: give --url\n",
    )


# -- Nobody there -------------------------------------------------------------------


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port on which nobody listens, and nobody else can."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


LISTEN = ("listen", "--token", "t", "--event", "e")


@pytest.mark.parametrize("command", [PUSH, (*PUSH, "--every", "1s"), ("drop", "u"), LISTEN])
def test_an_unreachable_server_is_named(command: tuple[str, ...], closed_port: int) -> None:
    """Exit code 1 at once, also with --every, and one line that names the server and why."""
    result = fastpush(*command, "--url", f"http://127.0.0.1:{closed_port}")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: http://127.0.0.1:{closed_port}")
    assert result.stderr.endswith("cannot be reached: Connection refused\n")


def test_status_without_a_server(tmp_path: Path) -> None:
    """Exit code 1, and where it was looked for."""
    result = fastpush("status", "--config", write(tmp_path, {"server": {"runtime_directory": str(tmp_path / "run")}}))
    assert result.exit_code == 1
    assert result.stderr == f"error: no server of this configuration is running (looked in {tmp_path / 'run'})\n"


# -- status -------------------------------------------------------------------------


def test_status_is_printed_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """One line about the server, one about what is under way, one a process; brackets of IPv6 are no markup."""
    worker = {"connections": 3, "keys": 2, "pushes": 10, "deliveries": 30}
    common = {"state": "ready", "uptime_seconds": 7200, "restarts": 1}
    _print(
        {
            "version": "9.9",
            "pid": 1,
            "state": "ready",
            "uptime_seconds": 90061,
            "address": ["[::1]:8080"],
            "operation": {"name": "rolling restart", "done": 1, "of": 2, "is_done": False, "failure": ""},
            "processes": [
                {"role": "broker", "number": 1, "slot": -1, "pid": 2, "figures": {}, **common},
                {"role": "worker", "number": 7, "slot": 0, "pid": 3, "figures": worker, **common},
            ],
        }
    )
    first, operation, heads, broker, row = capsys.readouterr().out.splitlines()
    assert first == "fastpush 9.9  ready  process 1  up 1.0 d  on [::1]:8080"
    assert operation == "rolling restart: 1 of 2 workers replaced"
    assert heads.split() == [
        "process",
        "in",
        "logs",
        "pid",
        "state",
        "up",
        "restarts",
        "connections",
        "keys",
        "pushes",
        "deliveries",
    ]
    assert broker.split() == ["broker", "broker", "2", "ready", "2.0", "h", "1"]
    assert row.split() == ["worker", "0", "worker-7", "3", "ready", "2.0", "h", "1", "3", "2", "10", "30"]


def test_durations_are_short() -> None:
    """Seconds, minutes, hours, days."""
    assert [duration(seconds) for seconds in (5, 90, 5400, 129600)] == ["5 s", "1.5 min", "1.5 h", "1.5 d"]


# -- token --------------------------------------------------------------------------


def hs256(folder: Path, settings: dict[str, Any] | None = None) -> str:
    sections = {"auth": {"mode": "jwt"}, "auth.jwt": settings or {}}
    return write(folder, sections, f'[[auth.jwt.key]]\nkid = "one"\nsecret = "{SECRET}"\n')


def claims_of(token: str) -> dict[str, Any]:
    return dict(jwt.decode(token, OctKey.import_key(SECRET), algorithms=["HS256"]).claims)


def test_token_carries_what_the_configuration_asks_for(tmp_path: Path) -> None:
    """User claim, audience and issuer as configured, exp an hour ahead; one line of output and nothing else."""
    path = hs256(tmp_path, {"user_claim": "uid", "audience": "apps", "issuer": "us"})
    result = fastpush("token", "jack", "--config", path)
    assert (result.exit_code, result.stderr, result.stdout.count("\n")) == (0, "", 1)
    decoded = jwt.decode(result.stdout.strip(), OctKey.import_key(SECRET), algorithms=["HS256"])
    claims = decoded.claims
    assert (decoded.header["alg"], decoded.header["kid"]) == ("HS256", "one")
    assert (claims["uid"], claims["aud"], claims["iss"], claims["exp"] - claims["iat"]) == ("jack", "apps", "us", 3600)


def test_token_expiry(tmp_path: Path) -> None:
    """--expires 0 means never, less than 0 makes a token that has expired."""
    path = hs256(tmp_path)
    assert "exp" not in claims_of(fastpush("token", "u", "--expires", "0", "--config", path).stdout.strip())
    claims = claims_of(fastpush("token", "u", "--expires", "-60", "--config", path).stdout.strip())
    assert claims["exp"] - claims["iat"] == -60


def test_token_without_a_key(tmp_path: Path) -> None:
    """No key, no key of that id, no private key, no such file: exit code 2, each with its own words."""
    assert "has no key to sign with" in fastpush("token", "u").stderr
    path = hs256(tmp_path)
    result = fastpush("token", "u", "--kid", "two", "--config", path)
    assert (result.exit_code, result.stderr) == (2, "error: no key has the kid 'two'; there are: 'one'\n")


def test_token_of_another_mode_warns(tmp_path: Path) -> None:
    """A token that the configured server would not take is printed, with a warning on standard error."""
    path = write(tmp_path, {}, f'[[auth.jwt.key]]\nsecret = "{SECRET}"\n')
    result = fastpush("token", "jack", "--config", path)
    assert result.exit_code == 0
    assert '[auth] mode is "token-is-user"' in result.stderr
    assert claims_of(result.stdout.strip())["sub"] == "jack"


def test_subscription_token(tmp_path: Path) -> None:
    """--channel makes a token that a server takes for this channel and user, with --info for the others there."""
    path = hs256(tmp_path, {"user_claim": "uid"})
    result = fastpush("token", "jack", "--channel", "$chat:42", "--info", '{"name": "Jörg"}', "--config", path)
    auth = JwtAuth(Jwt(key=[JwtKey(kid="one", secret=SECRET)], user_claim="uid"), 512)
    found = auth.subscription(result.stdout.strip())
    assert (found.user, found.channel, found.info) == ("jack", "$chat:42", {"name": "Jörg"})
    assert claims_of(result.stdout.strip())["exp"] == found.expires_at


def test_subscription_token_of_anonymous_clients(tmp_path: Path) -> None:
    """USER may be empty in a subscription token, and in no other."""
    path = hs256(tmp_path)
    made = fastpush("token", "", "--channel", "news", "--config", path)
    found = JwtAuth(Jwt(key=[JwtKey(kid="one", secret=SECRET)]), 512).subscription(made.stdout.strip())
    assert (found.user, found.channel) == ("", "news")
    refused = fastpush("token", "", "--config", path)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "USER is empty" in refused.stderr


def test_token_with_server_side_subscriptions(tmp_path: Path) -> None:
    """--subscribe, several times, names channels in the token; info may be any JSON; without them neither claim is."""
    path = hs256(tmp_path)
    more = ("--subscribe", "news", "--subscribe", "chat:42", "--info", "null")
    claims = claims_of(fastpush("token", "jack", *more, "--config", path).stdout.strip())
    assert (claims["channels"], claims["info"]) == (["news", "chat:42"], None)
    assert set(claims_of(fastpush("token", "jack", "--config", path).stdout.strip())) == {"sub", "iat", "exp"}


def test_a_token_that_is_too_long(tmp_path: Path) -> None:
    """One that no server would read is not printed."""
    result = fastpush("token", "jack", "--info", f'"{"x" * 8192}"', "--config", hs256(tmp_path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "more than 8192 bytes" in result.stderr


SPECIAL = "wss://host/broadcast?specialKey=room:7&support_gzip=1"


def signed_url(folder: Path, url: str, *more: str) -> str:
    result = fastpush("token", "jack", "--url", url, *more, "--config", hs256(folder))
    assert (result.exit_code, result.stderr, result.stdout.count("\n")) == (0, "", 1)
    return result.stdout.strip()


def opened(url: str) -> tuple[Identity, dict[str, str]]:
    """Whom the token in `url` names, and all parameters of the URL, as a server sees them."""
    query = dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
    found = JwtAuth(Jwt(key=[JwtKey(kid="one", secret=SECRET)]), 512).authenticate(query["token"], {})
    assert isinstance(found, Identity)
    return found, query


@pytest.mark.parametrize(
    ("url", "params"),
    [
        (SPECIAL, {"specialKey": "room:7", "support_gzip": "1"}),
        ("ws://127.0.0.1:8080/b?z=1&a=2", {"z": "1", "a": "2"}),
        ("http://[::1]:8080?a=", {"a": ""}),
        ("https://host/b?a+b=c+d&e=%26%3D%23%25%2B&f=a=b", {"a b": "c d", "e": "&=#%+", "f": "a=b"}),
        ("wss://host/b?room=größe&Raum=gr%C3%B6%c3%9fe", {"room": "größe", "Raum": "größe"}),
        ("wss://host/b?emoji=%F0%9F%9A%80&path=/a;b?c", {"emoji": "🚀", "path": "/a;b?c"}),
    ],
)
def test_a_signed_url_is_the_url_with_a_token(tmp_path: Path, url: str, params: dict[str, str]) -> None:
    """S2-25: --url prints the URL as it was given, then the token, which vouches for its decoded parameters."""
    printed = signed_url(tmp_path, url)
    kept, _, token = printed.rpartition("&token=")
    assert kept == url
    claims = claims_of(token)
    assert list(claims["params"].items()) == list(params.items())
    assert (claims["sub"], claims["exp"] - claims["iat"]) == ("jack", 3600)
    identity, query = opened(printed)
    assert identity.signed == params
    check_signed(identity.signed, query)


def test_a_signed_url_without_parameters(tmp_path: Path) -> None:
    """A URL without parameters gets the token as its first, and that vouches for nothing."""
    for url in ("wss://host/hub", "wss://host", "wss://host/hub?"):
        printed = signed_url(tmp_path, url)
        base, _, token = printed.partition("?token=")
        assert base == url.rstrip("?")
        assert claims_of(token)["params"] == {}


def test_a_signed_url_that_was_changed(tmp_path: Path) -> None:
    """S2-25: a parameter changed or removed is found; one that is added is not among those vouched for."""
    url = signed_url(tmp_path, SPECIAL)
    for changed in (url.replace("room:7", "room:8"), url.replace("specialKey=room:7&", "")):
        identity, query = opened(changed)
        with pytest.raises(TokenRejected, match="URL parameter specialKey is not what the token vouches for"):
            check_signed(identity.signed, query)
    identity, query = opened(f"{url}&admin=1")
    check_signed(identity.signed, query)
    assert identity.signed == {"specialKey": "room:7", "support_gzip": "1"}
    identity, query = opened(url.replace("room:7", "room%3A7"))  # the same value, spelled otherwise
    check_signed(identity.signed, query)


def test_a_signed_url_ends(tmp_path: Path) -> None:
    """S2-25: --expires is the life of a signed URL as of a token: over, for ever, or a time."""
    with pytest.raises(TokenRejected, match="token expired at"):
        opened(signed_url(tmp_path, SPECIAL, "--expires", "-60"))
    assert opened(signed_url(tmp_path, SPECIAL, "--expires", "0"))[0].expires_at is None
    url = signed_url(tmp_path, SPECIAL, "--expires", "60")
    claims = claims_of(url.rpartition("&token=")[2])
    assert opened(url)[0].expires_at == claims["exp"] == claims["iat"] + 60


def test_a_signed_url_that_no_server_would_take(tmp_path: Path) -> None:
    """Parameters that make the token longer than a server reads: exit code 2, nothing printed."""
    result = fastpush("token", "jack", "--url", f"{SPECIAL}&a={'x' * 8192}", "--config", hs256(tmp_path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: the token would have more than 8192 bytes; no server would take it\n"


def test_a_signed_url_of_another_mode_warns(tmp_path: Path) -> None:
    """As for a token alone: the URL is printed, the warning stands beside it."""
    path = write(tmp_path, {}, f'[[auth.jwt.key]]\nsecret = "{SECRET}"\n')
    result = fastpush("token", "jack", "--url", SPECIAL, "--config", path)
    assert (result.exit_code, result.stdout.startswith(f"{SPECIAL}&token=")) == (0, True)
    assert '[auth] mode is "token-is-user"' in result.stderr


@pytest.mark.parametrize(("algorithm", "kind"), [("RS256", RSAKey), ("ES256", ECKey)])
def test_token_with_a_private_key(tmp_path: Path, algorithm: str, kind: type[RSAKey] | type[ECKey]) -> None:
    """RS256 and ES256 sign with the private key of the configured public one; other files: exit code 2."""
    pairs = [kind.generate_key(2048 if kind is RSAKey else "P-256", private=True) for _ in range(2)]  # type: ignore[arg-type]
    for number, pair in enumerate(pairs):
        (tmp_path / f"{number}.pem").write_bytes(pair.as_pem(private=True))
        (tmp_path / f"{number}.pub").write_bytes(pair.as_pem(private=False))
    more = f'[[auth.jwt.key]]\nalgorithm = "{algorithm}"\npublic_key_file = "0.pub"\n'
    path = write(tmp_path, {"auth": {"mode": "jwt"}}, more)

    result = fastpush("token", "jack", "--private-key", str(tmp_path / "0.pem"), "--config", path)
    assert (result.exit_code, result.stderr) == (0, "")
    public = kind.import_key((tmp_path / "0.pub").read_bytes())
    assert jwt.decode(result.stdout.strip(), public, algorithms=[algorithm]).claims["sub"] == "jack"

    (tmp_path / "noise").write_bytes(b"\xff\x00")
    (tmp_path / "locked.pem").write_bytes(pairs[0].as_pem(private=True, password="secret"))
    for file, text in (
        ("1.pem", "does not belong to"),
        ("0.pub", "is no private key for"),
        ("noise", "is no private key for"),
        ("locked.pem", "is no private key for"),
        ("missing", "cannot be read: No such file"),
        (".", "cannot be read: Is a directory"),
    ):
        result = fastpush("token", "jack", "--private-key", str(tmp_path / file), "--config", path)
        assert (result.exit_code, result.stdout) == (2, ""), file
        assert str(tmp_path / file) in result.stderr and text in result.stderr, result.stderr
    result = fastpush("token", "jack", "--config", path)
    assert (result.exit_code, result.stderr) == (
        2,
        f"error: the key is for {algorithm}: give its private key as --private-key FILE\n",
    )


def test_commands_are_the_groups_commands() -> None:
    """Each command is registered under its own name."""
    assert isinstance(main, click.Group)
    assert set(main.commands) == set(COMMANDS)
    assert isinstance(load(None, environ={}), Config)
