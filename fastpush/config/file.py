"""From config.toml, environment and command line to a Config; secrets from files.

Values are laid over each other: built-in defaults, the file, FASTPUSH_<SECTION>_<KEY> variables, the
command line. Next to each value a draft remembers where it came from, so that every complaint, also one that
concerns two keys, names a place. tomllib tells no line numbers; `key_lines` finds them by
giving it one statement at a time.

Files that settings name are relative to the folder of the configuration file (without one: the current
folder), and ${NAME} in them is an environment variable, so that ${CREDENTIALS_DIRECTORY}/jwt reaches a
systemd credential. All problems are reported at once, one a line, except that TOML must be readable and types
right before keys are compared with each other. Values of secrets are never printed.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from fastpush.config import rules
from fastpush.config.schema import (
    Admin,
    Config,
    JwtKey,
    Key,
    Place,
    Push,
    Section,
    article,
    bare_or_quoted,
    default_of,
    found,
    keys,
    members,
    overridable,
    sections,
    title,
    toml_type,
)
from fastpush.config.tls import TlsError, server_context
from fastpush.errors import ConfigError

DEFAULT_PATHS = (Path("config.toml"), Path("/etc/fastpush/config.toml"))
PREFIX = "FASTPUSH_"

_FILE_BYTES = 64 * 1024 * 1024
_REPORTED_PROBLEMS = 50
_NOTHING: Mapping[str, Any] = MappingProxyType({})
# Set by others under the same prefix: Kubernetes and Docker for a service or container of this name; the tests'
# own; the key and token of commands.
_FOREIGN = re.compile(
    r"FASTPUSH_(TEST|BENCH)_.*|FASTPUSH_(KEY|TOKEN)|FASTPUSH_(\w+_)?(SERVICE_(HOST|PORT\w*)|PORT_\d+_(TCP|UDP)\w*)"
)
_FOREIGN_PORT = re.compile(r"(tcp|udp)://")
_REFERENCE = re.compile(r"\$\{(\w+)\}")
_TOML_POSITION = re.compile(r" \(at (line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$")
_TOML_HINTS = {
    "Invalid value": 'text needs quotes, as in name = "text"',
    "Expected newline or end of document": "one key = value a line, and text needs quotes",
    "Invalid statement": "a line is key = value, [section] or # comment",
    "Cannot overwrite a value": "the same key stands above with another value",
    "Cannot declare": "the section has a heading already; put all its keys below one",
}

# Sections that there were before 0.1.0, and what to write today.
_GONE = {
    "echo": "echo is an application now; where it was enabled write, each on a line of its own, "
    '[[application]] and path = "/echo" and handler = "fastpush.applications.echo:Echo"'
}


def find(explicit: str | None) -> Path | None:
    """Return the configuration file: the one asked for, ./config.toml, /etc/fastpush/config.toml, or None: defaults.

    The one asked for need not exist, and one that exists need not be readable: `load` says so.
    """
    if explicit is not None:
        return Path(explicit)
    return next((path for path in DEFAULT_PATHS if _exists(path)), None)


def _exists(path: Path) -> bool:
    """Tell whether something stands at `path`: a dangling link and a closed folder count, so that they are noticed."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def load(path: Path | None, *, environ: Mapping[str, str], overrides: Mapping[str, Any] = _NOTHING) -> Config:
    """Return the validated settings.

    Args:    path: from `find`; None for defaults.  environ: FASTPUSH_ variables, and ${NAME} in names of files.
             overrides: {"server.listen": …} from the command line; None stands for an option that was not given.
    Returns: Config: names of files are absolute; push.keys holds those of keys_file too; a JWT key's secret_file has
             been read into `secret` and is empty, and so with [admin] key_file. tokens_file has been tried:
             `load_tokens` reads it; so have the files of [tls]: `server_context` reads them.
    Raises:  ConfigError: one line for each problem: place, key, what was found, what is allowed.
    """
    draft = _Draft(path, environ)
    if path is not None:
        draft.take_file(path)
    draft.take_environment(environ)
    draft.take_overrides(overrides)
    draft.settle(Config, draft.values, ())
    draft.raise_problems()
    config = draft.with_secrets(msgspec.convert(draft.values, Config))
    for problem in rules.problems(config):
        draft.blame(problem.place, problem.text)
    draft.raise_problems()
    return config


