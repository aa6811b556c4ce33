"""Which settings a channel has, and who may subscribe to it and publish in it. No I/O.

    chat:42          namespace chat: [channels.chat]
    news             without a colon: [channels.without_namespace]
    $chat:42         the same namespace as chat:42; a subscription token is always needed
    chat:#jack,rose  the same; jack and rose need no token, everybody else does
    /chat            an application's own channel, named after its path: without settings, and not for clients

All of it follows from the name and the configuration.
"""

import re
from collections.abc import Mapping

from fastpush.config import WITHOUT_NAMESPACE, Namespace
from fastpush.protocol.push import channel_key

NAME_BYTES_MAX = 255

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Namespaces:
    """The namespaces of a configuration, by the channels in them. A reload makes a new object.

    channels: [channels] of a valid configuration.
    """

    def __init__(self, channels: Mapping[str, Namespace]) -> None:
        self._without = channels.get(WITHOUT_NAMESPACE)
        self._by_prefix = {
            channel_key(sign + name): namespace
            for name, namespace in channels.items()
            if name != WITHOUT_NAMESPACE
            for sign in ("", "$")
        }

    def of(self, channel: str) -> Namespace | None:
        """Return the settings of a channel, of a name that `check_name` takes; None where none are configured."""
        return self.of_key(channel_key(channel))

    def of_key(self, key: bytes) -> Namespace | None:
        """Return the same for a routing key; None for one of another kind.

        Cost: 0.2 µs, whatever the number of namespaces: called for every publication.
        """
        prefix, colon, _ = key.partition(b":")
        if colon:
            return self._by_prefix.get(prefix)
        return self._without if key[:1] == b"c" and key[1:2] != b"/" else None

    def may_subscribe(self, channel: str, user: str, has_token: bool) -> bool:  # noqa: FBT001 - there are only two
        """Tell whether a client may subscribe.

        Args:  user: "" for an anonymous connection.
               has_token: it has shown a valid subscription token for this channel and this user.
        """
        namespace, named = self.of(channel), users_of(channel)
        if namespace is None or has_token:
            return has_token and namespace is not None
        if channel.startswith("$") or namespace.subscribe == "nobody":
            return False
        return _is_among(namespace.subscribe, user) if named is None else user in named

    def may_publish(self, channel: str, user: str, is_subscribed: bool) -> bool:  # noqa: FBT001 - there are only two
        """Tell whether a client may publish. Whom the name keeps out may only where the server subscribed it."""
        namespace, named = self.of(channel), users_of(channel)
        if namespace is None or namespace.publish == "nobody":
            return False
        is_kept_out = channel.startswith("$") or (named is not None and user not in named)
        if is_kept_out and not is_subscribed:
            return False
        return (namespace.publish == "subscribers" and is_subscribed) or _is_among(namespace.publish, user)


def _is_among(who: str, user: str) -> bool:
    return who == "everybody" or (who == "users" and bool(user))


def check_name(channel: str) -> None:
    """Raise ValueError, with a reason that a client may see, for what cannot be the name of a channel of clients."""
    if not channel:
        raise ValueError("the channel's name is empty")
    if len(channel) > NAME_BYTES_MAX or len(channel.encode("utf-8", "surrogatepass")) > NAME_BYTES_MAX:
        raise ValueError(f"the channel's name has more than {NAME_BYTES_MAX} bytes")
    if channel.startswith("/"):
        raise ValueError("the channel's name starts with a slash, as those of applications do")
    if _CONTROL.search(channel):
        raise ValueError("the channel's name holds a control character")
    try:
        channel.encode()
    except UnicodeEncodeError:  # half a surrogate, which JSON can spell
        raise ValueError("the channel's name is not valid Unicode") from None


def users_of(channel: str) -> frozenset[str] | None:
    """Return the users whom a name lists, who alone need no token; None: it lists none. Nobody is called ""."""
    _, sign, users = channel.partition("#")
    return frozenset(user for user in users.split(",") if user) if sign else None


def personal_channel(namespace: str, user: str) -> str | None:
    """Return the channel of one user, to which the server subscribes all that user's connections.

    None for whom there can be none: an anonymous connection, and a user whose id makes no name of a channel or holds
    a comma, so that the name would be of others.
    """
    channel = f"{namespace}:#{user}"
    try:
        check_name(channel)
    except ValueError:
        return None
    return channel if users_of(channel) == frozenset((user,)) else None
