"""What was pushed, what the server said about it, and what arrived: nothing here knows sockets."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

UNICAST, FAN_OUT = b"u", b"a"
CUT = "cut"  # the connection ended with the push under way: nobody knows


@dataclass(slots=True)
class Push:
    """One push. status: as answered; empty: under way.  sent: of the reply.  received: messages that arrived."""

    number: int
    kind: bytes
    posted: float
    status: str = ""
    sent: int = 0
    unconfirmed: int = 0
    received: int = 0


@dataclass(slots=True)
class Inbox:
    """What one client has received: the newest push of each kind, as order is promised for each alone."""

    newest: dict[bytes, int] = field(default_factory=lambda: {UNICAST: -1, FAN_OUT: -1})


class Ledger:
    """All pushes of a run, numbered from 0.

    missed: connections that a push did not count though they were there before and after it.
    """

    def __init__(self) -> None:
        self.pushes: list[Push] = []
        self.received = 0
        self.duplicates = 0
        self.out_of_order = 0
        self.missed = 0

    def post(self, kind: bytes, now: float) -> Push:
        """Enter the next push."""
        push = Push(len(self.pushes), kind, now)
        self.pushes.append(push)
        return push

    def receive(self, inbox: Inbox, kind: bytes, number: int) -> None:
        """Enter a message that a client received."""
        self.received += 1
        self.pushes[number].received += 1
        newest = inbox.newest[kind]
        if number > newest:
            inbox.newest[kind] = number
        elif number == newest:
            self.duplicates += 1
        else:
            self.out_of_order += 1

    @property
    def lost(self) -> int:
        """Messages that a 200 counts and nobody received."""
        return sum(max(0, push.sent - push.received) for push in self.pushes)

    def summary(self) -> dict[str, Any]:
        """Return the balance."""
        pushes = self.pushes
        taken = [push for push in pushes if push.status == "200"]
        refused = [push for push in pushes if push.status.isdecimal() and push.status not in {"200", "500", "504"}]
        return {
            "pushes": dict(sorted(Counter(push.status or "under way" for push in pushes).items())),
            "sent": sum(push.sent for push in taken),
            "received": self.received,
            "lost": self.lost,
            "missed": self.missed,
            "duplicates": self.duplicates,
            "out_of_order": self.out_of_order,
            "beyond_count": sum(max(0, push.received - push.sent) for push in taken if not push.unconfirmed),
            "received_of_refused": sum(push.received for push in refused),
            "received_of_unknown": self.received - sum(push.received for push in (*taken, *refused)),
            "unconfirmed": sum(1 for push in taken if push.unconfirmed),
        }
