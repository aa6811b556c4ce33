"""Which settings a channel has, who may subscribe and publish, and which names channels may have."""

import itertools

import pytest

from fastpush.channels.namespaces import NAME_BYTES_MAX, Namespaces, check_name, personal_channel, users_of
from fastpush.config import Namespace
from fastpush.protocol.push import EVERYBODY, channel_key, user_key

CHAT = Namespace(subscribe="users", publish="subscribers")
REST = Namespace(subscribe="everybody")


def one(**settings: str) -> Namespaces:
    """The namespace chat alone, with these settings."""
    return Namespaces({"chat": Namespace(**settings)})


# --- settings


@pytest.mark.parametrize(
    ("channel", "expected"),
    [
        ("chat:42", CHAT),
        ("chat:", CHAT),
        ("chat:a:b", CHAT),
        ("$chat:42", CHAT),
        ("chat:#jack", CHAT),
        ("news", REST),
        ("$news", REST),
        ("#jack", REST),
        ("chat", REST),
        ("Chat:42", None),
        ("chats:42", None),
        (":42", None),
        ("$$chat:42", None),
        ("x#chat:42", None),
        ("without_namespace:42", None),
        ("/chat", None),
        ("/chat:42", None),
    ],
)
def test_settings_of_a_channel(channel: str, expected: Namespace | None) -> None:
    """What stands before the first colon names the table, without a $ before it; names without colon have their own."""
    namespaces = Namespaces({"chat": CHAT, "without_namespace": REST})
    assert namespaces.of(channel) is expected
    assert namespaces.of_key(channel_key(channel)) is expected


@pytest.mark.parametrize("key", [EVERYBODY, user_key("jack", "e"), user_key("chat", ":42"), b"", b"u4:chat"])
def test_other_routing_keys_have_no_settings(key: bytes) -> None:
    """A push to a user or to everybody is no publication of a channel, whatever users and events are called."""
    assert Namespaces({"chat": CHAT, "u4": CHAT, "without_namespace": REST}).of_key(key) is None


def test_channels_without_a_table_are_nobodys() -> None:
    """Where no table is configured nobody subscribes or publishes, a subscription token or not."""
    namespaces = Namespaces({"chat": Namespace(subscribe="everybody", publish="everybody")})
    for channel in ("news", "shop:1", "/chat"):
        assert namespaces.of(channel) is None
        assert not namespaces.may_subscribe(channel, "jack", has_token=True)
        assert not namespaces.may_publish(channel, "jack", is_subscribed=True)


# --- who may subscribe


@pytest.mark.parametrize(
    ("subscribe", "anonymous", "jack"),
    [("token", False, False), ("users", False, True), ("everybody", True, True), ("nobody", False, False)],
)
def test_who_may_subscribe(subscribe: str, *, anonymous: bool, jack: bool) -> None:
    """Without a subscription token: as `subscribe` says. With one: always."""
    namespaces = one(subscribe=subscribe)
    assert namespaces.may_subscribe("chat:42", "", has_token=False) is anonymous
    assert namespaces.may_subscribe("chat:42", "jack", has_token=False) is jack
    for channel, user in itertools.product(("chat:42", "$chat:42", "chat:#rose"), ("", "jack")):
        assert namespaces.may_subscribe(channel, user, has_token=True)


@pytest.mark.parametrize("subscribe", ["token", "users", "everybody", "nobody"])
def test_private_channels_take_a_token(subscribe: str) -> None:
    """A name that starts with $ is open to nobody without a subscription token, though it names a user."""
    namespaces = one(subscribe=subscribe)
    for channel, user in itertools.product(("$chat:42", "$chat:#jack"), ("", "jack")):
        assert not namespaces.may_subscribe(channel, user, has_token=False)


