"""`fastpush check`: find before the start what would fail or be slow."""

import contextlib
import json
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from fastpush import config as configuration
from fastpush.applications.loading import load, load_class
from fastpush.cli.common import config_option, count_of, fail, read_config
from fastpush.cli.host import Finding, Host, examine, listen_ports
from fastpush.cli.running import ask_server
from fastpush.config import Application, Config, addresses, check_exposure, is_loopback, open_keys
from fastpush.config.tls import describe_certificate
from fastpush.control_client import ControlError
from fastpush.errors import EXIT_FAILED, EXIT_USAGE, ConfigError, StartError
from fastpush.http.auth.python import import_function
from fastpush.supervisor.listeners import bind, first_port, worker_slots
from fastpush.supervisor.runtime import listen_unix, open_runtime

CERTIFICATE_DAYS = 30
_ADMISSION = {
    "no": "clients with a token",
    "loopback": "clients with a token, and of this machine without",
    "everywhere": "everybody, without a token",
}
_COLOURS = {"ok": "green", "advice": "yellow", "fails": "red"}
_NAME_WIDTH = 14
_INDENT = " " * (len("advice  ") + _NAME_WIDTH + 1)
_NARROWEST = 60


@click.command(short_help="Try the configuration and the host.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@config_option
def check(as_json: bool, config_path: str | None) -> None:
    """Try the configuration, its addresses, files and directories, and look at the limits of the host.

    Exit code 0 with or without advice, 1 when the server could not start or serve, 2 when the configuration is wrong.
    """
    try:
        config = read_config(config_path)
    except ConfigError as error:
        if not as_json:
            fail(str(error), EXIT_USAGE)
        findings = [Finding("configuration", str(error), exit_code=EXIT_USAGE)]
    else:
        path = configuration.find(config_path)
        findings = [Finding("configuration", str(path) if path else "none found: every key has its default")]
        findings += _look(config)
    code = max(finding.exit_code for finding in findings)
    if as_json:
        click.echo(json.dumps({"exit_code": code, "findings": list(map(_described, findings))}))
        raise SystemExit(code)
    _print(findings)
    if code:
        fail("the server would not start or serve", code)


def _look(config: Config) -> list[Finding]:
    """Try everything, beside a server that runs already only what does not need its place."""
    try:
        running = ask_server(config, {"command": "status"})
    except ControlError:
        host = Host.read()
        places = [_try("address", _address, config, host), _try("runtime dir", _runtime_directory, config)]
    else:
        host = Host.read(process=str(running["pid"]))
        places = [_server(config, running)]
    sys.path.insert(0, str(Path.cwd()))  # as a worker does
    found = [
        *places,
        _try("access", _access, config),
        _try("tls", _certificate, config, time.time()),
        _try("functions", _functions, config),
        *(_try("application", _application, *entry) for entry in enumerate(config.application, 1)),
        _try("channels", _channels, config),
        _operators(config),
        _log_file(config),
    ]
    return [finding for finding in found if finding] + examine(config, host)


def _try(name: str, test: Callable[..., Finding | None], *arguments: Any) -> Finding | None:
    """Return what `test` finds; what it raises is what a server would end with."""
    try:
        return test(*arguments)
    except ConfigError as error:
        return Finding(name, str(error), exit_code=EXIT_USAGE)
    except StartError as error:
        return Finding(name, str(error), exit_code=EXIT_FAILED)


# What is tried


def _server(config: Config, running: dict[str, Any]) -> Finding:
    """Beside a running server, tell what a restart would change of it."""
    text = f"runs as process {running['pid']} on {', '.join(running['address'])}"
    ports = {int(address.rpartition(":")[2]) for address in running["address"]}
    slots = {process["slot"] for process in running["processes"]}
    if 0 not in (named := listen_ports(config)) and set(named) != ports:
        changed = "[server] listen and [api] listen"
    elif max(slots) + 1 != worker_slots(config):
        changed = "[server] workers"
    else:
        return Finding("server", text)
    return Finding("server", text, f"{changed} of the configuration differ: a restart takes them over")


def _address(config: Config, host: Host) -> Finding:
    listeners = bind(config)
    listeners.close()
    if not first_port(config):
        return Finding("address", "the kernel chooses the port")
    text = f"{', '.join(listeners.addresses)} can be bound"
    low = [str(port) for port in listen_ports(config) if 0 < port < host.privileged_below]
    if not low or os.geteuid():
        return Finding("address", text)
    advice = f"by root; a service of another user gets {' and '.join(low)} from fastpush.socket, a systemd socket unit"
    return Finding("address", text, advice)


def _runtime_directory(config: Config) -> Finding:
    runtime = open_runtime(config, first_port(config))
    try:
        listen_unix(runtime.bus_path).close()
    finally:
        runtime.close()
    return Finding("runtime dir", f"{runtime.directory} can be used")


def _access(config: Config) -> Finding:
    check_exposure(config)
    if keys := open_keys(config):
        return Finding("access", "open: programs of this machine only", f"set {' and '.join(keys)} to serve others")
    return Finding("access", "clients and back-ends prove who they are")


def _certificate(config: Config, now: float) -> Finding | None:
    """Judge the certificate's dates and names; that its files can be used, the configuration's own check has said."""
    if not config.tls.certificate:
        return None
    certificate = describe_certificate(config.tls.certificate)
    names = ", ".join(certificate.names) or "no name"
    today = datetime.fromtimestamp(now, UTC)
    begin, end = f"{certificate.not_before:%Y-%m-%d %H:%M} UTC", f"{certificate.not_after:%Y-%m-%d %H:%M} UTC"
    signed = ", self-signed" if certificate.is_self_signed else ""
    if today >= certificate.not_after:
        text = f"the certificate for {names} expired at {end}: every client refuses it"
        return Finding("tls", text, "a reload takes a new one over", EXIT_FAILED)
    if today < certificate.not_before:
        text = f"the certificate for {names} is valid from {begin} only: every client refuses it"
        return Finding("tls", text, "is the clock of this host right?", EXIT_FAILED)
    days = (certificate.not_after - today).days
    text = f"certificate for {names}{signed}, valid until {end}, {count_of(days, 'day')} from now"
    if not certificate.names:
        return Finding("tls", text, "clients want the host's name among its subject alternative names")
    return Finding("tls", text, "renew it; a reload takes the new one over" if days < CERTIFICATE_DAYS else "")


def _functions(config: Config) -> Finding | None:
    """Import the user's own functions as a worker would."""
    names = []
    if config.auth.mode == "python":
        names.append((config.auth.python.callable, "[auth.python] callable"))
    if config.push.auth == "python":
        names.append((config.push.callable, "[push] callable"))
    for name, key in names:
        _imported(name, key)
    return Finding("functions", f"{', '.join(name for name, _ in names)} can be imported") if names else None


def _application(number: int, application: Application) -> Finding:
    """Import an application's class as a worker would, have it judge its options, and tell who may come in."""
    with contextlib.redirect_stdout(sys.stderr):
        load(number, application)
    return Finding("application", f"{application.path}: {application.handler}, for {_ADMISSION[application.anonymous]}")


def _channels(config: Config) -> Finding | None:
    """Import the handler of [client] as a worker would, and tell what channels there are."""
    if config.client.handler:
        with contextlib.redirect_stdout(sys.stderr):
            load_class("[client]", config.client.handler, config.client.options)
    if not config.channels:
        return None
    closed = [name for name, namespace in config.channels.items() if namespace.subscribe == "token"]
    advice = ""
    if closed and config.auth.mode != "jwt":
        advice = (
            f'[channels.{closed[0]}] subscribe = "token" needs [auth] mode = "jwt": with "{config.auth.mode}" nobody '
            "can subscribe but whom the server subscribes"
        )
    text = f"namespaces {', '.join(config.channels)}, for {_ADMISSION[config.client.anonymous]}"
    return Finding("channels", text, advice)


def _operators(config: Config) -> Finding | None:
    """Tell who may look inside, and whether their key would cross a network as it is."""
    if not config.admin.key:
        return None
    text = f"the page /admin, to look{', push, drain and restart' if config.admin.actions else ''}"
    is_tls = config.tls.certificate and (config.tls.api or not config.api.listen)
    reachable = [host for host, _ in addresses(config.api.listen or config.server.listen) if not is_loopback(host)]
    advice = "without TLS the key can be read on its way: set [tls] certificate, or [api] listen to a loopback address"
    return Finding("operators", text, advice if reachable and not is_tls else "")


def _imported(name: str, key: str) -> Any:
    """Return what "package.module:name" names; what a module prints when it is imported is not part of the report."""
    with contextlib.redirect_stdout(sys.stderr):
        return import_function(name, key)


def _log_file(config: Config) -> Finding | None:
    """Ask whether the log file could be opened; not opened here, it would belong to whoever checks."""
    if not config.log.file:
        return None
    path = Path(config.log.file)
    place = path if path.exists() else path.parent
    if path.is_dir() or not os.access(place, os.W_OK, effective_ids=True):
        reason = "is a folder" if path.is_dir() else f"{place} is not writable" if place.exists() else "has no folder"
        return Finding("log", f"[log] file {path}: {reason}", exit_code=EXIT_FAILED)
    return Finding("log", f"{path} can be written")


# How it is shown


def _described(finding: Finding) -> dict[str, str]:
    return {
        "name": finding.name,
        "severity": finding.severity,
        "text": finding.text,
        "advice": finding.advice,
    }


def _print(findings: Iterable[Finding]) -> None:
    width = max(_NARROWEST, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 0
    for finding in findings:
        severity = finding.severity
        mark = click.style(f"{'FAILS' if severity == 'fails' else severity:<8}", _COLOURS[severity])
        first, *more = _lines(finding.text, width)
        click.echo(f"{mark}{finding.name:<{_NAME_WIDTH}} {first}")
        for line in more:
            click.echo(_INDENT + line)
        for advice in finding.advice.splitlines():
            first, *more = _lines(advice, width - len("→ "))
            click.echo(f"{_INDENT}→ {first}")
            for line in more:
                click.echo(f"{_INDENT}  {line}")


def _lines(text: str, width: int) -> list[str]:
    """Return the lines of a text, folded where a terminal of this width shows it; wrapped nowhere else."""
    lines = text.splitlines()
    if width <= 0:
        return lines
    fold = textwrap.TextWrapper(width - len(_INDENT), break_long_words=False, break_on_hyphens=False)
    return [part for line in lines for part in fold.wrap(line)]
