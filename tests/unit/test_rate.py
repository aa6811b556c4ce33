"""fastpush.state.rate: how often, by a clock that the test tells."""

import pytest

from fastpush.state.rate import TokenBucket


def taken(bucket: TokenBucket, now: float, tries: int) -> int:
    return sum(bucket.take(now) for _ in range(tries))


@pytest.mark.parametrize("per_second", [1, 3, 1000])
def test_a_seconds_worth_at_once(per_second: int) -> None:
    """A new bucket allows exactly one second's worth at once, and after a second's rest again."""
    bucket = TokenBucket(per_second, 100.0)
    assert taken(bucket, 100.0, per_second + 5) == per_second
    assert taken(bucket, 101.0, per_second + 5) == per_second


def test_rest_is_not_saved_up() -> None:
    """An hour's rest allows no more than a second's."""
    bucket = TokenBucket(10, 0.0)
    assert taken(bucket, 3600.0, 100) == 10


def test_long_run() -> None:
    """Whoever tries all the time gets the rate, and the burst at the start."""
    bucket = TokenBucket(10, 0.0)
    assert sum(bucket.take(step / 1000) for step in range(10_000)) == pytest.approx(10 + 100, abs=1)


def test_who_is_refused_pays_nothing() -> None:
    """Tries that are refused do not postpone the next that is allowed."""
    bucket = TokenBucket(1, 0.0)
    assert bucket.take(0.0)
    assert not any(bucket.take(step / 100) for step in range(100))
    assert bucket.take(1.01)