@pytest.mark.parametrize("subscribe", ["token", "users", "everybody"])
def test_user_limited_channels(subscribe: str) -> None:
    """Behind # stand the users who may subscribe without a token; nobody else may, and nobody is called ""."""
    namespaces = one(subscribe=subscribe)
    for channel in ("chat:#jack", "chat:a#jack", "chat:#rose,jack", "chat:#jack,", "chat:#,jack"):
        assert namespaces.may_subscribe(channel, "jack", has_token=False), channel
        for user in ("", "jac", "jackk", "Jack", "rose,jack"):
            assert not namespaces.may_subscribe(channel, user, has_token=False), (channel, user)
    for channel in ("chat:#", "chat:#,", "chat:##jack"):
        assert not namespaces.may_subscribe(channel, "", has_token=False)
        assert not namespaces.may_subscribe(channel, "jack", has_token=False)


def test_nobody_is_nobody() -> None:
    """With subscribe = "nobody" not even the user whom the name names may ask; the server subscribes."""
    assert not one(subscribe="nobody").may_subscribe("chat:#jack", "jack", has_token=False)


# --- who may publish


@pytest.mark.parametrize(
    ("publish", "allowed"),
    [
        ("nobody", []),
        ("subscribers", [("", True), ("jack", True)]),
        ("users", [("jack", False), ("jack", True)]),
        ("everybody", [("", False), ("", True), ("jack", False), ("jack", True)]),
    ],
)
def test_who_may_publish(publish: str, allowed: list[tuple[str, bool]]) -> None:
    """Clients publish as `publish` says: by being subscribed, or by having a name."""
    namespaces = one(publish=publish)
    found = [
        (user, is_subscribed)
        for user, is_subscribed in itertools.product(("", "jack"), (False, True))
        if namespaces.may_publish("chat:42", user, is_subscribed)
    ]
    assert found == allowed


@pytest.mark.parametrize("publish", ["users", "everybody"])
def test_closed_channels_take_nothing_from_outside(publish: str) -> None:
    """Whom the name keeps out does not publish either, unless subscribed with a token or by the server."""
    namespaces = one(publish=publish)
    for channel in ("$chat:42", "$chat:#rose", "chat:#rose"):
        assert not namespaces.may_publish(channel, "jack", is_subscribed=False)
        assert namespaces.may_publish(channel, "jack", is_subscribed=True)
    assert namespaces.may_publish("chat:#rose,jack", "jack", is_subscribed=False)
    assert not namespaces.may_publish("chat:#", "", is_subscribed=False)


# --- names


@pytest.mark.parametrize("channel", ["a", "chat:42", "größe", "a b", "x" * 255, "é" * 127, "$", "#", ":", "a/b", "🙂"])
def test_good_names(channel: str) -> None:
    """Any text of 1 to 255 bytes without control characters is a name."""
    check_name(channel)


@pytest.mark.parametrize(
    ("channel", "reason"),
    [
        ("", "is empty"),
        ("x" * 256, "more than 255 bytes"),
        ("é" * 128, "more than 255 bytes"),
        ("x" * 1_000_000, "more than 255 bytes"),
        ("/chat", "starts with a slash"),
        ("a\nb", "control character"),
        ("a\0", "control character"),
        ("\x7f", "control character"),
        ("a\x85b", "control character"),
        ("a\ud800", "not valid Unicode"),
    ],
)
def test_bad_names(channel: str, reason: str) -> None:
    """What is no name is refused with a reason that does not repeat it."""
    with pytest.raises(ValueError, match=reason) as raised:
        check_name(channel)
    assert len(str(raised.value)) < 80


def test_users_in_a_name() -> None:
    """Behind the first # stand users, commas between them; without # there are none to speak of."""
    assert users_of("chat:42") is None
    assert users_of("chat:#jack") == {"jack"}
    assert users_of("chat:#jack,rose") == {"jack", "rose"}
    assert users_of("chat:#a#b") == {"a#b"}
    assert users_of("chat:#") == frozenset()


def test_personal_channels() -> None:
    """Every user has a channel of its own, unless the user's id makes no name or one that is others' too."""
    for user in ("jack", "größe", "a:b", "a#b", "/x", "$"):
        channel = personal_channel("me", user)
        assert channel == f"me:#{user}"
        assert Namespaces({"me": Namespace()}).may_subscribe(channel, user, has_token=False)
    for user in ("", "jack,rose", "jack,", ",", "a\nb", "x" * NAME_BYTES_MAX):
        assert personal_channel("me", user) is None
