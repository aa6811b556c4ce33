"""`fastpush token`: sign a token as your back-end would, for tests."""

import time
from pathlib import Path

import click
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OctKey, RSAKey

from fastpush.cli.common import EXIT_USAGE, config_option, fail, load_config
from fastpush.config import JwtKey


@click.command()
@click.argument("user")
@click.option("--expires", "expires_seconds", type=float, default=3600, show_default=True, help="Life in seconds; 0: for ever.")
@click.option("--kid", help="Key id, when [auth.jwt] has several keys.")
@click.option("--private-key", type=click.Path(exists=True, dir_okay=False), help="PEM file, for RS256 and ES256 keys.")
@config_option
def token(user: str, expires_seconds: float, kid: str | None, private_key: str | None, config_path: str | None) -> None:
    """Print a JSON Web Token for USER, signed with a key of [auth.jwt]."""
    settings = load_config(config_path).auth.jwt
    key = _choose(settings.key, kid)
    header = {"alg": key.algorithm} | ({"kid": key.kid} if key.kid else {})
    claims: dict[str, object] = {settings.user_claim: user, "iat": int(time.time())}
    if expires_seconds:
        claims["exp"] = int(time.time() + expires_seconds)
    if settings.audience:
        claims["aud"] = settings.audience
    if settings.issuer:
        claims["iss"] = settings.issuer
    try:
        click.echo(jwt.encode(header, claims, _signing_key(key, private_key), algorithms=[key.algorithm]))
    except (JoseError, ValueError) as error:
        fail(f"cannot sign: {error}")


def _choose(keys: list[JwtKey], kid: str | None) -> JwtKey:
    if not keys:
        fail("[auth.jwt] has no key to sign with; add one as [[auth.jwt.key]]", EXIT_USAGE)
    if kid is None:
        return keys[0]
    for key in keys:
        if key.kid == kid:
            return key
    fail(f"no key with kid {kid!r}; there are: {', '.join(repr(key.kid) for key in keys)}", EXIT_USAGE)


def _signing_key(key: JwtKey, private_key: str | None) -> OctKey | RSAKey | ECKey:
    if key.algorithm == "HS256":
        return OctKey.import_key(key.secret)
    if private_key is None:
        fail(f"the key is {key.algorithm}: give the private key with --private-key", EXIT_USAGE)
    pem = Path(private_key).read_text(encoding="ascii")
    return RSAKey.import_key(pem) if key.algorithm == "RS256" else ECKey.import_key(pem)
