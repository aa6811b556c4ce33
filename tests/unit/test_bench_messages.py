"""The load tester's messages, and its check of what receivers see."""

from fastpush.bench.messages import MESSAGE_BYTES_MIN, Faults, Stream, find, message, stamp

CLEAN = Faults()


def stamps(*pairs: tuple[int, int]) -> list[bytes]:
    """Stamps of (publisher, sequence)."""
    return [stamp(publisher, sequence, 5) for publisher, sequence in pairs]


def of_one(*sequences: int) -> list[bytes]:
    return stamps(*((1, sequence) for sequence in sequences))


class Follower:
    """One that follows a stream, as a connection does."""

    def __init__(self, stream: Stream, position: int = 0) -> None:
        self.stream = stream
        self.start = position - 1
        self.position = position
        stream.join(position)

    def see(self, found: list[bytes]) -> bool:
        if not self.stream.follow(self.position, found):
            return False
        self.stream.move(self.position, self.position + len(found))
        self.position += len(found)
        return True

    @property
    def faults(self) -> Faults:
        return self.stream.faults(self.start, self.position, ())


def test_message_is_found_in_whatever_wraps_it() -> None:
    """A message has the size asked for, and its stamp is found in JSON, beside others and beside digits."""
    digits = stamp(7, 42, 123_456_789)
    text = message(digits, 128)
    assert len(text) == 128
    assert len(message(digits, MESSAGE_BYTES_MIN)) == MESSAGE_BYTES_MIN
    assert find(b'{"event":"bench","message":"' + text + b'"}') == [digits]
    assert find(text * 3) == [digits] * 3
    assert find(b"~123~" + text + b"~\x00\x80") == [digits]
    assert find(text[:34]) == []
    assert (int(digits[:4]), int(digits[4:14]), int(digits[14:])) == (7, 42, 123_456_789)


def test_contiguous_stream_is_clean() -> None:
    """Sequences that count up for each publisher, however they mix, are without fault."""
    follower = Follower(Stream({}))
    assert follower.see(stamps((1, 0), (2, 0), (1, 1)))
    assert follower.see(stamps((2, 1), (1, 2)))
    assert follower.faults == CLEAN
    assert follower.stream.behind(follower.position, {b"0001": 3, b"0002": 2}, ()) == 0


def test_gap_is_lost() -> None:
    """What a sequence jumps over is lost, at the beginning as well."""
    follower = Follower(Stream({}))
    follower.see(of_one(2, 3, 7))
    assert follower.faults == Faults(lost=5)


def test_missing_end_is_behind() -> None:
    """What was posted after the last message seen is counted as missing, but for what nobody need have."""
    follower = Follower(Stream({}))
    follower.see(of_one(0, 1))
    assert follower.stream.behind(2, {b"0001": 5}, ()) == 3
    assert follower.stream.behind(2, {b"0001": 5}, {(1, 3)}) == 2
    assert follower.stream.behind(1, {b"0001": 5}, ()) == 4
    assert follower.stream.behind(2, {b"0001": 2, b"0009": 4}, ()) == 4


def test_repetition_is_duplicated() -> None:
    """A sequence that was seen before is a duplicate."""
    follower = Follower(Stream({}))
    follower.see(of_one(0, 1, 1, 2, 0))
    assert follower.faults == Faults(duplicated=2)


def test_late_message_is_reordered_not_lost() -> None:
    """A sequence that comes after a later one was not lost, but out of order."""
    follower = Follower(Stream({}))
    follower.see(of_one(0, 2))
    assert follower.faults == Faults(lost=1)
    follower.see(of_one(1, 3))
    assert follower.faults == Faults(reordered=1)


def test_unknown_outcome_is_forgiven() -> None:
    """A push of which nobody knows the outcome may be missing in the middle."""
    stream = Stream({})
    stream.join(0)
    stream.follow(0, of_one(0, 3))
    assert stream.faults(-1, 2, {(1, 1)}) == Faults(lost=1)


def test_followers_share_the_check() -> None:
    """A second receiver that sees the same is checked by comparison, in whatever portions it reads."""
    stream = Stream({})
    first, second = Follower(stream), Follower(stream)
    assert first.see(of_one(0, 1, 3, 4))
    assert second.see(of_one(0))
    assert second.see(of_one(1, 3, 4, 5))
    assert first.see(of_one(5, 6))
    assert first.faults == second.faults == Faults(lost=1)
    assert stream.behind(second.position, {b"0001": 7}, ()) == 1