class _Draft:
    """Settings on their way to a Config: raw values, where each came from, and what is wrong so far."""

    def __init__(self, path: Path | None, environ: Mapping[str, str]) -> None:
        self.values: dict[str, Any] = {}
        self._source = str(path) if path else "built-in settings"
        self._folder = (path or Path("config.toml")).absolute().parent
        self._environ = environ
        self._origins: dict[Place, str] = {}
        self._problems: dict[tuple[Place, str], str] = {}
        self._blamed: set[Place] = set()

    # Problems

    def blame(self, place: Place, text: str, name: str = "") -> None:
        """Remember a problem, unless `place` was blamed in an earlier step: the first reason is the nearest."""
        if place not in self._blamed:
            self._add(place, f"{name or title(place)}: {text}")

    def _add(self, place: Place, text: str) -> None:
        prefixes = (place[:length] for length in range(len(place), 0, -1))
        origin = next((self._origins[prefix] for prefix in prefixes if prefix in self._origins), self._source)
        self._problems[place, text] = f"{origin}: {text}"
        self._blamed.add(place)

    def raise_problems(self) -> None:
        """Raise one ConfigError with all of them, if there are any."""
        if self._problems:
            raise ConfigError(_report(list(self._problems.values())))

    # Where values come from

    def take_file(self, path: Path) -> None:
        """Read the file. Raises: ConfigError: unreadable or not TOML."""
        text = _read(path)
        self.values = _parse(text, path)
        self._origins = {place: f"{path}:{line}" for place, line in key_lines(text).items()}

    def take_environment(self, environ: Mapping[str, str]) -> None:
        """Lay FASTPUSH_<SECTION>_<KEY> over the file; a variable of this prefix that names no key is a mistake."""
        variables = {_variable(place): (place, key) for place, key in keys()}
        for variable in sorted(variables.keys() & environ.keys()):
            self._take_variable(variable, environ[variable], *variables[variable])
        # Only now it is known which tables of a table there are.
        inner = {_variable(place): (place, key) for place, key in self._keys_of_named()}
        for variable in sorted(name for name in environ if name.startswith(PREFIX) and name not in variables):
            text = environ[variable]
            if variable in inner:
                self._take_variable(variable, text, *inner[variable])
            elif not (_FOREIGN.fullmatch(variable) or (variable.endswith("_PORT") and _FOREIGN_PORT.match(text))):
                hint = _nearest_variable(variable, [*variables, *inner])
                self._problems[(variable,), ""] = f"environment variable {variable}: names no key; {hint}"

    def _take_variable(self, variable: str, text: str, place: tuple[str, ...], key: Key) -> None:
        if _is_utf8(text):
            self._put(place, _environment_value(text, key), f"environment variable {variable}")
        else:
            self._problems[(variable,), ""] = f"environment variable {variable}: is not valid UTF-8"

    def _keys_of_named(self) -> Iterator[tuple[tuple[str, ...], Key]]:
        """Yield the keys of each table in a table of tables, with their places."""
        for (name,), section in ((place, key.named) for place, key in keys() if key.named):
            tables = self.values.get(name)
            for inner in tables if isinstance(tables, dict) else ():
                yield from keys(section, (name, inner))

    def take_overrides(self, overrides: Mapping[str, Any]) -> None:
        """Lay what the command line gave over everything else."""
        for dotted, value in overrides.items():
            if value is not None:
                self._put(tuple(dotted.split(".")), list(value) if isinstance(value, tuple) else value, "command line")

    def _put(self, place: tuple[str, ...], value: Any, origin: str) -> None:
        table = self.values
        for name in place[:-1]:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                return  # `settle` says that it should be one
        table[place[-1]] = value
        self._origins = {old: at for old, at in self._origins.items() if old[: len(place)] != place}
        self._origins[place] = origin

    # Types and ranges

    def settle(self, section: type[Section], table: dict[str, Any], place: Place) -> None:
        """Judge each value of a table by the schema and make names of files absolute."""
        for name, value in table.items():
            here = (*place, name)
            member = members(section).get(name)
            if member is None:
                label, text = _unknown(section, here, value)
                self.blame(here, text, label)
            elif isinstance(member, Key):
                table[name] = self._settled(member, value, here)
            elif isinstance(value, dict):
                self.settle(member, value, here)
            else:
                self.blame(here, f"found {article(toml_type(value))}; must be a section headed {_heading(here)}")
        for name, member in members(section).items():
            if isinstance(member, Key) and member.is_required and name not in table:
                self.blame((*place, name), f"is missing; must be {member.allowed}")

    def _settled(self, key: Key, value: Any, place: Place) -> Any:
        if key.entries:
            self._settle_entries(key.entries, value, place)
        elif key.named:
            self._settle_named(key, key.named, value, place)
        elif not _fits(value, key):
            self.blame(place, f"found {_found(value, key)}; must be {key.allowed} (default {default_of(key)})")
        elif key.overrides:
            self._settle_overrides(key.overrides, value, place)
        elif key.is_table and not _can_be_sent(value):
            self.blame(place, "holds an integer of more than 64 bits")
        elif key.path and value:
            try:
                return str(_absolute(value, self._environ, self._folder))
            except ConfigError as error:
                self.blame(place, str(error))
        return value

    def _settle_entries(self, section: type[Section], value: Any, place: Place) -> None:
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            heading = f"[[{'.'.join(map(str, place))}]]"
            self.blame(place, f"found {article(toml_type(value))}; must be tables headed {heading}, in double brackets")
            return
        for index, entry in enumerate(value):
            self.settle(section, entry, (*place, index))

    def _settle_named(self, key: Key, section: type[Section], value: Any, place: Place) -> None:
        if not isinstance(value, dict):
            self.blame(place, f"found {article(toml_type(value))}; must be {key.allowed}")
            return
        for name, table in value.items():
            here = (*place, name)
            if isinstance(table, dict):
                self.settle(section, table, here)
            elif name in members(section):
                self.blame(here, f"stands outside a namespace; it belongs in {key.allowed}")
            else:
                heading = _heading(here)
                self.blame(here, f"found {article(toml_type(table))}; must be a table headed {heading}")

    def _settle_overrides(self, section: type[Section], table: dict[str, Any], place: Place) -> None:
        known = overridable(section)
        for name, value in table.items():
            here = (*place, name)
            if name in known:
                table[name] = self._settled(known[name], value, here)
            else:
                self.blame(here, f"an application cannot override it; what it can override is {', '.join(known)}")

    # Secrets in files

    def with_secrets(self, config: Config) -> Config:
        """Return the settings with keys and secrets from files; only those of the chosen modes are read."""
        auth, push = config.auth, config.push
        if push.auth == "keys" and push.keys_file:
            push = self._with_keys(push)
        if auth.mode == "static" and auth.tokens_file:
            try:
                load_tokens(config)
            except ConfigError as error:
                for line in str(error).splitlines():
                    self._add(("auth", "tokens_file"), f"[auth] tokens_file: {line}")
        if auth.mode == "jwt":
            jwt_keys = [self._with_secret(key, index) for index, key in enumerate(auth.jwt.key)]
            auth = msgspec.structs.replace(auth, jwt=msgspec.structs.replace(auth.jwt, key=jwt_keys))
        if config.tls.certificate or config.tls.key:
            try:
                server_context(config.tls)
            except TlsError as error:
                self._add(error.place, str(error))
        return msgspec.structs.replace(config, auth=auth, push=push, admin=self._with_key(config.admin))

    def _with_keys(self, push: Push) -> Push:
        try:
            lines = _read(Path(push.keys_file)).splitlines()
        except ConfigError as error:
            self.blame(("push", "keys_file"), str(error))
            return push
        together = list(push.keys)
        for number, line in enumerate(lines, 1):
            key = line.strip()
            if key and not key.startswith("#"):
                self._origins["push", "keys", len(together)] = f"{push.keys_file}:{number}"
                together.append(key)
        return msgspec.structs.replace(push, keys=together)

    def _with_key(self, admin: Admin) -> Admin:
        if not admin.key_file or admin.key:
            return admin
        try:
            key = read_secret(admin.key_file)
        except ConfigError as error:
            self.blame(("admin", "key_file"), str(error))
            return admin
        self._origins["admin", "key"] = admin.key_file
        return msgspec.structs.replace(admin, key=key, key_file="")

    def _with_secret(self, key: JwtKey, index: int) -> JwtKey:
        place: Place = ("auth", "jwt", "key", index)
        try:
            if key.secret_file and not key.secret and key.algorithm == "HS256":
                secret = read_secret(key.secret_file)
                self._origins[*place, "secret"] = key.secret_file
                return msgspec.structs.replace(key, secret=secret, secret_file="")
        except ConfigError as error:
            self.blame((*place, "secret_file"), str(error))
        try:
            if key.public_key_file and key.algorithm != "HS256":
                problem = rules.public_key_problem(_read(Path(key.public_key_file)), key.algorithm)
                if problem:
                    self.blame((*place, "public_key_file"), f"{key.public_key_file} {problem}")
        except ConfigError as error:
            self.blame((*place, "public_key_file"), str(error))
        return key


