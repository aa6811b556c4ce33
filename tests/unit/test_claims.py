"""fastpush.state.claims: one connection a name, the newest; a loser's end never costs the winner its name."""

import random

import pytest

from fastpush.state.claims import Claim, Claims


def held(claims: Claims[str], name: bytes) -> tuple[str, int] | None:
    """Who has a name: holder and connection."""
    claim = claims._claims.get(name)
    return None if claim is None else (claim.holder, claim.connection)


def test_the_newest_wins_and_the_older_is_named() -> None:
    """The first claim is nobody's loss; each later one returns its predecessor, whatever its holder."""
    claims: Claims[str] = Claims()
    first, second, third = Claim("one", 1, 1), Claim("two", 1, 2), Claim("two", 9, 3)
    assert claims.claim(b"n", first) is None
    assert claims.claim(b"n", second) == first
    assert claims.claim(b"n", third) == second
    assert claims.claim(b"m", Claim("one", 1, 4)) is None, "names are of their own"
    assert held(claims, b"n") == ("two", 9) and len(claims) == 2


def test_what_a_loser_does_at_its_end_touches_nothing() -> None:
    """Its release, and the end of its holder, leave the name to the winner; the winner's own gives it back."""
    claims: Claims[str] = Claims()
    claims.claim(b"n", Claim("one", 1, 1))
    claims.claim(b"n", Claim("two", 1, 2))
    claims.release("one", b"n", 1)
    claims.release("two", b"n", 2)
    claims.forget("one")
    assert held(claims, b"n") == ("two", 1)
    claims.release("two", b"n", 1)
    assert len(claims) == 0
    claims.release("two", b"n", 1)
    claims.release("nobody", b"n", 1)


def test_the_same_connection_again_loses_to_nobody() -> None:
    """Who claims what it has stays, by its newer claim."""
    claims: Claims[str] = Claims()
    assert claims.claim(b"n", Claim("one", 1, 1)) is None
    assert claims.claim(b"n", Claim("one", 1, 2)) is None
    assert claims.claim(b"n", Claim("two", 1, 3)) == Claim("one", 1, 2)


def test_a_claim_that_is_told_again_is_the_same() -> None:
    """A worker that has come back, as another holder, has what it had; forgetting the old one takes nothing away."""
    claims: Claims[str] = Claims()
    claims.claim(b"n", Claim("lost", 1, 5))
    assert claims.claim(b"n", Claim("back", 1, 5)) is None
    claims.forget("lost")
    assert held(claims, b"n") == ("back", 1)


def test_an_older_claim_told_late_has_to_go() -> None:
    """A returning worker whose connection was replaced meanwhile is told so, and the newer one stays."""
    claims: Claims[str] = Claims()
    claims.claim(b"n", Claim("new", 7, 6))
    late = Claim("back", 1, 5)
    assert claims.claim(b"n", late) == late
    assert held(claims, b"n") == ("new", 7)
    claims.release("back", b"n", 1)
    claims.forget("back")
    assert held(claims, b"n") == ("new", 7)


def test_forgetting_a_holder_frees_all_its_names() -> None:
    """And only those that it still has."""
    claims: Claims[str] = Claims()
    for number in range(10):
        claims.claim(b"%d" % number, Claim("one", number, number + 1))
    claims.claim(b"3", Claim("two", 1, 20))
    claims.forget("one")
    assert len(claims) == 1 and held(claims, b"3") == ("two", 1)
    claims.forget("one")


@pytest.mark.parametrize("seed", range(40))
def test_against_a_list_of_claims(seed: int) -> None:
    """Whatever order claims, releases and ends of holders come in: the holder is the newest connection that has claimed
    and neither released nor ended, and was not replaced; exactly one is told to go for every two that meet.
    """
    chance = random.Random(seed)
    claims: Claims[str] = Claims()
    names, holders = [b"a", b"b", b"c"], ["w1", "w2", "w3"]
    model: dict[bytes, tuple[str, int]] = {}
    for number in range(1, 400):
        name, holder, connection = chance.choice(names), chance.choice(holders), chance.randrange(4)
        match chance.randrange(6):
            case 0 | 1 | 2:
                loser = claims.claim(name, Claim(holder, connection, number))
                before = model.get(name)
                model[name] = (holder, connection)
                replaced = before is not None and before != (holder, connection)
                assert (None if loser is None else (loser.holder, loser.connection)) == (before if replaced else None)
            case 3 | 4:
                claims.release(holder, name, connection)
                if model.get(name) == (holder, connection):
                    del model[name]
            case _:
                claims.forget(holder)
                model = {name: owner for name, owner in model.items() if owner[0] != holder}
        assert {name: held(claims, name) for name in names if held(claims, name)} == model
        assert len(claims) == len(model)
        assert {name for kept in claims._names.values() for name in kept} == set(model), "nothing is left behind"