def test_who_differs_does_not_follow() -> None:
    """A receiver that lacks a message, has one twice or has two exchanged does not follow the others."""
    for other in ([0, 2], [0, 0], [1, 0]):
        stream = Stream({})
        first, second = Follower(stream), Follower(stream)
        assert first.see(of_one(0, 1, 2))
        assert not second.see(of_one(*other))
        assert second.position == 0


def test_own_stream_goes_on_where_the_shared_one_was_left() -> None:
    """From the state at a position on, what is missing afterwards is found, and what came before is not."""
    stream = Stream({})
    first, second = Follower(stream), Follower(stream)
    first.see(stamps((1, 0), (2, 0), (1, 1), (2, 1), (1, 2)))
    second.see(stamps((1, 0), (2, 0)))
    assert stream.state_at(2) == {b"0001": 1, b"0002": 1}
    own = stream.successor(stream.state_at(2))
    own.join(0)
    own.follow(0, stamps((1, 2), (2, 1)))
    assert own.faults(-1, own.end, ()) == Faults(lost=1)


def test_coming_back_into_step() -> None:
    """A receiver that has all up to a message of the shared stream is in step behind it; one that lacks some is not."""
    stream = Stream({})
    first = Follower(stream)
    first.see(stamps((1, 0), (2, 0), (1, 1), (2, 1)))
    joined = stream.successor({b"0001": 1, b"0002": 1})
    joined.join(0)
    joined.follow(0, stamps((1, 1)))
    assert stream.in_step(joined, stamp(1, 1, 5)) == 3
    lacking = stream.successor({b"0001": 1})
    lacking.join(0)
    lacking.follow(0, stamps((1, 1)))
    assert stream.in_step(lacking, stamp(1, 1, 5)) is None
    assert stream.in_step(joined, stamp(1, 9, 5)) is None


def test_late_joiner_starts_in_time() -> None:
    """Who joins late may see what was under way, must see what was posted afterwards, and owes nothing older."""
    for first, lost in ((4, 0), (6, 0), (7, 0), (9, 2)):
        follower = Follower(Stream({b"0001": 7}))
        follower.see(of_one(first, first + 1))
        assert follower.faults == Faults(lost=lost), first
    assert Stream({b"0001": 7}).behind(0, {b"0001": 7}, ()) == 0
    assert Stream({b"0001": 7}).behind(0, {b"0001": 9}, ()) == 2


def test_unconfirmed_joiner_owes_nothing_before_its_first() -> None:
    """A receiver whose registration nobody confirmed may start anywhere, and is checked from there on."""
    follower = Follower(Stream(None))
    follower.see(of_one(9, 11))
    assert follower.faults == Faults(lost=1)
    assert follower.stream.behind(2, {b"0001": 12, b"0002": 5}, ()) == 0


def test_faults_before_the_start_are_not_charged() -> None:
    """Who came into step behind a gap has not lost it."""
    stream = Stream({})
    first = Follower(stream)
    first.see(of_one(0, 4, 5))
    second = Follower(stream, 3)
    first.see(of_one(6))
    second.see(of_one(6))
    assert (first.faults, second.faults) == (Faults(lost=3), CLEAN)


def test_completion_is_told_when_the_last_has_it() -> None:
    """Stamps are complete once every follower has them, in order, each once; who leaves is not waited for."""
    told: list[bytes] = []
    stream = Stream({}, on_complete=told.extend)
    first, second = Follower(stream), Follower(stream)
    first.see(of_one(0, 1, 2))
    assert told == []
    second.see(of_one(0))
    assert told == of_one(0)
    second.see(of_one(1))
    assert told == of_one(0, 1)
    stream.leave(second.position)
    assert told == of_one(0, 1, 2)


def test_chunks_are_kept_until_all_have_passed() -> None:
    """A chunk is what others are compared with; the shorter one stays, and none behind the last follower."""
    stream = Stream({})
    first, second = Follower(stream), Follower(stream)
    long, short = of_one(0, 1), of_one(0)
    stream.remember(0, stream.chunk(0, b"AABB", long))
    first.see(long)
    stream.remember(0, stream.chunk(0, b"AA", short))
    assert stream.chunks[0].data == b"AA"
    assert stream.chunks[0].sent_ns == [5]
    second.see(long)
    assert stream.chunks == {}


def test_memory_is_bounded() -> None:
    """Of a long stream only what somebody still has to see is kept, and a little more."""
    stream = Stream({})
    first, second = Follower(stream), Follower(stream)
    for number in range(20_000):
        first.see(of_one(number))
        second.see(of_one(number))
    assert len(stream._reference) < 2000
    assert first.faults == second.faults == CLEAN
    lonely = Follower(Stream({}, keep=False))
    for number in range(100):
        lonely.see(of_one(number))
    assert lonely.stream._reference == []