def _heading(place: Place) -> str:
    """Return the heading of the table at a place."""
    return f"[{'.'.join(bare_or_quoted(part) for part in place if isinstance(part, str))}]"


def _unknown(section: type[Section], place: Place, value: Any) -> tuple[str, str]:
    """Return how an unknown key or section is called, and what may have been meant. Never shows the value."""
    name = str(place[-1])
    if isinstance(value, dict) or (value and isinstance(value, list) and all(isinstance(v, dict) for v in value)):
        path = _heading(place)[1:-1]
        label = f"[{path}]" if isinstance(value, dict) else f"[[{path}]]"
        return label, f"no such section; {_GONE.get(path) or _nearest_heading(path, name)}"
    label = title(place) if len(place) > 1 else bare_or_quoted(name)
    here = members(section)
    homes = " or ".join(heading for heading, known in _headings().values() if name in known)
    if homes:
        wrong = "no such key in this section" if len(place) > 1 else "stands above all sections"
        return label, f"{wrong}; it belongs in {homes}"
    near = difflib.get_close_matches(name.lower(), here, 1, 0.5)
    if near:
        member = here[near[0]]
        allowed = f" ({member.allowed}, default {default_of(member)})" if isinstance(member, Key) else ""
        return label, f"no such key; did you mean {near[0]}{allowed}?"
    return label, f"no such key; there are {', '.join(here)}"


