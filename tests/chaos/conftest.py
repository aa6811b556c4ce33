"""Checks in load.py say what they found, as those in tests do; and for how long the machine stood still meanwhile."""

from collections.abc import Iterator

import pytest

from tests.standstill import Standstill

pytest.register_assert_rewrite("tests.chaos.load")


@pytest.fixture
def standstill() -> Iterator[Standstill]:
    """For how long the machine stood still during the test."""
    with Standstill() as watching:
        yield watching
