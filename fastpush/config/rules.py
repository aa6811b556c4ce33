"""What one key alone cannot say: keys that need each other, who could reach an open server, what may change live.

`problems` does no I/O: it judges values, secrets from files already among them.
"""

import base64
import binascii
import difflib
import re
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec

from fastpush.config.schema import (
    Config,
    Jwt,
    JwtKey,
    Key,
    Namespace,
    Place,
    Section,
    bare_or_quoted,
    found,
    members,
    shown,
    title,
)
from fastpush.errors import ConfigError

RESERVED_PATHS = (
    "/",
    "/health",
    "/ready",
    "/metrics",
    "/online",
    "/applications.json",
    "/connection/websocket",
    "/connection/uni_sse",
    "/sse",
)
RESERVED_FOLDERS = ("/assets", "/api", "/admin")
WITHOUT_NAMESPACE = "without_namespace"  # the table for channels without a colon in their names
KEY_CHARACTERS = 16
SECRET_BYTES = 32  # RFC 7518, section 3.2: a key of the same size as the hash output or larger

_LOCALHOST = "localhost"
_HIGHEST_PORT = 65535
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_NAMESPACE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@/-]*")  # RFC 3986 pchar, without percent-encoding
_ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(:(?P<port>[0-9]{1,5}))?")
_PEM = re.compile(r"-----BEGIN (RSA )?PUBLIC KEY-----(?P<body>.*)-----END (RSA )?PUBLIC KEY-----", re.DOTALL)
_RSA = bytes.fromhex("06092a864886f70d010101")  # DER of the object ids rsaEncryption and
_P256 = bytes.fromhex("06082a8648ce3d030107")  # prime256v1 as they stand in a public key


AnySection = TypeVar("AnySection", bound=Section)


class Problem(NamedTuple):
    """One mistake: where to change something, and why."""

    place: Place
    text: str


def check(config: Config) -> None:
    """Judge the keys together.

    Raises: ConfigError: one line for each problem. (`load` does the same and adds file and line.)
    """
    if found_problems := list(problems(config)):
        raise ConfigError("\n".join(f"{title(problem.place)}: {problem.text}" for problem in found_problems))


def problems(config: Config) -> Iterator[Problem]:
    """Yield what is wrong between keys. Only the chosen [auth] mode and [push] auth are judged."""
    yield from _listen_problems(config)
    yield from _path_problems(config)
    for index, application in enumerate(config.application):
        yield from _name_problems(("application", index, "handler"), application.handler, "Class")
    yield from _client_problems(config)
    for name, namespace in config.channels.items():
        yield from _namespace_problems(name, namespace)
    for index, origin in enumerate(config.server.origins):
        if text := _origin_problem(origin):
            yield Problem(("server", "origins", index), text)
    for index, network in enumerate(config.server.trusted_proxies):
        if text := _network_problem(network):
            yield Problem(("server", "trusted_proxies", index), text)
    yield from _auth_problems(config)
    yield from _push_problems(config)
    yield from _admin_problems(config)


# Addresses


