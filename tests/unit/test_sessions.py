"""fastpush.state.sessions: operators' sessions and attempts, by a clock that the test tells."""

import pickle

import pytest

from fastpush.state import sessions
from fastpush.state.sessions import (
    ADDRESS_ATTEMPTS,
    ADDRESSES_MAX,
    ATTEMPTS,
    ATTEMPTS_SECONDS,
    FIRST_WAIT_SECONDS,
    FORGOTTEN_SECONDS,
    IDLE_SECONDS,
    LONGEST_WAIT_SECONDS,
    SESSIONS_MAX,
    Login,
    LoginRefused,
    Sessions,
)

KEY = "the key of operators ✓"
HERE = "192.0.2.1"
LIFE_SECONDS = 3 * IDLE_SECONDS


def host() -> Sessions:
    return Sessions(KEY, LIFE_SECONDS)


def logged_in(host: Sessions, now: float = 0, address: str = HERE) -> Login:
    login = host.login(KEY, address, now)
    assert isinstance(login, Login)
    return login


def refused(host: Sessions, now: float, address: str = HERE, key: str = "no") -> float:
    """Return for how long an attempt is told to wait; 0: the key was looked at, and is wrong."""
    outcome = host.login(key, address, now)
    assert isinstance(outcome, LoginRefused)
    return outcome.retry_seconds


def test_session() -> None:
    """Who shows the key has a session until it logs out; ids and CSRF tokens are new and long each time."""
    host = Sessions(KEY, LIFE_SECONDS)
    one, other = logged_in(host), logged_in(host)
    assert len({*one, *other}) == 4 and all(len(text) == 43 for text in (*one, *other))
    assert host.check(one.id, 1) == one.csrf and host.check(other.id, 1) == other.csrf
    host.logout(one.id)
    host.logout(one.id)
    assert host.check(one.id, 1) is None and host.check(other.id, 1) == other.csrf


@pytest.mark.parametrize("key", ["", "the key of operators", KEY + " ", "\udc80", "x" * 100_000])
def test_wrong_key(key: str) -> None:
    """Anything but the key, byte for byte, is refused."""
    assert refused(host(), 0, key=key) == 0


def test_without_a_key() -> None:
    """While there is no key nobody logs in, and no empty key does."""
    host = Sessions("", LIFE_SECONDS)
    assert refused(host, 0, key="") == 0 and len(host) == 0


@pytest.mark.parametrize("made_up", ["", "x", "A" * 43])
def test_ids_are_given_not_taken(made_up: str) -> None:
    """An id that was never given is no session, and a login never takes one over."""
    host = Sessions(KEY, LIFE_SECONDS)
    assert host.check(made_up, 0) is None
    assert logged_in(host).id != made_up and host.check(made_up, 0) is None


def test_sessions_end() -> None:
    """A session ends an hour after its last use, and session_seconds after its login however much it is used."""
    idle, busy = host(), host()
    session = logged_in(idle).id
    assert idle.check(session, IDLE_SECONDS - 1) and idle.check(session, 2 * IDLE_SECONDS - 2)
    assert idle.check(session, 3 * IDLE_SECONDS - 2) is None and len(idle) == 0
    session = logged_in(busy).id
    used = [busy.check(session, now) for now in range(0, 2 * round(LIFE_SECONDS), 60)]
    assert used.index(None) * 60 == LIFE_SECONDS and not any(used[used.index(None) :])


def test_shorter_life() -> None:
    """A shorter session_seconds holds for sessions that there are."""
    host = Sessions(KEY, LIFE_SECONDS)
    session = logged_in(host).id
    host.configure(KEY, 60)
    assert host.check(session, 59) and host.check(session, 60) is None


@pytest.mark.parametrize("key", ["another key of operators", ""])
def test_another_key_ends_sessions(key: str) -> None:
    """With another key, or none, all sessions end and the old key is wrong; with the same one they stay."""
    host = Sessions(KEY, LIFE_SECONDS)
    session = logged_in(host).id
    host.configure(KEY, LIFE_SECONDS)
    assert host.check(session, 0)
    host.configure(key, LIFE_SECONDS)
    assert host.check(session, 0) is None and len(host) == 0
    assert refused(host, 0, key=KEY) == 0