def _nearest_heading(path: str, name: str) -> str:
    headings = {dotted: heading for dotted, (heading, _) in _headings().items()}
    same = [dotted for dotted in headings if dotted.split(".")[-1] == name]
    near = same or difflib.get_close_matches(path, headings, 1, 0.5)
    return f"did you mean {headings[near[0]]}?" if near else f"there are {', '.join(headings.values())}"


def _headings() -> dict[str, tuple[str, list[str]]]:
    """Return each heading that a file may have, by its dotted name, and the keys that may stand below it."""
    headings = {".".join(table): (f"[{'.'.join(table)}]", _own_keys(section)) for table, section in sections()}
    for place, key in keys():
        name = ".".join(place)
        if key.is_table:
            headings[name] = f"[{name}]", []
        elif key.named:
            headings[name] = f"[{name}.<{key.named.__name__.lower()}>]", _own_keys(key.named)
        elif key.entries:
            headings[name] = f"[[{name}]]", _own_keys(key.entries)
            for inner in members(key.entries).values():
                if isinstance(inner, Key) and inner.is_table:
                    known = list(overridable(inner.overrides)) if inner.overrides else []
                    headings[f"{name}.{inner.name}"] = f"[{name}.{inner.name}]", known
    return headings


def _own_keys(section: type[Section]) -> list[str]:
    """Return the names of a section's keys without those that have a heading of their own."""
    own = members(section).items()
    return [name for name, key in own if isinstance(key, Key) and not (key.entries or key.named or key.is_table)]


