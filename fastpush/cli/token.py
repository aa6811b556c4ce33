"""`fastpush token`: sign a token as your back-end would, for tests."""

import time
from pathlib import Path

import click
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OctKey, RSAKey

from fastpush.cli.common import TEXT, config_option, fail, load_config, warn
from fastpush.config import JwtKey
from fastpush.errors import EXIT_USAGE

_DAYS_MAX = 36500


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
@config_option
def token(user: str, expires_seconds: int, kid: str | None, private_key: Path | None, config_path: str | None) -> None:
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
    header = {"alg": key.algorithm} | ({"kid": key.kid} if key.kid else {})
    signed = _sign(header, claims, key, private_key)
    if auth.mode != "jwt":
        warn(f'a server with this configuration does not take it: [auth] mode is "{auth.mode}"')
    click.echo(signed)


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
