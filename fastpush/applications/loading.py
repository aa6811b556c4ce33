"""From an [[application]] to its class: for workers, and for `fastpush check`."""

import logging
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec

from fastpush.applications.interface import Application, Options, Server
from fastpush.applications.push import Push
from fastpush.config import Application as Entry
from fastpush.config import Connections, Limits, Section
from fastpush.errors import ConfigError
from fastpush.http.auth.python import import_function
from fastpush.log import fields

log = logging.getLogger("fastpush.application")

_WRONG_CHOICE = re.compile(r"Invalid enum value .*(?= - at |$)", re.DOTALL)  # it shows the value, perhaps a secret

AnySection = TypeVar("AnySection", bound=Section)


class Loaded(NamedTuple):
    """An application's class, and the options that it is to be given."""

    entry: Entry
    application_class: type[Application]
    options: Options

    def limits(self, limits: Limits) -> Limits:
        """Return what applies to it: [limits], over them its class's, over these its own table's."""
        return self.entry.limits_over(_over(limits, self.application_class.default_limits, self.entry))

    def connections(self, connections: Connections) -> Connections:
        """Return what applies to it: [connections], over them its class's, over these its own table's."""
        return self.entry.connections_over(_over(connections, self.application_class.default_connections, self.entry))


def load(number: int, entry: Entry) -> Loaded:
    """Import the class of the [[application]] of this number, counted from 1, and have it judge its options.

    Raises: ConfigError.
    """
    loaded = Loaded(entry, *load_class(f"[[application]] number {number}", entry.handler, entry.options))
    loaded.limits(Limits())
    loaded.connections(Connections())
    return loaded


def load_class(where: str, handler: str, given: Mapping[str, Any]) -> tuple[type[Application], Options]:
    """Import a class, and have it judge the options it is given. Raises: ConfigError."""
    found = import_function(handler, f"{where}, handler")
    if not (isinstance(found, type) and issubclass(found, Application)):
        text = f"{handler} is no class that derives from fastpush.applications.Application"
        raise ConfigError(f"{where}, handler: {text}")
    if issubclass(found, Push):
        text = f"{handler} is what [server] websocket_path has, once; it serves no other path"
        raise ConfigError(f"{where}, handler: {text}")
    try:
        return found, msgspec.convert(given, found.options_class)
    except msgspec.ValidationError as error:
        text = _WRONG_CHOICE.sub("not one of the allowed values", str(error))
        raise ConfigError(f"{where}, options: {text}") from None


def make(where: str, handler: str, loaded: tuple[type[Application], Options], server: Server) -> Application:
    """Make an application; call in a worker, inside its running loop. Raises: ConfigError: its constructor fails."""
    application_class, options = loaded
    try:
        return application_class(server, options)
    except Exception as error:
        log.exception("application not made", extra=fields(path=server.path))
        text = f"{handler} could not be made: {type(error).__name__}: {error}"
        raise ConfigError(f"{where}, handler: {text}") from error


def _over(section: AnySection, overrides: Mapping[str, Any], entry: Entry) -> AnySection:
    try:
        return msgspec.convert({**msgspec.structs.asdict(section), **overrides}, type(section))
    except msgspec.ValidationError as error:
        raise ConfigError(f"{entry.handler}: its {type(section).__name__.lower()}: {error}") from None