def _variable(place: tuple[str, ...]) -> str:
    """Return the name of the environment variable for a key."""
    return PREFIX + "_".join(place).upper().replace("-", "_")


def _is_utf8(text: str) -> bool:
    """Tell whether the bytes of a variable were text; os.environ holds surrogates in place of others."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _nearest_variable(variable: str, variables: list[str]) -> str:
    """Return which variable may have been meant: one of the same section, if there is such a section."""
    section = "_".join(variable.split("_")[:2]) + "_"
    if gone := _GONE.get(section.removeprefix(PREFIX).rstrip("_").lower()):
        return gone
    family = [name for name in variables if name.startswith(section)]
    start = section if family else PREFIX
    ends = {name.removeprefix(start): name for name in family or variables}
    near = difflib.get_close_matches(variable.removeprefix(start), ends, 1, 0.5)
    if near:
        return f"did you mean {ends[near[0]]}?"
    return f"there are {', '.join(family)}" if family else f"the form is {PREFIX}<SECTION>_<KEY>"


def _environment_value(text: str, key: Key) -> Any:
    """Return what a variable means: the TOML value it spells if that is allowed there, else the text itself."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    if set(parsed) != {"value"}:
        return text
    return text if not _fits(parsed["value"], key) and _fits(text, key) else parsed["value"]


def _fits(value: Any, key: Key) -> bool:
    try:
        msgspec.convert(value, key.annotation)
    except msgspec.ValidationError:
        return False
    return True


def _can_be_sent(table: dict[str, Any]) -> bool:
    """Tell whether a free table can be handed to a running worker as part of a Config: MessagePack has 64 bits."""
    try:
        msgspec.msgpack.encode(table)
    except OverflowError:
        return False
    return True


def _found(value: Any, key: Key) -> str:
    """Return a value that does not fit; of an array of strings, its first entry that is none."""
    if isinstance(value, list) and isinstance(key.default, list):
        index, entry = next((index, entry) for index, entry in enumerate(value, 1) if not isinstance(entry, str))
        return f"{found(entry, secret=key.secret)} as entry {index}"
    return found(value, secret=key.secret)


# Files


def read_secret(path_text: str, *, environ: Mapping[str, str] | None = None, folder: Path | None = None) -> str:
    """Return the text of a file without one newline at its end.

    Args:   path_text: may hold ${NAME}; relative to `folder` (default: the current one).
            environ: where NAME is looked up (default: the process's environment).
    Raises: ConfigError: no such variable or file, not readable, not UTF-8, empty.
    """
    path = _absolute(path_text, os.environ if environ is None else environ, folder or Path())
    text = _read(path)
    text = text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")
    if not text:
        raise ConfigError(f"{path}: is empty")
    return text


def load_tokens(config: Config) -> dict[str, str]:
    """Return token -> user id from [auth] tokens_file, a TOML file of lines `"token" = "user"`.

    Raises: ConfigError: one line for each problem, with file and line; never holds a token.
    """
    if not config.auth.tokens_file:
        raise ConfigError('[auth] tokens_file: is empty; name a file of lines "token" = "user"')
    path = Path(config.auth.tokens_file)
    text = _read(path)
    tokens = _parse(text, path, names_are_secret=True)
    if not tokens:
        raise ConfigError(f'{path}: holds no token, so nobody could connect; a line is "token" = "user"')
    bad = {token: problem for token, user in tokens.items() if (problem := _token_problem(token, user))}
    if bad:
        lines = key_lines(text)
        raise ConfigError(_report([f"{path}:{lines[token,]}: {problem}" for token, problem in bad.items()]))
    return tokens


