# ruff: noqa: T201 - a program that prints
"""Run Autobahn's fuzzing client against /echo: python tests/conformance/autobahn.py RUN.SH [ITS OPTIONS]

RUN.SH starts the client: run.sh URL --fast -j 4, and prints a JSON summary. Exit 1 when any case is FAILED, in behavior
or in behaviorClose, when a case did not run, or when the server complained.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.server import ECHO, Server


def main(runner: str, options: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="fastpush-autobahn-") as folder:
        sections = ECHO | {"limits": {"message_bytes": 16 * 1024 * 1024}}
        server = Server(Path(folder), workers=2, sections=sections)
        try:
            command = [runner, server.ws_url(path="/echo"), *(options or ["--fast", "-j", "4"])]
            run = subprocess.run(command, stdout=subprocess.PIPE, check=False)
        finally:
            code = server.stop()
        complaints = [line for line in server.events() if line["level"] in {"warning", "error", "critical"}]
    try:
        summary = json.loads(run.stdout)
    except ValueError:
        print(f"{runner} ended with exit code {run.returncode} and no summary", file=sys.stderr)
        return 1
    totals = summary["totals"]
    print(f"{totals['run']} of {totals['cases']} cases in {summary['seconds']} s")
    for name in ("behavior", "behaviorClose"):
        print(f"  {name}: " + ", ".join(f"{count} {verdict}" for verdict, count in totals[name].items()))
    for name in ("failed", "failedClose", "portErrors", "notRun"):
        if summary[name]:
            print(f"  {name}: {', '.join(summary[name])}")
    for line in complaints:
        print(f"  server: {json.dumps(line)}")
    return int(run.returncode != 0 or code != 0 or bool(complaints))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2:]))
