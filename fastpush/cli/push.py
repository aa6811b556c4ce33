"""`fastpush push` and `fastpush drop`: a back-end's requests from a terminal."""

import asyncio
import re

import click

from fastpush.cli.common import config_option, fail, load_config, server_options, server_url
from fastpush.config import Config
from fastpush.errors import FastpushError
from fastpush.http.client import ApiClient

_INTERVAL = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, None: 1.0}


class Interval(click.ParamType):
    """A time like 500ms, 1s or 2m; a bare number is seconds."""

    name = "interval"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = _INTERVAL.fullmatch(str(value))
        if match is None:
            self.fail(f"{value!r} is not a time; write it like 500ms, 1s or 2m", param, ctx)
        return float(match[1]) * _SECONDS[match[2]]


def _client(config: Config, url: str | None, key: str | None) -> ApiClient:
    return ApiClient(server_url(config, url, api=True), key or next(iter(config.push.keys), None))


@click.command()
@click.argument("user")
@click.argument("event")
@click.argument("message")
@click.option("--every", type=Interval(), metavar="TIME", help="Push again and again, like --every 1s.")
@server_options
@config_option
def push(
    user: str, event: str, message: str, every: float | None, url: str | None, key: str | None, config_path: str | None
) -> None:
    """Push MESSAGE to every connection of USER that is registered for EVENT."""
    config = load_config(config_path)
    body = {"userId": user, "event": event, "message": message}

    async def run() -> None:
        async with _client(config, url, key) as client:
            while True:
                reply = await client.post(config.server.push_path, body)
                unconfirmed = f" ({reply['unconfirmed']} workers did not confirm)" if reply.get("unconfirmed") else ""
                click.echo(f"sent to {reply['sent']} connections{unconfirmed}")
                if every is None:
                    return
                await asyncio.sleep(every)

    _run(run())


@click.command()
@click.argument("user")
@click.argument("event", required=False)
@server_options
@config_option
def drop(user: str, event: str | None, url: str | None, key: str | None, config_path: str | None) -> None:
    """Close every connection of USER, or those registered for EVENT."""
    config = load_config(config_path)
    body = {"userId": user} if event is None else {"userId": user, "event": event}

    async def run() -> None:
        async with _client(config, url, key) as client:
            reply = await client.post(config.server.drop_path, body)
            click.echo(f"closed {reply['sent']} connections")

    _run(run())


def _run(work: "asyncio.Coroutine[None, None, None]") -> None:  # type: ignore[name-defined]
    try:
        asyncio.run(work)
    except FastpushError as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
