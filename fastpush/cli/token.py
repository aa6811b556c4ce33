"""`fastpush token`: sign a token as your back-end would, for tests; with --url also a URL's parameters."""

import re
import time
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

import click
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OctKey, RSAKey

from fastpush.cli.common import TEXT, config_option, fail, load_config, warn
from fastpush.config import JwtKey
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
@click.argument("user", type=TEXT)
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
@config_option
def token(
    user: str,
    expires_seconds: int,
    kid: str | None,
    private_key: Path | None,
    url: SplitResult | None,
    config_path: str | None,
) -> None:
    """Print a JSON Web Token for USER, signed with a key of [auth.jwt]."""
    auth = load_config(config_path).auth
    settings = auth.jwt
    key = _choose(settings.key, kid)
    now = int(time.time())
    claims: dict[str, object] = {settings.user_claim: user, "iat": now}
    if expires_seconds:
        claims["exp"] = now + expires_seconds
    if settings.audience:
        claims["aud"] = settings.audience
    if settings.issuer:
        claims["iss"] = settings.issuer
    if url is not None:
        claims["params"] = dict(parse_qsl(url.query, keep_blank_values=True))
    header = {"alg": key.algorithm} | ({"kid": key.kid} if key.kid else {})
    signed = _sign(header, claims, key, private_key)
    if auth.mode != "jwt":
        warn(f'a server with this configuration does not take it: [auth] mode is "{auth.mode}"')
    click.echo(signed if url is None else _with_token(url, signed))


def _with_token(url: SplitResult, signed: str) -> str:
    if len(signed) > MAX_TOKEN_BYTES:
        fail(f"the token would have more than {MAX_TOKEN_BYTES} bytes; no server would take it", EXIT_USAGE)
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
