"""The user's own function decides who a client is or who may push.

It is async and runs on the worker's loop, or it is not and runs in a few threads (threads.py). Either way
no more than `threads + queue` calls are under way; then the answer is "unavailable", as it is to
a call that takes `timeout_seconds`: one that is async is cancelled, a thread goes on for nobody.
An async function that blocks the loop is beyond this file: the supervisor replaces the worker.
An exception in it is a fault of the service, not of the client: the stack is logged, without
the exception's text (which may quote the token), and the answer is "unavailable" too.
A module is imported once in a worker's life: a reload does not read it again.
"""

import asyncio
import importlib
import inspect
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastpush.config import PythonAuth
from fastpush.errors import AuthUnavailable, ConfigError, TokenExpired, TokenRejected
from fastpush.http.auth.complaints import Complaints
from fastpush.http.auth.contract import Identity, WithoutSubscriptions, check_present, date, identity
from fastpush.http.auth.threads import Call, Outcome, WatchedThreads
from fastpush.log import fields
from fastpush.metrics import Counters

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Watch:
    """What a worker wants to know of functions that block.

    on_exhausted(): every thread of a function has been stuck for `hang_seconds`; it cannot be asked any more.
    """

    hang_seconds: float
    counters: Counters
    on_exhausted: Callable[[], None]


