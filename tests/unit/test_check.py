"""What `fastpush check` finds, on this host and on hosts that are made up."""

import json
import os
import re
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from fastpush.cli import main
from fastpush.cli.check import _address, _certificate, _log_file, _operators, _print, _server
from fastpush.cli.host import Finding, Host, examine
from fastpush.config import Admin, Api, Bus, Config, Connections, Limits, Log, Server, Tls
from tests.server import toml

GIB = 1 << 30
ROOMY = Host(
    cores=4,
    memory_bytes=16 * GIB,
    descriptors=1048576,
    descriptors_most=1048576,
    backlog=4096,
    half_open=4096,
    syn_cookies=True,
    ephemeral_ports=(32768, 60999),
    reserved_ports="",
    privileged_below=1024,
    send_bytes=212992,
    tracked_most=0,
    tracked=0,
)
LISTEN = "127.0.0.1:8080"
# What says something on a host that limits nothing.
ALWAYS = ["workers", "descriptors", "memory", "backlog", "outgoing ports"]


pytestmark = pytest.mark.usefixtures("alone")


def check(
    folder: Path, sections: dict[str, dict[str, Any]], *arguments: str, applications: Sequence[dict[str, Any]] = ()
) -> Result:
    """Run the command with this configuration, on a port that the kernel chooses unless it says which.

    applications: entries of [[application]], of the class Ticker in MODULE unless they name another.
    """
    server = {"listen": "127.0.0.1:0", "workers": 1, "runtime_directory": str(folder / "run")}
    path = folder / "config.toml"
    text = toml(sections | {"server": server | sections.get("server", {})})
    for application in applications:
        values = {"handler": "checked_applications:Ticker"} | application
        options = values.pop("options", {})
        text += toml({"[application]": values, "application.options": options})
    path.write_text(text)
    result = CliRunner().invoke(main, ["check", *arguments, "--config", str(path)], prog_name="fastpush")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    return result


def found(folder: Path, sections: dict[str, dict[str, Any]]) -> tuple[int, dict[str, dict[str, str]]]:
    """Return the exit code and the findings by name, as programs get them."""
    result = check(folder, sections, "--json")
    report = json.loads(result.stdout)
    assert (result.stderr, report["exit_code"]) == ("", result.exit_code)
    return result.exit_code, {finding["name"]: finding for finding in report["findings"]}


# -- the whole command ---------------------------------------------------------------


def test_a_good_host(tmp_path: Path) -> None:
    """Exit code 0; each thing that was tried has a line; nothing is left behind."""
    result = check(tmp_path, {})
    assert (result.exit_code, result.stderr) == (0, "")
    names = [line[8:22].rstrip() for line in result.stdout.splitlines() if line[:1].strip()]
    assert names[:4] == ["configuration", "address", "runtime dir", "access"]
    assert set(ALWAYS) <= set(names)
    assert {line[:8].strip() for line in result.stdout.splitlines()} <= {"ok", "advice", ""}
    assert not (tmp_path / "run").exists()


def test_json_for_programs(tmp_path: Path) -> None:
    """--json: one object with the exit code and every finding's name, severity, text and advice."""
    result = check(tmp_path, {}, "--json")
    report = json.loads(result.stdout)
    assert (result.exit_code, report["exit_code"], result.stdout.count("\n")) == (0, 0, 1)
    assert {tuple(finding) for finding in report["findings"]} == {("name", "severity", "text", "advice")}
    access = next(finding for finding in report["findings"] if finding["name"] == "access")
    assert access == {
        "name": "access",
        "severity": "advice",
        "text": "open: programs of this machine only",
        "advice": "set [auth] mode and [push] auth to serve others",
    }


def test_json_of_a_wrong_configuration(tmp_path: Path) -> None:
    """A configuration that cannot be read is a finding for programs too: exit code 2, nothing on standard error."""
    code, findings = found(tmp_path, {"server": {"workrs": 2}})
    assert (code, list(findings), findings["configuration"]["severity"]) == (2, ["configuration"], "fails")
    assert "did you mean workers" in findings["configuration"]["text"]