def _token_problem(token: str, user: Any) -> str:
    if not token:
        return "the token is empty"
    if isinstance(user, dict):
        return 'a token that holds dots needs quotes, and sections are not allowed; a line is "token" = "user"'
    if not isinstance(user, str):
        return f"the user is {article(toml_type(user))}; must be a string in quotes"
    return "" if user else "the user is empty"


def _absolute(text: str, environ: Mapping[str, str], folder: Path) -> Path:
    def value(match: re.Match[str]) -> str:
        if match[1] not in environ:
            hint = "; systemd sets it with LoadCredential=" if match[1] == "CREDENTIALS_DIRECTORY" else ""
            raise ConfigError(f"found {found(text)}; the environment has no {match[1]}{hint}")
        return environ[match[1]]

    return folder.absolute() / _REFERENCE.sub(value, text)


def _read(path: Path) -> str:
    """Return a text file. Raises: ConfigError: it cannot be read; the text names the file and the reason."""
    try:
        with path.open("rb") as file:
            content = file.read(_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a directory; must be a file") from None
    except PermissionError:
        raise ConfigError(f"{path}: user id {os.geteuid()} may not read it") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ConfigError(f"{found(str(path))}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > _FILE_BYTES:
        raise ConfigError(f"{path}: is larger than {_FILE_BYTES // 1024**2} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
        raise ConfigError(f"{path}:{line}: not valid UTF-8 (byte 0x{byte:02x}); save it as UTF-8") from None


# TOML


def _parse(text: str, path: Path, *, names_are_secret: bool = False) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{path}: not valid TOML: arrays or tables are nested too deeply") from None
    except ValueError as error:
        # Not only TOMLDecodeError: Python refuses integers of thousands of digits.
        reason = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "a number has too many digits"
    position = _TOML_POSITION.search(reason)
    line = int(position["line"] or text.count("\n") + 1) if position else 0
    column = f" (column {position['column']})" if position and position["column"] else ""
    reason = _TOML_POSITION.sub("", reason)
    hint = next((hint for fragment, hint in _TOML_HINTS.items() if fragment in reason), "")
    if names_are_secret:
        reason = hint or 'a line is "token" = "user"'
    elif hint:
        reason = f"{reason}{column}; {hint}"
    else:
        reason += column
    raise ConfigError(f"{path}{f':{line}' if line else ''}: not valid TOML: {reason}")


def key_lines(text: str) -> dict[Place, int]:
    """Return the line on which each table, key and inline entry of a valid TOML text starts.

    A statement ends with the first line up to which tomllib accepts it: no grammar is repeated here.
    Cost: linear in statements; quadratic in the lines of one value that spans lines.
    """
    lines: dict[Place, int] = {}
    table: Place = ()
    counts: dict[Place, int] = {}
    for number, statement, value in _statements(text):
        if not statement.lstrip().startswith("["):
            _note(lines, table, value, number)
            continue
        table, inner = (), value
        while inner:
            (name, inner), *_ = inner.items()
            table = (*table, name)
            lines.setdefault(table, number)
            if isinstance(inner, list):
                counts[table] = counts.get(table, -1) + 1
                inner = inner[0]
            if table in counts:
                table = (*table, counts[table])
        lines[table] = number
    return lines


def _statements(text: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    source = text.replace("\r\n", "\n").split("\n")
    start = 0
    while start < len(source):
        end = start + 1
        while True:
            statement = "\n".join(source[start:end])
            try:
                value = tomllib.loads(statement)
                break
            except tomllib.TOMLDecodeError:
                if end == len(source):
                    return
                end += 1
        yield start + 1, statement, value
        start = end


def _note(lines: dict[Place, int], place: Place, value: Any, number: int) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            lines.setdefault((*place, name), number)
            _note(lines, (*place, name), inner, number)
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            _note(lines, (*place, index), entry, number)


def _report(problems: list[str]) -> str:
    more = len(problems) - _REPORTED_PROBLEMS
    return "\n".join([*problems[:_REPORTED_PROBLEMS], *([f"… and {more} more"] if more > 0 else [])])
