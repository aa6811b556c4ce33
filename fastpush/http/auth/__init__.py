"""Who a client is, and who may push: one file a mode, one contract for all.

    token ─► TokenAuth.authenticate ─► Identity | TokenRejected (401 / 4501) | AuthUnavailable (503 / 1013)
    token ─► TokenAuth.subscription ─► Subscription | TokenRejected          | AuthUnavailable
    head  ─► PushAuth.authorize     ─► True | False (401)                    | AuthUnavailable (503)

    contract.py    Identity, Subscription, the two protocols, what every mode checks
    signed.py      URL parameters that a token vouches for
    tables.py      token-is-user, static                    answers at once
    jwt.py         signed tokens; jwks.py keeps a key set   answers at once while the key is known
    webhook.py     asks a back-end; answers.py remembers    answers at once while remembered
    python.py      the user's own function, for both sides; threads.py runs one that is not async
    keys.py        [push] auth = "none" and "keys"          answers at once
    outgoing.py    the HTTP client of jwks.py and webhook.py; complaints.py limits their log lines

An answer that needs no I/O is returned (or raised) by the call itself; only the others
are awaitables. No reason, log line or repr in here holds a token, a key or a header value.

A reload makes new objects and closes the old: `close` lets calls under way finish.
"""

from collections.abc import Callable

from fastpush.config import Config, load_tokens
from fastpush.errors import ConfigError
from fastpush.http.auth.contract import Identity, PushAuth, Subscription, TokenAuth
from fastpush.http.auth.jwt import JwtAuth
from fastpush.http.auth.keys import KeysPushAuth, NoPushAuth
from fastpush.http.auth.python import PythonPushAuth, PythonTokenAuth, Watch
from fastpush.http.auth.signed import check_signed
from fastpush.http.auth.tables import StaticAuth, TokenIsUser
from fastpush.http.auth.webhook import WebhookAuth
from fastpush.metrics import Counters

__all__ = ["Identity", "PushAuth", "Subscription", "TokenAuth", "check_signed", "push_auth", "token_auth"]


def token_auth(
    config: Config, counters: Counters | None = None, on_exhausted: Callable[[], None] = lambda: None
) -> TokenAuth:
    """Return what decides who a client is. Call in a worker, inside its running loop.

    Args:   on_exhausted: called at most once, when calls that never end hold every thread of the user's function.
    Raises: ConfigError: keys cannot be read, or the user's function cannot be imported.
    """
    auth, name_bytes = config.auth, config.limits.name_bytes
    match auth.mode:
        case "token-is-user":
            return TokenIsUser(name_bytes)
        case "static":
            return StaticAuth(load_tokens(config), name_bytes)
        case "jwt":
            return JwtAuth(auth.jwt, name_bytes)
        case "webhook":
            return WebhookAuth(auth.webhook, name_bytes)
        case "python":
            watch = Watch(config.server.hang_seconds, counters or Counters(), on_exhausted)
            return PythonTokenAuth(auth.python, watch, name_bytes)
    raise ConfigError(f"[auth] mode: {auth.mode!r} is unknown")


def push_auth(
    config: Config, counters: Counters | None = None, on_exhausted: Callable[[], None] = lambda: None
) -> PushAuth:
    """Return what decides who may push. Call in a worker, inside its running loop.

    Args:   on_exhausted: as of `token_auth`.
    Raises: ConfigError: there is no key, or the user's function cannot be imported.
    """
    match config.push.auth:
        case "none":
            return NoPushAuth()
        case "keys":
            return KeysPushAuth(config.push.keys)
        case "python":
            watch = Watch(config.server.hang_seconds, counters or Counters(), on_exhausted)
            return PythonPushAuth(config.push.callable, config.auth.python, watch)
    raise ConfigError(f"[push] auth: {config.push.auth!r} is unknown")