def parse_listen(text: str) -> tuple[str, int]:
    """Split `host:port`; an IPv6 host is returned without its brackets.

    The host is an IP address or localhost; port 0 lets the kernel choose.

    Raises: ConfigError: it is something else; the text says what to write.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise ConfigError(f"found {shown(text)}; must be host:port, such as {_example(text)}")
    if not (port.isascii() and port.isdigit() and len(port) <= len(str(_HIGHEST_PORT)) and int(port) <= _HIGHEST_PORT):
        raise ConfigError(f"found {shown(text)}; the port, after the last colon, must be 0 to {_HIGHEST_PORT}")
    if host.lower() == _LOCALHOST:
        return _LOCALHOST, int(port)
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        hint = "an IPv6 address needs brackets: [::1]:8080" if ":" in host else "0.0.0.0 and [::] are every address"
        raise ConfigError(
            f"found {shown(text)}; the host must be an IP address of this machine or localhost ({hint})"
        ) from None
    is_ipv6 = isinstance(address, IPv6Address)
    if bracketed != is_ipv6:
        right = f"[{address}]" if is_ipv6 else address
        raise ConfigError(f"found {shown(text)}; only IPv6 stands in brackets: write {shown(f'{right}:{port}')}")
    return str(address), int(port)


def _example(text: str) -> str:
    port = text.removeprefix(":")
    port = port if port.isascii() and port.isdigit() else "8080"
    return f'"127.0.0.1:{port}" for this machine alone or "0.0.0.0:{port}" for every address'


def addresses(listen: str | list[str]) -> list[tuple[str, int]]:
    """Return what a `listen` key names, as `parse_listen` does; an empty string is no address."""
    return [parse_listen(text) for text in _texts(listen)]


def _texts(listen: str | list[str]) -> list[str]:
    return listen if isinstance(listen, list) else [listen] if listen else []


def _listen_problems(config: Config) -> Iterator[Problem]:
    if not _texts(config.server.listen):
        yield Problem(("server", "listen"), 'names no address; write one, such as "127.0.0.1:8080"')
    seen: dict[tuple[str, int], str] = {}
    for table, listen in (("server", config.server.listen), ("api", config.api.listen)):
        for index, text in enumerate(_texts(listen)):
            place = (table, "listen", index) if isinstance(listen, list) else (table, "listen")
            try:
                address = parse_listen(text)
            except ConfigError as error:
                yield Problem(place, str(error))
                continue
            if address[1] and address in seen:
                yield Problem(place, f"{shown(text)} stands in {seen[address]} already; name an address once")
            seen.setdefault(address, f"[{table}] listen")


# Paths, origins and proxies


def _path_problems(config: Config) -> Iterator[Problem]:
    server = config.server
    paths: list[tuple[Place, str]] = [
        (("server", "websocket_path"), server.websocket_path),
        (("server", "push_path"), server.push_path),
        (("server", "drop_path"), server.drop_path),
    ]
    for index, application in enumerate(config.application):
        paths.append((("application", index, "path"), application.path))
    taken = {server.push_path + "/all": f"{title(('server', 'push_path'))} with /all, which pushes to everybody"}
    for place, path in paths:
        if text := _path_problem(path):
            yield Problem(place, text)
        elif path in taken:
            yield Problem(place, f"{shown(path)} is also {taken[path]}; every path must differ from the others")
        taken.setdefault(path, title(place))


def _path_problem(path: str) -> str:
    """Return what is wrong with one path, or an empty string."""
    if not path.startswith("/"):
        return f"found {found(path)}; must start with a slash: {shown('/' + path)}"
    if not _PATH.fullmatch(path):
        return f"found {found(path)}; must consist of letters, digits and -._~!$&'()*+,;=:@ between slashes"
    if {".", ".."} & set(path.split("/")):
        return f"found {found(path)}; must not hold . or .. between slashes: browsers remove them"
    if path in RESERVED_PATHS or f"{path}/".startswith(tuple(f"{folder}/" for folder in RESERVED_FOLDERS)):
        taken = ", ".join(RESERVED_PATHS)
        folders = " and ".join((", ".join(RESERVED_FOLDERS[:-1]), RESERVED_FOLDERS[-1]))
        return f"found {found(path)}; the server's own pages are there ({taken}, {folders} and all below these)"
    return ""


def _origin_problem(origin: str) -> str:
    if origin in {"*", "null"}:
        return ""
    match = _ORIGIN.fullmatch(origin)
    # Browsers leave out the scheme's own port, so with it an origin would never match.
    needless = {str(_DEFAULT_PORTS.get(match["scheme"])), "0"} if match else set()
    if match and int(match["port"] or 0) <= _HIGHEST_PORT and match["port"] not in needless:
        return ""
    text = f'found {found(origin)}; must be scheme://host or scheme://host:port as browsers send it, "*" or "null"'
    near = _nearest_origin(origin)
    return f"{text}; did you mean {shown(near)}?" if near else text


def _network_problem(text: str) -> str:
    try:
        ip_network(text)
    except ValueError:
        problem = f"found {found(text)}; must be an IP address, or a network such as 10.0.0.0/8"
        try:
            return f"{problem}; did you mean {shown(str(ip_network(text, strict=False)))}?"
        except ValueError:
            return problem
    return ""


def _nearest_origin(origin: str) -> str:
    """Return what a browser sends for the page that was probably meant, or an empty string."""
    try:
        parts = urlsplit(origin if "://" in origin else f"https://{origin}")
        port, host = parts.port, parts.hostname or ""
    except ValueError:
        return ""
    suffix = f":{port}" if port and port != _DEFAULT_PORTS.get(parts.scheme) else ""
    near = f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{suffix}"
    return near if _ORIGIN.fullmatch(near) else ""


# Channels


def _client_problems(config: Config) -> Iterator[Problem]:
    client = config.client
    personal: Place = ("client", "personal_namespace")
    if client.personal_namespace == WITHOUT_NAMESPACE:
        yield Problem(personal, f"must be the name of a namespace; {shown(WITHOUT_NAMESPACE)} is for names without")
    elif client.personal_namespace and client.personal_namespace not in config.channels:
        heading = f"[channels.{bare_or_quoted(client.personal_namespace)}]"
        near = difflib.get_close_matches(client.personal_namespace, config.channels, 1, 0.5)
        hint = f"did you mean {shown(near[0])}?" if near else f"add {heading}"
        yield Problem(personal, f"found {found(client.personal_namespace)}; there is no table {heading}; {hint}")
    if client.handler:
        yield from _name_problems(("client", "handler"), client.handler, "Class")
    elif client.options:
        yield Problem(("client", "options"), "are for the class that [client] handler names, and it names none")


def _namespace_problems(name: str, namespace: Namespace) -> Iterator[Problem]:
    place: Place = ("channels", name)
    if not _NAMESPACE.fullmatch(name):
        yield Problem(place, "the name of a namespace must consist of 1 to 64 letters, digits, _ and -")
    if namespace.recovery and not namespace.history_messages:
        yield Problem((*place, "recovery"), "needs history_messages of at least 1: what was missed comes from there")
    if namespace.join_leave != "off" and not namespace.presence:
        yield Problem((*place, "join_leave"), f"{shown(namespace.join_leave)} needs presence = true")


# Authentication


def _auth_problems(config: Config) -> Iterator[Problem]:
    auth = config.auth
    mode: Place = ("auth", "mode")
    match auth.mode:
        case "static" if not auth.tokens_file:
            yield Problem(mode, '"static" needs [auth] tokens_file, a file of lines "token" = "user"')
        case "jwt":
            yield from _jwt_problems(auth.jwt)
        case "webhook" if not auth.webhook.url:
            yield Problem(mode, '"webhook" needs [auth.webhook] url, which is asked about each token')
        case "webhook":
            yield from _url_problems(("auth", "webhook", "url"), auth.webhook.url)
        case "python" if not auth.python.callable:
            yield Problem(mode, '"python" needs [auth.python] callable, such as "package.module:function"')
        case "python":
            yield from _name_problems(("auth", "python", "callable"), auth.python.callable)


def _jwt_problems(jwt: Jwt) -> Iterator[Problem]:
    if not jwt.key and not jwt.jwks_url:
        yield Problem(("auth", "mode"), '"jwt" needs at least one [[auth.jwt.key]] table or [auth.jwt] jwks_url')
    if jwt.jwks_url:
        yield from _url_problems(("auth", "jwt", "jwks_url"), jwt.jwks_url)
    kids = Counter(key.kid for key in jwt.key)
    for index, key in enumerate(jwt.key):
        place: Place = ("auth", "jwt", "key", index)
        if kids[key.kid] > 1 and key.kid in (other.kid for other in jwt.key[:index]):
            yield Problem((*place, "kid"), f"{shown(key.kid)} is the kid of an earlier key too; each needs its own")
        yield from _jwt_key_problems(place, key)


def _jwt_key_problems(place: Place, key: JwtKey) -> Iterator[Problem]:
    allowed = ("secret", "secret_file") if key.algorithm == "HS256" else ("public_key_file",)
    given = [name for name in ("secret", "secret_file", "public_key_file") if getattr(key, name)]
    wrong = [name for name in given if name not in allowed]
    if wrong:
        yield Problem((*place, wrong[0]), f"does not go with algorithm {shown(key.algorithm)}, {_takes(allowed)}")
    elif len(given) > 1:
        yield Problem((*place, given[1]), f"stands beside {given[0]}; give only one of them")
    elif not given:
        yield Problem((*place, "algorithm"), f"{shown(key.algorithm)} without a key; it {_takes(allowed)[6:]}")
    elif key.secret_file:
        # After a reload that chose another mode, whose files were not read: never verify with an empty secret.
        yield Problem((*place, "secret_file"), "has not been read")
    elif key.secret and len(key.secret.encode()) < SECRET_BYTES:
        text = f"has {len(key.secret.encode())} bytes; HS256 needs at least {SECRET_BYTES}"
        yield Problem((*place, "secret"), f"{text}: `openssl rand -hex 32` makes one")


def _takes(allowed: tuple[str, ...]) -> str:
    return f"which takes {' or '.join(allowed)}"


def public_key_problem(pem: str, algorithm: str) -> str:
    """Return what makes the text of a PEM file unfit as the public key of RS256 or ES256, or an empty string."""
    if "PRIVATE KEY-----" in pem:
        return "holds a private key, which only the signer may have; give the output of `openssl pkey -in FILE -pubout`"
    block = _PEM.search(pem)
    if not block:
        return 'holds no public key in PEM form, which starts with "-----BEGIN PUBLIC KEY-----"'
    try:
        der = base64.b64decode("".join(block["body"].split()), validate=True)
    except binascii.Error:
        return "is damaged: the text between BEGIN and END is not base64"
    is_rsa = bool(block[1]) or _RSA in der
    if algorithm == "RS256" and not is_rsa:
        return "holds no RSA key; RS256 needs one"
    if algorithm == "ES256" and _P256 not in der:
        return "holds no P-256 key; ES256 needs one (`openssl ecparam -name prime256v1 -genkey`)"
    return ""


def _url_problems(place: Place, url: str) -> Iterator[Problem]:
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, brackets that do not close
        good = False
    if not good or not url.isascii() or any(c <= " " or c == "\x7f" for c in url):
        yield Problem(place, f"found {found(url)}; must be a URL that starts with https:// or http:// and names a host")


def _name_problems(place: Place, text: str, kind: str = "function") -> Iterator[Problem]:
    module, colon, name = text.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        yield Problem(place, f'found {found(text)}; must have the form "package.module:{kind}"')


def _push_problems(config: Config) -> Iterator[Problem]:
    push = config.push
    match push.auth:
        case "keys" if not push.keys and not push.keys_file:
            yield Problem(("push", "auth"), '"keys" needs at least one key in [push] keys or keys_file')
        case "keys" if not push.keys:
            yield Problem(("push", "keys_file"), "holds no key, and [push] keys has none either")
        case "keys":
            for index, key in enumerate(push.keys):
                if text := push_key_problem(key):
                    yield Problem(("push", "keys", index), text)
        case "python" if not push.callable:
            yield Problem(("push", "auth"), '"python" needs [push] callable, such as "package.module:function"')
        case "python":
            yield from _name_problems(("push", "callable"), push.callable)


def push_key_problem(key: str) -> str:
    """Return why a push key cannot be used, or an empty string; never shows the key."""
    if len(key) < KEY_CHARACTERS:
        return f"has {len(key)} characters; needs at least {KEY_CHARACTERS}: `openssl rand -hex 16` makes one"
    if not all("!" <= character <= "~" for character in key):
        return "holds a space or a character that is not printable ASCII, which an HTTP header cannot carry"
    return ""


def _admin_problems(config: Config) -> Iterator[Problem]:
    key, place = config.admin.key, ("admin", "key")
    if key and config.admin.key_file:
        yield Problem(("admin", "key_file"), "stands beside key; give only one of them")
    if key and len(key) < KEY_CHARACTERS:
        text = f"has {len(key)} characters; needs at least {KEY_CHARACTERS}"
        yield Problem(place, f"{text}: `openssl rand -hex 16` makes one")
    elif not key.isprintable():
        yield Problem(place, "holds a character that nobody can type into a form, such as a line's end")


# Exposure


def open_keys(config: Config) -> list[str]:
    """Return the keys that leave the server open to everybody who can reach it; empty: it is protected."""
    unset = {"[auth] mode": config.auth.mode == "token-is-user", "[push] auth": config.push.auth == "none"}
    return [name for name, is_open in unset.items() if is_open]


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches a host: 127.0.0.0/8, ::1 or localhost."""
    if host == _LOCALHOST:
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    # Python 3.13 looks into ::ffff:127.0.0.1, earlier ones do not.
    return address.is_loopback and getattr(address, "ipv4_mapped", None) is None


