"""The side-by-side benchmark: runs scenarios, keeps every result, writes RESULTS.md and plots.

python -m bench [--only NAME …] [--servers NAME …] [--rounds N] [--quick] [--all] [--report]
"""

import os
import signal
from pathlib import Path
from types import FrameType

import click

from bench import machine, report
from bench.records import Folder
from bench.run import Options, run, with_needed
from bench.scenarios import SCENARIOS
from bench.servers import CACHE, SERVERS

_HERE = Path(__file__).parent
_ROUNDS = 3
_NAMES = [scenario.name for scenario in SCENARIOS]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", multiple=True, type=click.Choice(_NAMES), help="Run these scenarios; may be repeated.")
@click.option("--all", "everything", is_flag=True, help="Run the long ones as well (churn: ten minutes).")
@click.option("--servers", multiple=True, type=click.Choice(SERVERS), help="Only these servers; may be repeated.")
@click.option("--rounds", default=_ROUNDS, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--quick", is_flag=True, help="Short and small, to see that it runs; kept apart, and no figure of it counts."
)
@click.option("--report", "only_report", is_flag=True, help="Run nothing; write RESULTS.md from what is kept.")
@click.option("--server-core", default=0, show_default=True)
@click.option("--client-core", default=1, show_default=True)
def main(
    only: tuple[str, ...], servers: tuple[str, ...], rounds: int, server_core: int, client_core: int, *,
    everything: bool, quick: bool, only_report: bool,
) -> None:  # fmt: skip
    """Measure fastpush and its peers, and write RESULTS.md."""
    folder = Folder(CACHE / ("results-quick" if quick else "results"))
    target = folder.path if quick else _HERE
    if not only_report:
        signal.signal(signal.SIGTERM, _interrupt)
        os.sched_setaffinity(0, {client_core})  # what this process does must not disturb the server
        options = Options(servers or SERVERS, 1 if quick else rounds, quick, server_core, client_core)
        chosen = [one for one in SCENARIOS if one.name in only or (not only and (everything or one.by_default))]
        folder.write_note("machine", machine.describe())
        try:
            run(with_needed(chosen, folder, options.servers), folder, options, click.echo)
        except KeyboardInterrupt:
            click.echo("interrupted; what was measured is kept (--report)", err=True)
            raise SystemExit(130) from None
    report.write(folder, target)
    click.echo(f"{os.path.relpath(target)}/RESULTS.md")


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
