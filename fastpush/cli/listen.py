"""`fastpush listen`: a client on the terminal that prints what is pushed to it."""

import asyncio

import click

from fastpush.cli.common import config_option, fail, load_config, server_url
from fastpush.errors import FastpushError
from fastpush.http.client import listen as receive


@click.command()
@click.option("--token", required=True, envvar="FASTPUSH_TOKEN", help="Token; better in $FASTPUSH_TOKEN.")
@click.option("--event", "events", required=True, multiple=True, help="Event to register for; may be repeated.")
@click.option("--count", type=int, help="End after this many messages.")
@click.option("--url", metavar="URL", help="Server, like http://127.0.0.1:8080 [default: from the configuration].")
@config_option
def listen(token: str, events: tuple[str, ...], count: int | None, url: str | None, config_path: str | None) -> None:
    """Register and print each message, one a line, until Ctrl-C."""
    config = load_config(config_path)
    target = server_url(config, url, api=False) + config.server.websocket_path

    async def run() -> None:
        left = count
        async for message in receive(target, token, events):
            click.echo(message)
            if left is not None:
                left -= 1
                if left <= 0:
                    return

    try:
        asyncio.run(run())
    except FastpushError as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
