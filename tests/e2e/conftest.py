"""A server under load, for tests of live change."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.load.driver import show
from tests.load.live import Live


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Live]]:
    """The server and load of all tests; one that a test has broken is replaced."""
    kept: dict[str, Live] = {}
    yield kept
    for live in kept.values():
        live.__exit__(None, None, None)


@pytest.fixture
def live(
    shared: dict[str, Live], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Live]:
    """A server under load with the base settings; after the test they are back, and the load has noticed nothing."""
    if not shared:
        shared["live"] = Live(tmp_path_factory.mktemp("live")).__enter__()
    live = shared.pop("live")
    with ExitStack() as closing:
        closing.callback(live.__exit__, None, None, None)
        yield live
        live.restore()
        show(request.node.name, live.settle())
        closing.pop_all()
        shared["live"] = live
