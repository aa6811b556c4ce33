"""`fastpush check`: find before the start what would fail or be slow."""

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click

from fastpush import config as configuration
from fastpush.child import LISTEN_BACKLOG
from fastpush.cli.common import EXIT_FAILED, EXIT_USAGE, config_option, count_of, fail, load_config
from fastpush.cli.running import ask_server
from fastpush.config import Config, open_keys
from fastpush.control_client import ControlError
from fastpush.errors import ConfigError, StartError
from fastpush.http.auth.python import import_function
from fastpush.supervisor.listeners import bind, first_port, worker_slots
from fastpush.supervisor.runtime import open_runtime

_DESCRIPTORS_WANTED = 65536
_SOMAXCONN = Path("/proc/sys/net/core/somaxconn")


class Finding(NamedTuple):
    """One line of the report. advice: what to do about it, where something could be better."""

    name: str
    text: str
    advice: str = ""


@click.command(short_help="Try the configuration and the host.")
@config_option
def check(config_path: str | None) -> None:
    """Try the configuration, its addresses and directories, and look at the limits of the host.

    Exit code 1 when the server could not start, 2 when the configuration is wrong.
    """
    config = load_config(config_path)
    path = configuration.find(config_path)
    _show(Finding("configuration", str(path) if path else "none found: every key has its default"))
    try:
        running = ask_server(config, {"command": "status"})
    except ControlError:
        problems = [problem for test in (_address, _runtime_directory) if (problem := _try(test, config))]
    else:
        _show(Finding("server", f"runs as process {running['pid']} on {', '.join(running['address'])}"))
        problems = []
    problems += [problem for test in (_functions,) if (problem := _try(test, config))]
    for finding in (_access(config), _workers(config), _descriptors(), _backlog()):
        _show(finding)
    if problems:
        fail("the server would not start", max(problems))


def _show(finding: Finding) -> None:
    click.echo(f"{finding.name:<14} {finding.text}")
    if finding.advice:
        click.echo(" " * 15 + click.style(finding.advice, fg="yellow"))


def _try(test: Callable[[Config], Finding | None], config: Config) -> int:
    """Show what `test` finds; return 0, or the exit code that the server would end with."""
    try:
        finding = test(config)
    except (StartError, ConfigError) as error:
        name = test.__name__.strip("_").replace("_", " ").replace("directory", "dir")
        for line in str(error).splitlines():
            click.echo(f"{name:<14} {click.style('FAILS', fg='red', bold=True)}: {line}")
        return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED
    if finding is not None:
        _show(finding)
    return 0


def _address(config: Config) -> Finding:
    listeners = bind(config)
    listeners.close()
    chosen = ", ".join(listeners.addresses)
    is_any = not first_port(config)
    return Finding("address", "the kernel chooses the port" if is_any else f"{chosen} can be bound")


def _runtime_directory(config: Config) -> Finding:
    runtime = open_runtime(config, first_port(config))
    runtime.close()
    return Finding("runtime dir", f"{runtime.directory} can be used")


def _functions(config: Config) -> Finding | None:
    """Import the user's own functions as a worker would."""
    names = []
    if config.auth.mode == "python":
        names.append((config.auth.python.callable, "[auth.python] callable"))
    if config.push.auth == "python":
        names.append((config.push.callable, "[push] callable"))
    sys.path.insert(0, str(Path.cwd()))  # as a worker does
    for name, key in names:
        import_function(name, key)
    return Finding("functions", f"{', '.join(name for name, _ in names)} can be imported") if names else None


def _access(config: Config) -> Finding:
    keys = open_keys(config)
    if keys:
        return Finding("access", "open: programs of this machine only", f"set {' and '.join(keys)} to serve others")
    return Finding("access", "clients and back-ends prove who they are")


def _workers(config: Config) -> Finding:
    slots, cores = worker_slots(config), len(os.sched_getaffinity(0))
    text = f"{slots}, on {count_of(cores, 'core')}"
    return Finding("workers", text, "more workers than cores cost memory and gain nothing" if slots > cores else "")


def _descriptors() -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= _DESCRIPTORS_WANTED:
        return Finding("descriptors", "enough")
    return Finding("descriptors", f"{hard} a process, one a client", "raise ulimit -Hn, or LimitNOFILE= of the unit")


def _backlog() -> Finding:
    try:
        most = int(_SOMAXCONN.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return Finding("backlog", "the kernel does not tell it")
    advice = f"for bursts of connects: sysctl -w net.core.somaxconn={LISTEN_BACKLOG}" if most < LISTEN_BACKLOG else ""
    return Finding("backlog", f"{most} connects may wait", advice)