def check_exposure(config: Config) -> None:
    """Refuse an open server on an address that others can reach.

    Inherited sockets are not in `config`: ask `open_keys` and `is_loopback` about their bound addresses.

    Raises: ConfigError: names the addresses and the keys to set.
    """
    now = {
        "[auth] mode": f'[auth] mode (now "{config.auth.mode}": every token is believed)',
        "[push] auth": f'[push] auth (now "{config.push.auth}": everybody may push)',
    }
    unset = " and ".join(now[name] for name in open_keys(config))
    listens = (("[server] listen", config.server.listen), ("[api] listen", config.api.listen))
    reachable = [
        f"{name}: {shown(text)} can be reached from other machines"
        for name, listen in listens
        for text in _texts(listen)
        if not is_loopback(parse_listen(text)[0])
    ]
    if unset and reachable:
        raise ConfigError("\n".join(f"{line}; set {unset} first, or listen on 127.0.0.1 only" for line in reachable))


# Reload


def changes(old: Config, new: Config) -> tuple[list[str], list[str]]:
    """Return the dotted names of keys whose values differ: (taken over by a reload, need a restart).

    What stands IN tokens_file, a key file or a certificate is not compared: whoever reloads reads these again.
    """
    stays = _staying(old, new)
    differing = [(name, key) for name, key, before, after in _pairs(old, new) if before != after]
    live = [name for name, key in differing if key.live and name not in stays]
    return live, [name for name, _ in differing if name not in live]


