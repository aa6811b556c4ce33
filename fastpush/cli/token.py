"""`fastpush token`: sign a token as your back-end would, for tests; with --url also a URL's parameters, with --channel
a subscription token.
"""

import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

import click
import orjson
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OctKey, RSAKey

from fastpush.channels.namespaces import check_name
from fastpush.cli.common import Text, config_option, fail, load_config, warn
from fastpush.config import Jwt, JwtKey
from fastpush.errors import EXIT_USAGE
from fastpush.http.auth.contract import MAX_TOKEN_BYTES
from fastpush.http.auth.signed import PARAMETERS_MAX

_DAYS_MAX = 36500
_BAD_PERCENT = re.compile("%(?![0-9A-Fa-f]{2})")


class UrlToSign(click.ParamType):  # type: ignore[type-arg]
    """A WebSocket URL whose parameters a token can vouch for: each once, none of them `token`."""

    name = "url"

    def convert(
        self, value: str | SplitResult, param: click.Parameter | None, ctx: click.Context | None
    ) -> SplitResult:
        if isinstance(value, SplitResult):
            return value
        try:
            parts = urlsplit(value)
            good = parts.scheme in {"ws", "wss", "http", "https"} and parts.hostname and parts.port != 0
        except ValueError:
            good = False
        if not good or not value.isprintable() or " " in value:
            self.fail(f"{value!r} is not a URL of a server; write it like wss://host/path?name=value", param, ctx)
        if "#" in value:
            self.fail("a fragment (# and what follows) never reaches a server; write # in a value as %23", param, ctx)
        fault = _query_fault(parts.query)
        if fault:
            self.fail(fault, param, ctx)
        return parts


class Channel(click.ParamType):  # type: ignore[type-arg]
    """The name of a channel."""

    name = "channel"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            check_name(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)
        return value


