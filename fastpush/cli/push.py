"""`fastpush push` and `fastpush drop`: a back-end's requests from a terminal."""

import asyncio

import click

from fastpush.cli.common import (
    INTERVAL,
    TEXT,
    client_tls,
    config_option,
    count_of,
    key_option,
    load_config,
    run,
    server_url,
    url_option,
    warn,
)
from fastpush.config import Config
from fastpush.http.client import ApiClient, ClientError, Outcome


def _client(config: Config, url: str | None, key: str | None) -> ApiClient:
    """Return a client of the server; the configuration's own key never goes to another server than its own."""
    if key is None and url is None and config.push.auth == "keys":
        key = next(iter(config.push.keys), None)
    target = server_url(config, url, api=True)
    return ApiClient(target, key, client_tls(config, url, target))


@click.command(short_help="Push a message to a user.")
@click.argument("user", type=TEXT)
@click.argument("event", type=TEXT)
@click.argument("message", type=TEXT)
@click.option("--every", type=INTERVAL, metavar="TIME", help="Push again and again until Ctrl-C, like --every 1s.")
@url_option
@key_option
@config_option
def push(
    user: str, event: str, message: str, every: float | None, url: str | None, key: str | None, config_path: str | None
) -> None:
    """Push MESSAGE to every connection of USER that is registered for EVENT.

    With --every a server that is away for a while is waited for, once a first push has succeeded.
    """
    config = load_config(config_path)
    body = {"userId": user, "event": event, "message": message}

    async def work() -> None:
        async with _client(config, url, key) as client:
            click.echo(_sent(await client.post(config.server.push_path, body)))
            if every is not None:
                await repeat(client, every)

    async def repeat(client: ApiClient, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            # At a steady pace, however long a push takes; one that was overslept is left out.
            due = max(due + seconds, loop.time())
            await asyncio.sleep(due - loop.time())
            try:
                click.echo(_sent(await client.post(config.server.push_path, body)))
            except ClientError as error:
                if not error.temporary:
                    raise
                warn(str(error))

    run(work())


def _sent(outcome: Outcome) -> str:
    line = f"sent to {count_of(outcome.sent, 'connection')}"
    return f"{line}, {count_of(outcome.unconfirmed, 'worker')} did not confirm" if outcome.unconfirmed else line


@click.command(short_help="Close a user's connections.")
@click.argument("user", type=TEXT)
@click.argument("event", type=TEXT, required=False)
@url_option
@key_option
@config_option
def drop(user: str, event: str | None, url: str | None, key: str | None, config_path: str | None) -> None:
    """Close every connection of USER, or those registered for EVENT."""
    config = load_config(config_path)
    body = {"userId": user} if event is None else {"userId": user, "event": event}

    async def work() -> None:
        async with _client(config, url, key) as client:
            outcome = await client.post(config.server.drop_path, body)
        click.echo(f"closed {count_of(outcome.sent, 'connection')}")

    run(work())
