"""When a slot gets its next process, and when restarting has become pointless. No I/O; time is an argument."""

from collections import deque
from dataclasses import dataclass, field

from fastpush.child import Listener
from fastpush.supervisor.process import Process

QUIET_SECONDS = 10.0  # a slot without a death for this long starts again from an immediate restart
BACK_OFF_FIRST_SECONDS = 0.25
BACK_OFF_MAX_SECONDS = 5.0
CRASH_DEATHS = 5
CRASH_SECONDS = 30.0

BROKER = -1  # the broker's slot: no listeners, nobody can cover it


@dataclass(slots=True)
class Slot:
    """A place for one process, which its listeners outlive.

    due:      when its next process is to be started; None: it has one.
    coverers: other slots' processes that accept from these listeners meanwhile.
    opened:   it has served, or tried to: from then on it is never left unserved. (Before, the server is starting.)
    restarts: processes started for ones that had ended; a successor that takes over from a living one is none.
    """

    number: int
    listeners: tuple[Listener, ...] = ()
    due: float | None = 0.0
    coverers: list[Process] = field(default_factory=list)
    opened: bool = False
    restarts: int = -1
    _streak: int = 0
    _died_at: float = 0.0

    def died(self, now: float, *, found_hanging: bool = False) -> None:
        """Decide when the next process starts: at once after a first death, later after each further one.

        found_hanging: this took its time already, and whoever covers may hang too: at once.
        """
        if found_hanging:
            self.opened = True
            self.due = now
            return
        self._streak = self._streak + 1 if self._streak and now - self._died_at < QUIET_SECONDS else 1
        self._died_at = now
        self.opened = True
        self.due = now
        if self.number != BROKER and self._streak > 1:
            self.due += min(BACK_OFF_MAX_SECONDS, BACK_OFF_FIRST_SECONDS * 2 ** min(self._streak - 2, 16))

    def started(self) -> None:
        """The process that it was without has been forked."""
        self.due = None
        self.restarts += 1

    def failed(self, now: float) -> None:
        """No process could be forked: try again later."""
        self.due = now + BACK_OFF_FIRST_SECONDS


@dataclass(slots=True)
class CrashLoop:
    """Notices that processes of a role die faster than any of them gets ready."""

    _deaths: dict[str, deque[float]] = field(default_factory=dict)

    def died_before_ready(self, role: str, now: float) -> bool:
        """Count a death; True when it is the last that is tolerated."""
        deaths = self._deaths.setdefault(role, deque(maxlen=CRASH_DEATHS))
        deaths.append(now)
        return len(deaths) == CRASH_DEATHS and now - deaths[0] <= CRASH_SECONDS
