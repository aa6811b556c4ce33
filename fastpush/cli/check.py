"""`fastpush check`: find before the start what would fail or be slow."""

import resource
from pathlib import Path

import click

from fastpush.child import LISTEN_BACKLOG
from fastpush.cli.common import EXIT_FAILED, config_option, fail, load_config
from fastpush.config import Config, open_keys
from fastpush.errors import FastpushError
from fastpush.supervisor.listeners import bind, first_port
from fastpush.supervisor.runtime import open_runtime

_DESCRIPTORS_WANTED = 65536
_SOMAXCONN = Path("/proc/sys/net/core/somaxconn")


@click.command()
@config_option
def check(config_path: str | None) -> None:
    """Validate the configuration and look at the host; exit code 1 when the server could not start."""
    config = load_config(config_path)
    click.echo("configuration  ok")
    failed = False
    for name, test in (("address", _address), ("runtime dir", _runtime_directory)):
        try:
            click.echo(f"{name:<14} {test(config)}")
        except FastpushError as error:
            failed = True
            click.echo(f"{name:<14} " + click.style(f"FAILS: {error}", fg="red"))
    for name, verdict, fine in (_authentication(config), _descriptors(), _backlog()):
        click.echo(f"{name:<14} {verdict if fine else click.style(verdict, fg='yellow')}")
    if failed:
        fail("the server would not start", EXIT_FAILED)


def _address(config: Config) -> str:
    listeners = bind(config)
    listeners.close()
    return f"{', '.join(listeners.addresses)} can be bound"


def _runtime_directory(config: Config) -> str:
    runtime = open_runtime(config, first_port(config) or 0)
    runtime.close()
    return f"{runtime.directory} is free and can be written"


def _authentication(config: Config) -> tuple[str, str, bool]:
    open_ = open_keys(config)
    if open_:
        return "access", f"open ({' and '.join(open_)}): programs of this machine only", False
    return "access", "clients and back-ends authenticate", True


def _descriptors() -> tuple[str, str, bool]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _DESCRIPTORS_WANTED:
        return "descriptors", f"{hard} a process: at most that many clients a worker; raise LimitNOFILE", False
    return "descriptors", "enough", True


def _backlog() -> tuple[str, str, bool]:
    most = int(_SOMAXCONN.read_text(encoding="ascii"))
    if most < LISTEN_BACKLOG:
        return "backlog", f"net.core.somaxconn is {most}: set it to {LISTEN_BACKLOG} for bursts of connects", False
    return "backlog", f"net.core.somaxconn is {most}", True