class PythonTokenAuth(WithoutSubscriptions):
    """[auth] mode = "python": function(token, headers) returns the user id.

    Or (user id, expires_at), or (user id, ok) as in S0-10, or an Identity, which may hold `info` and `channels` too;
    anything false names nobody.
    """

    def __init__(
        self, python: PythonAuth, watch: Watch, name_bytes: int, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._function = UserFunction(python.callable, "[auth.python] callable", "auth function", python, watch)
        self._name_bytes = name_bytes
        self._wall_clock = wall_clock

    def authenticate(self, token: str, headers: Mapping[str, str]) -> Awaitable[Identity]:
        check_present(token)
        return self._authenticate(token, dict(headers))

    async def close(self) -> None:
        await self._function.close()

    async def _authenticate(self, token: str, headers: dict[str, str]) -> Identity:
        result = await self._function.call(token, headers)
        info: Any = None
        channels: Any = ()
        match result:
            case tuple((user, expires_at)):
                pass
            case Identity(user=user, expires_at=expires_at, info=info, channels=channels):
                pass
            case _:
                user, expires_at = result, None
        if isinstance(expires_at, bool):
            user, expires_at = (user if expires_at else None), None
        if not user:
            raise TokenRejected("the auth function rejected the token")
        if not isinstance(user, str):
            raise self._function.wrong_type(user, "a user id, None, (user id, expires_at) or an Identity")
        if expires_at is not None:
            if not isinstance(expires_at, int | float) or not math.isfinite(expires_at):
                raise self._function.wrong_type(expires_at, "unix seconds or None as expires_at")
            if expires_at <= self._wall_clock():
                raise TokenExpired(f"token expired at {date(expires_at)}")
        if not isinstance(channels, tuple | list) or not all(isinstance(channel, str) for channel in channels):
            raise self._function.wrong_type(channels, "names of channels")
        return identity(user, expires_at, self._name_bytes, None, info, channels)


class PythonPushAuth:
    """[push] auth = "python": function(headers) returns True or False (S0-19)."""

    def __init__(self, callable_name: str, python: PythonAuth, watch: Watch) -> None:
        self._function = UserFunction(callable_name, "[push] callable", "push auth function", python, watch)

    def authorize(self, headers: Mapping[str, str]) -> Awaitable[bool]:
        return self._authorize(dict(headers))

    async def close(self) -> None:
        await self._function.close()

    async def _authorize(self, headers: dict[str, str]) -> bool:
        result = await self._function.call(headers)
        if not isinstance(result, bool):  # a truthy accident must not open the door
            raise self._function.wrong_type(result, "True or False")
        return result


class UserFunction:
    """A function of the user's, bounded in calls and time, and harmless in failure.

    name: "package.module:function".  key: the setting it comes from.  role: what clients hear it called.
    """

    def __init__(self, name: str, key: str, role: str, python: PythonAuth, watch: Watch) -> None:
        self._function = import_function(name, key)
        self._role = role
        self._watch = watch
        self._complaints = Complaints(log)
        self._stuck_complaints = Complaints(log)
        self._timeout_seconds = python.timeout_seconds
        self._most_under_way = python.threads + python.queue
        self._under_way = 0
        self._closed = False
        self._threads = None if _is_async(self._function) else self._make_threads(python.threads)

    async def call(self, *arguments: Any) -> Any:
        """Return what the function returns.

        Raises: AuthUnavailable: it failed, takes too long, or too many calls are under way.
                TokenRejected, AuthUnavailable: the function raised this itself; its text is replaced.
        """
        if self._closed:
            raise AuthUnavailable(f"the {self._role} is being reloaded")
        if self._under_way >= self._most_under_way:
            self._complaints.add(f"{self._role} unavailable", "too many calls are waiting")
            raise AuthUnavailable(f"too many calls wait for the {self._role}")
        try:
            async with asyncio.timeout(self._timeout_seconds):
                result, error = await self._outcome(arguments)
        except TimeoutError:  # not the function's own: that is a value by now
            self._watch.counters.auth_timeouts += 1
            self._complaints.add(f"{self._role} unavailable", f"no answer within {self._timeout_seconds:g} s")
            raise AuthUnavailable(f"the {self._role} did not answer in time") from None
        if error is not None:
            raise self._failure(error)
        return result

    def wrong_type(self, result: object, wanted: str) -> AuthUnavailable:
        """Log that the function returned something else than `wanted`; return what to raise."""
        self._complaints.add(f"{self._role} failed", f"returned {type(result).__name__} instead of {wanted}")
        return AuthUnavailable(f"the {self._role} failed")

    async def close(self) -> None:
        """Take no more calls. Those under way end by themselves, and the threads after them."""
        self._closed = True
        if self._threads is not None:
            self._threads.close()

    async def _outcome(self, arguments: tuple[Any, ...]) -> Outcome:
        if self._threads is None:
            return await self._counted(self._function, arguments)
        call = Call(self._function, arguments)
        self._under_way += 1
        # A caller that goes away does not take its call out of the pool's queue: the call
        # counts until a thread is done with it, so that the queue's length stays bounded.
        thread = self._threads.submit(call)
        thread.add_done_callback(partial(self._done, call))
        try:
            result, error = await asyncio.shield(thread)
        finally:
            call.wanted = False
        if error is None and inspect.isawaitable(result):
            return await self._counted(_value, (result,))
        return result, error

    def _done(self, call: Call, thread: asyncio.Future[Outcome]) -> None:
        self._leave()
        if not call.wanted and not thread.cancelled():
            result, _ = thread.result()
            if inspect.iscoroutine(result):
                result.close()  # it comes too late to be awaited

    async def _counted(self, function: Callable[..., Awaitable[Any]], arguments: tuple[Any, ...]) -> Outcome:
        self._under_way += 1
        try:
            return await function(*arguments), None
        except (Exception, SystemExit) as error:  # noqa: BLE001 (theirs; SystemExit would end the worker's loop)
            return None, error
        finally:
            self._leave()

    def _make_threads(self, threads: int) -> WatchedThreads:
        def on_stuck(stack: str) -> None:
            self._watch.counters.auth_stuck_calls += 1
            reason = f"a thread does not come back after {self._timeout_seconds:g} s"
            self._stuck_complaints.add(f"{self._role} stuck", reason, stack=stack)

        def on_exhausted() -> None:
            seconds = self._watch.hang_seconds
            reason = f"each of its {threads} threads has been stuck for {seconds:g} s"
            log.error(f"{self._role} exhausted", extra=fields(reason=reason))  # noqa: G004 (one of two roles)
            self._watch.on_exhausted()

        return WatchedThreads(
            threads,
            self._role.replace(" ", "-"),
            timeout_seconds=self._timeout_seconds,
            hang_seconds=self._watch.hang_seconds,
            on_stuck=on_stuck,
            on_exhausted=on_exhausted,
        )

    def _failure(self, error: BaseException) -> TokenRejected | AuthUnavailable:
        """Return what to raise. The text is ours: the function's own could hold the token."""
        if isinstance(error, TokenRejected):
            return TokenRejected(f"the {self._role} rejected the token")
        if isinstance(error, AuthUnavailable):
            return AuthUnavailable(f"the {self._role} is unavailable")
        self._complaints.add(f"{self._role} failed", f"raised {type(error).__name__}", error)
        return AuthUnavailable(f"the {self._role} failed")

    def _leave(self) -> None:
        self._under_way -= 1


def import_function(name: str, key: str) -> Callable[..., Any]:
    """Return the function that "package.module:function" names.

    Raises: ConfigError: says which part of the name is wrong, or how the import failed.
    """
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise ConfigError(f'{key} must be "package.module:function", found {name!r}')
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the module's own code runs here
        missing = isinstance(error, ModuleNotFoundError) and error.name and module_name.startswith(error.name)
        hint = "; install it or name its folder in PYTHONPATH" if missing else ""
        raise ConfigError(f"{key}: cannot import {module_name}: {type(error).__name__}: {error}{hint}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{key}: {module_name} has no {path}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{key}: {name} is {type(found).__name__}, not a function")
    function: Callable[..., Any] = found
    return function


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


async def _value(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
