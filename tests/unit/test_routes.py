"""fastpush.state.routes: the two maps are one relation."""

import random

from fastpush.state.routes import Routes


def check(routes: Routes[str], model: set[tuple[str, bytes]]) -> None:
    """Compare everything that can be asked with a set of pairs, and look for what is left behind."""
    subscribers = {subscriber for subscriber, _ in model}
    keys = {key for _, key in model}
    assert len(routes) == len(keys)
    for key in keys | {b"unknown"}:
        found = routes.subscribers(key)
        assert sorted(found) == sorted(s for s, k in model if k == key)
    for subscriber in subscribers | {"unknown"}:
        assert routes.keys(subscriber) == {k for s, k in model if s == subscriber}
    assert set(routes._subscribers) == keys
    assert {subscriber for subscriber, of_it in routes._keys.items() if of_it} == subscribers


def test_random_operations_against_a_set_of_pairs() -> None:
    """Ten thousand random additions, withdrawals and removals leave exactly what a set of pairs holds."""
    chance = random.Random(7)
    routes: Routes[str] = Routes()
    model: set[tuple[str, bytes]] = set()
    for step in range(10_000):
        subscriber, key = chance.choice("abcdefgh"), b"%d" % chance.randrange(40)
        match chance.choices(("add", "discard", "remove"), (10, 8, 0.2))[0]:
            case "add":
                routes.add(subscriber, key)
                model.add((subscriber, key))
            case "discard":
                routes.discard(subscriber, key)
                model.discard((subscriber, key))
            case "remove":
                routes.remove(subscriber)
                model = {pair for pair in model if pair[0] != subscriber}
        if step % 50 == 0:
            check(routes, model)
    check(routes, model)


def test_subscribers_in_the_order_in_which_they_came() -> None:
    """Adding again changes nothing; who leaves and returns is last."""
    routes: Routes[str] = Routes()
    for subscriber in "abcb":
        routes.add(subscriber, b"key")
    assert routes.subscribers(b"key") == ("a", "b", "c")
    routes.discard("a", b"key")
    routes.add("a", b"key")
    assert routes.subscribers(b"key") == ("b", "c", "a")


def test_short_lived_keys_leave_nothing() -> None:
    """A hundred thousand keys that came and went hold no memory, shared tuples included."""
    routes: Routes[str] = Routes()
    for number in range(100_000):
        key = b"%d" % number
        routes.add("a", key)
        routes.add("b", key)
        routes.discard("a", key)
        routes.discard("b", key)
    assert (len(routes), len(routes._subscribers)) == (0, 0)
    routes.remove("a")
    routes.remove("b")
    assert (routes._keys, routes._shared) == ({}, {})


def test_equal_groups_share_one_tuple() -> None:
    """A million keys of the same worker cost one tuple, not a million."""
    routes: Routes[str] = Routes()
    for number in range(1000):
        routes.add("a", b"%d" % number)
    assert len({id(routes.subscribers(b"%d" % number)) for number in range(1000)}) == 1


def test_shared_tuples_are_few_however_groups_change() -> None:
    """Groups of many subscribers in every order do not pile up: only small ones are worth sharing."""
    chance = random.Random(3)
    routes: Routes[int] = Routes()
    for _ in range(5000):
        for subscriber in chance.sample(range(16), 5):
            routes.add(subscriber, b"key")
        for subscriber in range(16):
            routes.discard(subscriber, b"key")
    assert len(routes._shared) <= 16 + 16 * 15
