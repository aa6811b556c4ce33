"""Operators' sessions at the administration page: who has shown the key, and how often others may try.

The broker keeps them for all workers. A session is known by a random id that only its browser has: what is kept is
a digest, so that no dump of memory lets anybody in. Wrong keys are counted, by address and in all; while there were
too many the right one is refused too, or waiting would tell it apart. Whoever is logged in notices nothing of that.
"""

import hmac
import secrets
from collections import OrderedDict, deque
from hashlib import sha256
from typing import NamedTuple

SESSIONS_MAX = 100  # beyond it the oldest ends
IDLE_SECONDS = 3600.0
ADDRESS_ATTEMPTS = 5  # wrong keys of one address; each one more has it wait twice as long
FIRST_WAIT_SECONDS = 60.0
LONGEST_WAIT_SECONDS = 900.0
FORGOTTEN_SECONDS = 3600.0  # without another wrong key an address is as good as new
ADDRESSES_MAX = 1000  # beyond it the oldest is forgotten; the bound over all holds anyway
ATTEMPTS = 30  # wrong keys of all addresses together, within ATTEMPTS_SECONDS
ATTEMPTS_SECONDS = 60.0
_TOKEN_BYTES = 32


class Login(NamedTuple):
    """A session that has begun. id: for the browser's cookie alone.  csrf: what its page shows with each action."""

    id: str
    csrf: str


class LoginRefused(NamedTuple):
    """Why there is no session. retry_seconds: 0 for a wrong key, else how long not even the right one is taken."""

    reason: str
    retry_seconds: float


class _Session:
    """csrf: see Login.  began_seconds, seen_seconds: when it began, and when it was last used."""

    __slots__ = ("began_seconds", "csrf", "seen_seconds")

    def __init__(self, csrf: str, now: float) -> None:
        self.csrf = csrf
        self.began_seconds = self.seen_seconds = now


class _Address(NamedTuple):
    """wrong: keys so far.  tried_seconds: the last one.  blocked_until: nothing is taken before."""

    wrong: int
    tried_seconds: float
    blocked_until: float


class Sessions:
    """All sessions of the host. Time is told, in seconds of a clock that never goes back.

    key: what operators log in with; "": nobody can.  session_seconds: after so long a session ends in any case.
    """

    def __init__(self, key: str, session_seconds: float) -> None:
        self._key = _digest(key) if key else b""
        self._session_seconds = session_seconds
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()  # by the digest of the id, the oldest first
        self._addresses: OrderedDict[str, _Address] = OrderedDict()  # the one that was tried from longest ago first
        self._wrong: deque[float] = deque(maxlen=ATTEMPTS)

    def configure(self, key: str, session_seconds: float) -> None:
        """Go by these from now on; another key ends all sessions."""
        digest = _digest(key) if key else b""
        if digest != self._key:
            self._sessions.clear()
        self._key = digest
        self._session_seconds = session_seconds

    def __len__(self) -> int:
        """Return how many sessions are kept, those among them that have expired and were not asked for since."""
        return len(self._sessions)

    def login(self, key: str, address: str, now: float) -> Login | LoginRefused:
        """Begin a session for who shows the key.

        address: what attempts are counted by: of IPv6 a network, for single addresses in it cost nothing.
        """
        wait_seconds = self._wait_seconds(address, now)
        if wait_seconds > 0:
            return LoginRefused("too many wrong keys: try again later", wait_seconds)
        if not self._key or not hmac.compare_digest(_digest(key), self._key):
            self._count_wrong(address, now)
            return LoginRefused("wrong key", 0)
        self._addresses.pop(address, None)
        login = Login(secrets.token_urlsafe(_TOKEN_BYTES), secrets.token_urlsafe(_TOKEN_BYTES))
        self._sessions[_digest(login.id)] = _Session(login.csrf, now)
        if len(self._sessions) > SESSIONS_MAX:
            self._sessions.popitem(last=False)
        return login

    def check(self, session_id: str, now: float) -> str | None:
        """Return the CSRF token of a session, which is used now; None: there is none, or it has ended."""
        name = _digest(session_id)
        session = self._sessions.get(name)
        if session is None:
            return None
        if now - session.began_seconds >= self._session_seconds or now - session.seen_seconds >= IDLE_SECONDS:
            del self._sessions[name]
            return None
        session.seen_seconds = now
        return session.csrf

    def logout(self, session_id: str) -> None:
        """End a session; one that there is not changes nothing."""
        self._sessions.pop(_digest(session_id), None)

    def _wait_seconds(self, address: str, now: float) -> float:
        """Return how long nothing is taken from an address."""
        while self._wrong and now - self._wrong[0] >= ATTEMPTS_SECONDS:
            self._wrong.popleft()
        of_all = self._wrong[0] + ATTEMPTS_SECONDS - now if len(self._wrong) == ATTEMPTS else 0.0
        known = self._addresses.get(address)
        return max(of_all, 0.0 if known is None else known.blocked_until - now)

    def _count_wrong(self, address: str, now: float) -> None:
        self._wrong.append(now)
        known = self._addresses.pop(address, None)
        wrong = 1 if known is None or now - known.tried_seconds >= FORGOTTEN_SECONDS else known.wrong + 1
        self._addresses[address] = _Address(wrong, now, now + _wait(wrong))
        if len(self._addresses) > ADDRESSES_MAX:
            self._addresses.popitem(last=False)


def _wait(wrong: int) -> float:
    """Return how long an address waits after so many wrong keys."""
    beyond = wrong - ADDRESS_ATTEMPTS
    return 0.0 if beyond < 0 else min(FIRST_WAIT_SECONDS * 2.0 ** min(beyond, 10), LONGEST_WAIT_SECONDS)


def _digest(text: str) -> bytes:
    """Return what is kept of a secret, and compared: of one length, whatever is shown."""
    return sha256(text.encode("utf-8", "surrogatepass")).digest()
