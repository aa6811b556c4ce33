"""`fastpush listen`: a client on the terminal that prints what is pushed to it."""

import click

from fastpush.cli.common import TEXT, client_tls, config_option, load_config, run, server_url, url_option
from fastpush.http.client import listen as receive


@click.command(short_help="Print what is pushed to a token.")
@click.option("--token", type=TEXT, required=True, envvar="FASTPUSH_TOKEN", help="Token; better in $FASTPUSH_TOKEN.")
@click.option("--event", "events", type=TEXT, required=True, multiple=True, help="Event to register for; repeatable.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N messages.")
@url_option
@config_option
def listen(token: str, events: tuple[str, ...], count: int | None, url: str | None, config_path: str | None) -> None:
    """Register and print each message, one a line, until Ctrl-C or until the server closes."""
    config = load_config(config_path)
    server = server_url(config, url, api=False)
    tls = client_tls(config, url, server)

    async def work() -> None:
        left = count
        async for message in receive(server + config.server.websocket_path, token, events, tls, on_open=_tell):
            click.echo(message)
            if left is not None:
                left -= 1
                if left == 0:
                    return

    def _tell() -> None:
        # Not part of the output, and a script may wait for it.
        click.echo(f"registered for {', '.join(events)}", err=True)

    run(work())