def test_a_port_in_use(tmp_path: Path) -> None:
    """Exit code 1, and how to find who has the port; the other things are tried all the same."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = check(tmp_path, {"server": {"listen": f"127.0.0.1:{port}"}})
    assert (result.exit_code, result.stderr) == (1, "error: the server would not start or serve\n")
    assert f"FAILS   address        127.0.0.1:{port} is already in use" in result.stdout
    assert f"ok      runtime dir    {tmp_path / 'run'} can be used" in result.stdout


def test_a_runtime_directory_that_is_not_ours(tmp_path: Path) -> None:
    """Open to others, no directory at all, or a path too long for its sockets: exit code 1, the path and a remedy."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "file").touch()
    for name, text in (("open", "open to other users"), ("file", "not a directory"), ("x" * 100, "shorter")):
        code, findings = found(tmp_path, {"server": {"runtime_directory": str(tmp_path / name)}})
        finding = findings["runtime dir"]
        assert (code, finding["severity"]) == (1, "fails")
        assert str(tmp_path / name) in finding["text"] and text in finding["text"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml", "file", "open"]


def test_an_open_server_that_others_could_reach(tmp_path: Path) -> None:
    """What `serve` refuses is found here: exit code 2, and both settings are named."""
    code, findings = found(tmp_path, {"server": {"listen": "0.0.0.0:0"}})
    assert (code, findings["access"]["severity"]) == (2, "fails")
    assert "[auth] mode" in findings["access"]["text"] and "[push] auth" in findings["access"]["text"]


def test_functions(tmp_path: Path) -> None:
    """A function that no worker could import is found before the start: exit code 2, the key and the module; what a
    module prints when it is imported does not spoil the report.
    """
    python = {"auth": {"mode": "python"}, "auth.python": {"callable": "no_such_module:who"}}
    code, findings = found(tmp_path, python)
    assert code == 2
    assert findings["functions"]["text"].startswith("[auth.python] callable: cannot import no_such_module")
    (tmp_path / "checked_module.py").write_text("print('loud')\ndef who(token, headers): return token\n")
    result = check(tmp_path, {"auth": {"mode": "python"}, "auth.python": {"callable": "checked_module:who"}}, "--json")
    functions = next(f for f in json.loads(result.stdout)["findings"] if f["name"] == "functions")
    assert (result.exit_code, functions["text"]) == (0, "checked_module:who can be imported")
    assert result.stderr == "loud\n"


MODULE = """
from fastpush.applications import Application, Options

class Prices(Options):
    kept: int = 100

class Ticker(Application):
    options_class = Prices

def no_class(server, options): return Ticker(server, options)

print("loud")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the current folder, imported by nobody yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "checked_applications.py").write_text(MODULE)
    yield "checked_applications"
    sys.modules.pop("checked_applications", None)


def test_applications(tmp_path: Path, module: str) -> None:
    """Each application's path, class and who may come in are told, one a line; nothing without applications."""
    assert "application" not in found(tmp_path, {})[1]
    result = check(
        tmp_path,
        {},
        applications=[
            {"path": "/a", "options": {"kept": 3}},
            {"path": "/b", "anonymous": "loopback"},
            {"path": "/c", "anonymous": "everywhere"},
        ],
    )
    assert (result.exit_code, result.stderr) == (0, "loud\n")
    name = f"{module}:Ticker"
    assert [line for line in result.stdout.splitlines() if " application " in line] == [
        f"ok      application    /a: {name}, for clients with a token",
        f"ok      application    /b: {name}, for clients with a token, and of this machine without",
        f"ok      application    /c: {name}, for everybody, without a token",
    ]


@pytest.mark.parametrize(
    ("application", "text"),
    [
        ({"handler": "no_such_module:A"}, "handler: cannot import no_such_module: ModuleNotFoundError"),
        ({"handler": "checked_applications:Nothing"}, "handler: checked_applications has no Nothing"),
        (
            {"handler": "checked_applications:no_class"},
            "handler: checked_applications:no_class is no class that derives",
        ),
        ({"handler": "checked_applications:Prices"}, "handler: checked_applications:Prices is no class that derives"),
        ({"options": {"keep": 3}}, "options: Object contains unknown field `keep`"),
        ({"options": {"kept": "3"}}, "options: Expected `int`, got `str` - at `$.kept`"),
    ],
)
@pytest.mark.usefixtures("module")
def test_an_application_that_no_worker_could_start(tmp_path: Path, application: dict[str, Any], text: str) -> None:
    """A class that cannot be imported, is none, or does not take its options: exit code 2, its number and its key."""
    result = check(tmp_path, {}, "--json", applications=[{"path": "/good"}, {"path": "/bad"} | application])
    good, bad = [f for f in json.loads(result.stdout)["findings"] if f["name"] == "application"]
    assert (result.exit_code, good["severity"], bad["severity"]) == (2, "ok", "fails")
    assert bad["text"].startswith(f"[[application]] number 2, {text}")


@pytest.mark.parametrize(
    ("sections", "is_advised"),
    [
        ({}, False),
        ({"server": Server(listen="0.0.0.0:8080")}, True),
        ({"server": Server(listen="0.0.0.0:8080"), "api": Api(listen="127.0.0.1:8081")}, False),
        ({"server": Server(listen="0.0.0.0:8080"), "tls": Tls(certificate="c.pem")}, False),
        ({"api": Api(listen=["127.0.0.1:8081", "[::]:8081"]), "tls": Tls(certificate="c.pem", api=False)}, True),
    ],
)
def test_operators(sections: dict[str, Any], *, is_advised: bool) -> None:
    """A key that crosses a network without TLS is advised against; without a key there is nothing to say."""
    finding = _operators(Config(admin=Admin(key="0123456789abcdef"), **sections))
    assert finding is not None and ("without TLS the key" in finding.advice) == is_advised
    assert finding.text == "the page /admin, to look"
    assert _operators(Config(**sections)) is None


def test_the_log_file(tmp_path: Path) -> None:
    """A log file that `serve` could not open is found; one that it could is not made here, by another user perhaps."""
    assert _log_file(Config()) is None
    fine = _log_file(Config(log=Log(file=str(tmp_path / "fastpush.log"))))
    assert fine == Finding("log", f"{tmp_path}/fastpush.log can be written")
    assert list(tmp_path.iterdir()) == []
    for path, text in ((tmp_path / "no" / "file", "has no folder"), (tmp_path, "is a folder")):
        finding = _log_file(Config(log=Log(file=str(path))))
        assert (finding.severity, finding.exit_code) == ("fails", 1)
        assert finding.text == f"[log] file {path}: {text}"


def test_a_log_file_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the right to write, the file or its folder is named."""
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    finding = _log_file(Config(log=Log(file=str(tmp_path / "fastpush.log"))))
    assert finding.text == f"[log] file {tmp_path}/fastpush.log: {tmp_path} is not writable"


def test_ports_of_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root can bind any port, the service's user cannot: that is told before the service fails with it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = Config(server=Server(listen=f"127.0.0.1:{port}", workers=1))
    host = replace(ROOMY, privileged_below=port + 1)
    for user, severity in ((0, "advice"), (1000, "ok")):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        assert _address(config, host).severity == severity
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert f"gets {port} from fastpush.socket" in _address(config, host).advice
    assert _address(config, ROOMY).severity == "ok"


def test_what_a_restart_would_change() -> None:
    """Beside a running server: other addresses or another number of workers in the configuration are told."""
    running = {"pid": 7, "address": [LISTEN], "processes": [{"slot": -1}, {"slot": 0}, {"slot": 1}]}

    def advice(**server: Any) -> str:
        return _server(Config(server=Server(**{"listen": LISTEN, "workers": 2} | server)), running).advice

    assert _server(Config(server=Server(listen=LISTEN, workers=2)), running) == Finding(
        "server", "runs as process 7 on 127.0.0.1:8080"
    )
    assert advice(listen="127.0.0.1:0") == ""
    assert advice(listen="127.0.0.1:9090").startswith("[server] listen and [api] listen of the configuration differ")
    assert advice(workers=3).startswith("[server] workers of the configuration differ")


# -- the certificate -----------------------------------------------------------------


def certificate(
    path: Path, begin: timedelta, end: timedelta, names: tuple[str, ...] = ("example.com",), issuer: str = "us"
) -> Tls:
    """Write a certificate that is valid between two times from now, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "us")]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begin)
        .not_valid_after(now + end)
    )
    if names:
        entries = [x509.IPAddress(ip_address(n)) if n[0].isdigit() else x509.DNSName(n) for n in names]
        builder = builder.add_extension(x509.SubjectAlternativeName(entries), critical=False)
    path.write_bytes(
        builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
        + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return Tls(certificate=str(path))


def day(number: float) -> timedelta:
    return timedelta(days=number)


@pytest.mark.parametrize(
    ("begin", "end", "severity", "text"),
    [
        (-1, 90.5, "ok", "valid until "),
        (-1, 90.5, "ok", ", 90 days from now"),
        (-1, 29.5, "advice", ", 29 days from now"),
        (-1, 1.5, "advice", ", 1 day from now"),
        (-9, -1, "fails", " expired at "),
        (1, 9, "fails", " is valid from "),
    ],
)
def test_dates_of_a_certificate(tmp_path: Path, begin: float, end: float, severity: str, text: str) -> None:
    """Below 30 days there is advice; one that has expired or is not valid yet fails: no client would take it."""
    tls = certificate(tmp_path / "server.pem", day(begin), day(end), ("example.com", "127.0.0.1"))
    finding = _certificate(Config(tls=tls), time.time())
    assert (finding.severity, finding.exit_code) == (severity, int(severity == "fails"))
    assert "example.com, 127.0.0.1" in finding.text and text in finding.text


def test_a_certificate_without_names(tmp_path: Path) -> None:
    """Clients compare the host's name with the alternative names only, so that none is worth advice."""
    tls = certificate(tmp_path / "server.pem", day(-1), day(90), ())
    finding = _certificate(Config(tls=tls), time.time())
    assert (finding.severity, "subject alternative names" in finding.advice) == ("advice", True)
    assert "self-signed" in finding.text
    signed = certificate(tmp_path / "server.pem", day(-1), day(90), issuer="them")
    assert "self-signed" not in _certificate(Config(tls=signed), time.time()).text


def test_the_command_judges_the_certificate(tmp_path: Path) -> None:
    """Without [tls] nothing is said; an expired certificate ends with 1, a file that holds none with 2."""
    assert "tls" not in found(tmp_path, {})[1]
    tls = certificate(tmp_path / "server.pem", day(-9), day(-1))
    code, findings = found(tmp_path, {"tls": {"certificate": tls.certificate}})
    assert (code, findings["tls"]["severity"]) == (1, "fails")
    (tmp_path / "server.pem").write_text("no certificate")
    code, findings = found(tmp_path, {"tls": {"certificate": tls.certificate}})
    assert (code, list(findings)) == (2, ["configuration"])


# -- the host ------------------------------------------------------------------------


def findings_of(host: Host, **sections: Any) -> dict[str, Finding]:
    config = Config(**{"server": Server(listen=LISTEN, workers=2)} | sections)
    return {finding.name: finding for finding in examine(config, host)}


def test_a_roomy_host() -> None:
    """A host that limits nothing gets no advice, and no line about what cannot matter."""
    findings = findings_of(ROOMY)
    assert list(findings) == ALWAYS
    assert {finding.severity for finding in findings.values()} == {"ok"}
    assert findings["workers"].text == "2, on 4 cores"
    assert findings["outgoing ports"].text == "32768 to 60999, 28,232 for each address reached"


@pytest.mark.parametrize(
    ("name", "host", "sections", "advice"),
    [
        ("workers", {"cores": 1}, {}, "lower [server] workers"),
        ("descriptors", {"descriptors": 20000}, {}, "`ulimit -Hn 65536` before the start, or LimitNOFILE= in the unit"),
        ("descriptors", {"descriptors": 100000}, {"limits": Limits(connections=100000)}, "`ulimit -Hn 101024`"),
        ("descriptors", {}, {"limits": Limits(connections=2000000)}, "first `sysctl -w fs.nr_open=2001024`"),
        ("backlog", {"backlog": 128}, {}, "net.core.somaxconn=4096"),
        ("half open", {"half_open": 256, "syn_cookies": False}, {}, "net.ipv4.tcp_max_syn_backlog=4096"),
        ("send buffer", {}, {"connections": Connections(socket_send_bytes=1 << 20)}, "net.core.wmem_max=1048576"),
        ("memory", {"memory_bytes": GIB // 2}, {}, "lower [limits] worker_send_bytes: in 2 workers that makes 512 MiB"),
        ("memory", {"memory_bytes": GIB}, {"bus": Bus(queue_bytes=GIB)}, "lower [bus] queue_bytes"),
        ("memory", {}, {"limits": Limits(connections=200000)}, "lower [limits] connections"),
        ("tracking", {"tracked_most": 65536, "tracked": 10}, {}, "net.netfilter.nf_conntrack_max=131092"),
        ("tracking", {"tracked_most": 400000, "tracked": 310000}, {}, "a full table drops packets"),
    ],
)
def test_limits_of_a_host(name: str, host: dict[str, Any], sections: dict[str, Any], advice: str) -> None:
    """Each limit that is too low for the configuration gets advice that names the remedy, and none fails."""
    findings = findings_of(replace(ROOMY, **host), **sections)
    assert advice in findings[name].advice
    assert {finding.exit_code for finding in findings.values()} == {0}


@pytest.mark.parametrize(
    ("name", "host", "sections"),
    [
        ("descriptors", {"descriptors": 5000}, {"limits": Limits(connections=3000)}),
        ("backlog", {"backlog": 65535}, {}),
        ("tracking", {"tracked_most": 262144, "tracked": 1000}, {}),
    ],
)
def test_limits_that_are_enough(name: str, host: dict[str, Any], sections: dict[str, Any]) -> None:
    """What the configuration asks for is the measure: a low limit is enough for few clients."""
    assert findings_of(replace(ROOMY, **host), **sections)[name].severity == "ok"


def test_half_open_connects_do_not_matter_with_cookies() -> None:
    """With SYN cookies, the kernel's default, the size of that queue limits nothing."""
    assert "half open" not in findings_of(replace(ROOMY, half_open=128))


def test_a_port_that_an_outgoing_connection_may_have() -> None:
    """A listening port among the ephemeral ones is named, with those that are reserved already; reserved it is fine."""
    server = Server(listen=["127.0.0.1:40000", "127.0.0.1:8080", "127.0.0.1:0"], workers=1)
    api = Api(listen="127.0.0.1:50000")
    ports = findings_of(replace(ROOMY, reserved_ports="33000-33009"), server=server, api=api)["outgoing ports"]
    assert ports.text == "32768 to 60999, 28,222 for each address reached"
    assert "may have 40000 or 50000 when the server starts" in ports.advice
    assert "net.ipv4.ip_local_reserved_ports=33000-33009,40000,50000`" in ports.advice
    reserved = replace(ROOMY, reserved_ports="40000,49990-50010")
    assert findings_of(reserved, server=server, api=api)["outgoing ports"].severity == "ok"


def test_ports_for_a_proxy_on_this_host() -> None:
    """A trusted proxy on loopback reaches one address as often as there are ephemeral ports, which may be too few."""
    proxied = Server(listen=LISTEN, workers=2, trusted_proxies=["127.0.0.0/8"])
    elsewhere = Server(listen=LISTEN, workers=2, trusted_proxies=["10.0.0.0/8"])
    assert "28,232 times" in findings_of(ROOMY, server=proxied)["outgoing ports"].advice
    assert findings_of(ROOMY, server=elsewhere)["outgoing ports"].severity == "ok"
    wide = replace(ROOMY, ephemeral_ports=(1024, 65535), reserved_ports="8080")
    assert findings_of(wide, server=proxied)["outgoing ports"].severity == "ok"
    few = findings_of(ROOMY, server=proxied, limits=Limits(connections=10000))
    assert few["outgoing ports"].severity == "ok"


def test_reading_a_host(tmp_path: Path) -> None:
    """The figures come from the folder given, the limit of descriptors from the process given."""
    net = {
        "core/somaxconn": "128\n",
        "core/wmem_max": "212992\n",
        "ipv4/tcp_max_syn_backlog": "256\n",
        "ipv4/tcp_syncookies": "0\n",
        "ipv4/ip_local_port_range": "32768\t60999\n",
        "ipv4/ip_local_reserved_ports": "8080,9000-9010\n",
        "ipv4/ip_unprivileged_port_start": "80\n",
        "netfilter/nf_conntrack_max": "262144\n",
        "netfilter/nf_conntrack_count": "17\n",
    }
    files = {f"sys/net/{name}": text for name, text in net.items()} | {
        "sys/fs/nr_open": "1048576\n",
        "meminfo": "MemTotal:       16777216 kB\nMemFree:  1 kB\n",
        "42/limits": "Limit            Soft Limit  Hard Limit  Units\nMax open files   1024        4096        files\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    host = Host.read("42", tmp_path)
    assert host == Host(
        cores=host.cores, memory_bytes=16 * GIB, descriptors=4096, descriptors_most=1048576, backlog=128, half_open=256,
        syn_cookies=False, ephemeral_ports=(32768, 60999), reserved_ports="8080,9000-9010", privileged_below=80,
        send_bytes=212992, tracked_most=262144, tracked=17,
    )  # fmt: skip


def test_a_host_that_tells_nothing(tmp_path: Path) -> None:
    """Where /proc is not to be read, as in some containers, nothing is claimed and nothing advised."""
    findings = findings_of(replace(Host.read(proc=tmp_path), cores=4))
    assert list(findings) == ["workers", "descriptors", "memory", "backlog"]
    assert {finding.severity for finding in findings.values()} == {"ok"}
    assert findings["memory"].text.startswith("memory of unknown size")
    (tmp_path / "self").mkdir()
    (tmp_path / "self/limits").write_text("Max open files            unlimited       unlimited       files\n")
    assert findings_of(Host.read(proc=tmp_path))["descriptors"].text == "any number a process here, one a client"


# -- how it is shown -----------------------------------------------------------------


FINDINGS = [
    Finding("configuration", "/etc/fastpush/config.toml"),
    Finding("outgoing ports", "words " * 10, "first\n" + "second " * 10),
    Finding("address", "one line\nand another", exit_code=1),
]


def test_a_line_is_a_line_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    """Three columns, advice below its text behind an arrow; no colour and nothing folded where no terminal is."""
    _print(FINDINGS)
    assert capsys.readouterr().out.splitlines() == [
        "ok      configuration  /etc/fastpush/config.toml",
        "advice  outgoing ports " + "words " * 10,
        "                       → first",
        "                       → " + "second " * 10,
        "FAILS   address        one line",
        "                       and another",
    ]


def test_long_texts_are_folded_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal nothing is wider than it, and what is folded stays in its column."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "70")
    _print(FINDINGS)
    lines = [re.sub(r"\x1b\[\d+m", "", line) for line in capsys.readouterr().out.splitlines()]
    assert lines[1:6] == [
        "advice  outgoing ports words words words words words words words words",
        "                       words words",
        "                       → first",
        "                       → second second second second second second",
        "                         second second second second",
    ]