def _staying(old: Config, new: Config) -> tuple[str, ...]:
    """Return live keys that a restart takes over this time: listeners speak TLS for their whole life, or never."""
    return () if bool(old.tls.certificate) == bool(new.tls.certificate) else ("tls.certificate", "tls.key")


def _pairs(old: Section, new: Section, table: str = "") -> Iterator[tuple[str, Key, object, object]]:
    for name, member in members(type(old)).items():
        before, after = getattr(old, name), getattr(new, name)
        if isinstance(member, Key) and member.named:
            yield from _named_pairs(member, before, after, f"{table}{name}.")
        elif isinstance(member, Key):
            yield table + name, member, before, after
        else:
            yield from _pairs(before, after, f"{table}{name}.")


def _named_pairs(
    key: Key, old: dict[str, Section], new: dict[str, Section], table: str
) -> Iterator[tuple[str, Key, object, object]]:
    """Yield the keys of each table that stays, and each table that comes or goes."""
    for name in dict.fromkeys((*old, *new)):
        if name in old and name in new:
            yield from _pairs(old[name], new[name], f"{table}{name}.")
        else:
            yield table + name, key, old.get(name), new.get(name)


def merge_handlers(old: Config, new: Config) -> Config:
    """Return `old` with the classes that `new` names and their options, which workers read when they start."""
    client = msgspec.structs.replace(old.client, handler=new.client.handler, options=new.client.options)
    return msgspec.structs.replace(old, application=new.application, client=client)


def merge_live(old: Config, new: Config) -> Config:
    """Return `old` with the live keys of `new`.

    Raises: ConfigError: the server would be open to everybody and was not: a restart does that.
    """
    opened = [name for name in open_keys(new) if name not in open_keys(old)]
    if opened:  # most likely the file was read while it was being written
        raise ConfigError(f"nothing is reloaded: {' and '.join(opened)} would ask nobody any more; a restart does that")
    return _merged(old, new, "", _staying(old, new))


def _merged(old: AnySection, new: AnySection, table: str, stays: tuple[str, ...]) -> AnySection:
    taken: dict[str, Any] = {}
    for name, member in members(type(old)).items():
        if not isinstance(member, Key):
            taken[name] = _merged(getattr(old, name), getattr(new, name), f"{table}{name}.", stays)
        elif member.live and table + name not in stays:
            taken[name] = getattr(new, name)
    return msgspec.structs.replace(old, **taken)