def test_sessions_are_bounded() -> None:
    """Beyond SESSIONS_MAX the oldest session ends."""
    host = Sessions(KEY, LIFE_SECONDS)
    ids = [logged_in(host, now).id for now in range(SESSIONS_MAX + 1)]
    assert len(host) == SESSIONS_MAX
    assert [bool(host.check(each, SESSIONS_MAX)) for each in ids] == [False] + [True] * SESSIONS_MAX


def test_address_waits() -> None:
    """After so many wrong keys an address waits, for the right key too, and twice as long after each one more."""
    host = Sessions(KEY, LIFE_SECONDS)
    assert [refused(host, 0) for _ in range(ADDRESS_ATTEMPTS)] == [0] * ADDRESS_ATTEMPTS
    now, waits = 0.0, []
    for _ in range(8):
        wait = refused(host, now, key=KEY)
        assert refused(host, now + wait - 1) == 1, "trying meanwhile changes nothing"
        now += wait
        waits.append(wait)
        assert refused(host, now) == 0
    expected = [FIRST_WAIT_SECONDS * 2**number for number in range(8)]
    assert waits == [min(wait, LONGEST_WAIT_SECONDS) for wait in expected]
    logged_in(host, now, "192.0.2.2")


def test_right_key_starts_anew() -> None:
    """After a login an address has all its attempts again, and so after an hour without a wrong key."""
    host = Sessions(KEY, LIFE_SECONDS)
    for now in (0.0, 61.0):
        for _ in range(ADDRESS_ATTEMPTS - 1):
            assert refused(host, now) == 0
        logged_in(host, now)
    for now in (200.0, 201.0 + FORGOTTEN_SECONDS):
        for _ in range(ADDRESS_ATTEMPTS):
            assert refused(host, now) == 0
        assert refused(host, now, key=KEY) == FIRST_WAIT_SECONDS


def test_all_addresses_together() -> None:
    """Wrong keys from many addresses are bounded too: then nobody logs in for the rest of the minute."""
    host = Sessions(KEY, LIFE_SECONDS)
    session = logged_in(host)
    for number in range(ATTEMPTS):
        assert refused(host, number, f"2001:db8:{number}::/64") == 0
    assert refused(host, ATTEMPTS, "198.51.100.1", KEY) == ATTEMPTS_SECONDS - ATTEMPTS
    assert host.check(session.id, ATTEMPTS) == session.csrf, "who is logged in notices nothing"
    logged_in(host, ATTEMPTS_SECONDS, "198.51.100.1")
    assert refused(host, ATTEMPTS_SECONDS, "198.51.100.2") == 0
    assert refused(host, ATTEMPTS_SECONDS, "198.51.100.3", KEY) == 1, "one place a second becomes free, as they came"


def test_most_attempts_of_an_hour() -> None:
    """Whoever tries all the time, from as many addresses as it likes, has no more than ATTEMPTS a minute looked at."""
    host = Sessions(KEY, LIFE_SECONDS)
    looked_at = sum(refused(host, step / 10, f"address {step}") == 0 for step in range(36_000))
    assert looked_at == ATTEMPTS * 60


def test_addresses_are_bounded() -> None:
    """Beyond ADDRESSES_MAX the address that was tried from longest ago is forgotten."""
    host = Sessions(KEY, LIFE_SECONDS)
    for number in range(ADDRESSES_MAX + 1):
        assert refused(host, number * 10.0, f"address {number}") == 0
    assert len(host._addresses) == ADDRESSES_MAX and "address 0" not in host._addresses


def test_secrets_are_not_kept() -> None:
    """Of key and ids only digests are kept."""
    host = Sessions(KEY, LIFE_SECONDS)
    login = logged_in(host)
    kept = pickle.dumps([host._key, list(host._sessions)])
    assert KEY.encode() not in kept and login.id.encode() not in kept
    assert sessions._digest(login.id) in kept