class Json(click.ParamType):  # type: ignore[type-arg]
    """A JSON value, as a list of one: None stands for an option that was not given."""

    name = "json"

    def convert(self, value: str | list[Any], param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        if isinstance(value, list):
            return value
        try:
            return [orjson.loads(value)]
        except orjson.JSONDecodeError as error:
            self.fail(f"{value!r} is not JSON ({error}); a text needs double quotes of its own", param, ctx)


def _query_fault(query: str) -> str:
    """Return why nobody can vouch for the parameters, "" if one can."""
    try:
        names = [name for name, _ in parse_qsl(query, keep_blank_values=True, errors="strict")]
    except UnicodeError:
        names = None
    if names is None or _BAD_PERCENT.search(query):
        return "the parameters are not percent-encoded UTF-8"
    if "token" in names:
        return "there is a parameter token already; leave it out"
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        return f"the parameter {repeated!r} is repeated"
    return f"there are more than {PARAMETERS_MAX} parameters" if len(names) > PARAMETERS_MAX else ""


@click.command(short_help="Sign a JSON Web Token for tests.")
@click.argument("user", type=Text(may_be_empty=True))
@click.option(
    "--expires", "expires_seconds", type=click.IntRange(-86400 * _DAYS_MAX, 86400 * _DAYS_MAX), default=3600,
    show_default=True, metavar="SECONDS", help="Life in seconds; 0: for ever; less: expired already.",
)  # fmt: skip
@click.option("--kid", help="Key id, when [auth.jwt] has several keys [default: the first key].")
@click.option(
    "--private-key", metavar="FILE", type=click.Path(path_type=Path), help="PEM file, for RS256 and ES256 keys."
)
@click.option(
    "--url", type=UrlToSign(), metavar="URL",
    help="Print this WebSocket URL with the token, which vouches for all its parameters.",
)  # fmt: skip
@click.option(
    "--channel", type=Channel(), metavar="NAME",
    help='Make it a subscription token: USER, "" for anonymous clients, may subscribe to this channel.',
)  # fmt: skip
@click.option(
    "--subscribe", "channels", type=Channel(), metavar="NAME", multiple=True,
    help="Have the server subscribe the connection to this channel. Repeatable.",
)  # fmt: skip
@click.option(
    "--info", type=Json(), metavar="JSON", help='What others in a channel see beside USER, such as \'{"name": "J"}\'.'
)
@config_option
def token(
    user: str,
    expires_seconds: int,
    kid: str | None,
    private_key: Path | None,
    url: SplitResult | None,
    channel: str | None,
    channels: tuple[str, ...],
    info: list[Any] | None,
    config_path: str | None,
) -> None:
    """Print a JSON Web Token for USER, signed with a key of [auth.jwt]."""
    if not user and channel is None:
        raise click.UsageError("USER is empty, as in subscription tokens (--channel) for anonymous clients alone")
    if channel is not None and (channels or url is not None):
        raise click.UsageError("--channel makes a subscription token; --subscribe and --url are for those that connect")
    auth = load_config(config_path).auth
    key = _choose(auth.jwt.key, kid)
    claims = _claims(auth.jwt, user, expires_seconds)
    if url is not None:
        claims["params"] = dict(parse_qsl(url.query, keep_blank_values=True))
    if channel is not None:
        claims["channel"] = channel
    if channels:
        claims["channels"] = channels
    if info is not None:
        claims["info"] = info[0]
    header = {"alg": key.algorithm} | ({"kid": key.kid} if key.kid else {})
    signed = _sign(header, claims, key, private_key)
    if len(signed) > MAX_TOKEN_BYTES:
        fail(f"the token would have more than {MAX_TOKEN_BYTES} bytes; no server would take it", EXIT_USAGE)
    if auth.mode != "jwt":
        warn(f'a server with this configuration does not take it: [auth] mode is "{auth.mode}"')
    click.echo(signed if url is None else _with_token(url, signed))


def _claims(settings: Jwt, user: str, expires_seconds: int) -> dict[str, object]:
    """Return what every token says."""
    now = int(time.time())
    claims: dict[str, object] = {settings.user_claim: user, "iat": now}
    if expires_seconds:
        claims["exp"] = now + expires_seconds
    if settings.audience:
        claims["aud"] = settings.audience
    if settings.issuer:
        claims["iss"] = settings.issuer
    return claims


def _with_token(url: SplitResult, signed: str) -> str:
    pair = urlencode({"token": signed})
    return urlunsplit(url._replace(query=f"{url.query}&{pair}" if url.query else pair))


def _choose(keys: list[JwtKey], kid: str | None) -> JwtKey:
    if not keys:
        fail("[auth.jwt] has no key to sign with; add one as [[auth.jwt.key]]", EXIT_USAGE)
    found = next((key for key in keys if kid in {None, key.kid}), None)
    if found is None:
        fail(f"no key has the kid {kid!r}; there are: {', '.join(repr(key.kid) for key in keys)}", EXIT_USAGE)
    return found


def _sign(header: dict[str, str], claims: dict[str, object], key: JwtKey, private_key: Path | None) -> str:
    if key.algorithm == "HS256":
        return jwt.encode(header, claims, OctKey.import_key(key.secret), algorithms=[key.algorithm])
    if private_key is None:
        fail(f"the key is for {key.algorithm}: give its private key as --private-key FILE", EXIT_USAGE)
    kind = RSAKey if key.algorithm == "RS256" else ECKey
    try:
        signed = jwt.encode(header, claims, kind.import_key(private_key.read_bytes()), algorithms=[key.algorithm])
    except OSError as error:
        fail(f"{private_key} cannot be read: {error.strerror}", EXIT_USAGE)
    except (JoseError, ValueError, TypeError) as error:  # TypeError: it is encrypted
        fail(f"{private_key} is no private key for {key.algorithm}: {error}", EXIT_USAGE)
    _check_pair(signed, kind, key, private_key)
    return signed


def _check_pair(signed: str, kind: type[RSAKey] | type[ECKey], key: JwtKey, private_key: Path) -> None:
    """Find here, not at the first 401, that the two files do not belong together."""
    public = Path(key.public_key_file)
    try:
        jwt.decode(signed, kind.import_key(public.read_bytes()), algorithms=[key.algorithm])
    except (JoseError, ValueError, TypeError, OSError):
        fail(f"{private_key} does not belong to {public}, so no server would take the token", EXIT_USAGE)
