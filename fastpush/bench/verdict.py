"""Sentences about a run that its reader has to know: whose limit the figures are."""

from fastpush.bench.plan import Plan
from fastpush.bench.results import ClientResult, LoadResult, OpeningResult, ServerResult

_BUSY = 0.9
_LATE_SHARE = 0.01


def notes(
    plan: Plan, loads: list[LoadResult], opening: OpeningResult, server: ServerResult | None, client: ClientResult
) -> list[str]:
    """Return one sentence for each thing that limits what the figures say."""
    found = []
    if opening.failed:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in opening.failures.items())
        found.append(f"{opening.failed} of {plan.connections + plan.background_users} connections failed ({reasons}).")
    busy = max(client.busy, default=0.0)
    most = max((process.cpu_share for process in server.processes), default=0.0) if server is not None else None
    if busy > _BUSY:
        if most is None:
            found.append(f"The client may have been the bottleneck: its busiest process was {busy:.0%} busy.")
        elif most <= _BUSY:
            found.append(
                f"The client, not the server, was the bottleneck: its busiest process was {busy:.0%} busy, the "
                f"server's {most:.0%}. Use more --processes."
            )
    for load in loads:
        sent = sum(load.replies.values())
        if load.late > sent * _LATE_SHARE:
            found.append(
                f"The client fell behind its schedule ({load.name}): {load.late} of {sent} pushes went out more than "
                f"1 ms late (up to {load.late_ms_max:.1f} ms), which is part of their latency."
            )
        if load.unsent:
            found.append(f"{load.unsent} pushes ({load.name}) were due and not sent: every publisher awaited a reply.")
        if load.given_up:
            found.append(f"{load.given_up} pushes did not reach all receivers and were not waited for ({load.name}).")
    return found
