"""The certificate that `[tls]` names: judged, loaded into a context, described.

OpenSSL tells little about files that it does not take. So they are read here first, and what is
wrong is said with the key, the file and the way out; OpenSSL has the last word, on what it finds too weak.
"""

import re
import ssl
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from fastpush.config.schema import Place, Tls, title
from fastpush.errors import ConfigError

# Forward secrecy and authenticated encryption only: of TLS 1.2 what browsers of the last ten years choose.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
_KEY = re.compile(rb"-----BEGIN (?P<kind>[A-Z0-9 ]*PRIVATE KEY)-----.*?-----END (?P=kind)-----", re.DOTALL)
_CERTIFICATE = ("tls", "certificate")
_PRIVATE_KEY = ("tls", "key")


class TlsError(ConfigError):
    """A file of [tls] is of no use. place: the key that names it."""

    def __init__(self, place: Place, text: str) -> None:
        super().__init__(f"{title(place)}: {text}")
        self.place = place


class Certificate(NamedTuple):
    """What a server's certificate says.

    names: DNS names and IP addresses that it is valid for.  issuer: who signed it, as RFC 4514 writes it.
    not_before, not_after: with time zone.
    """

    names: tuple[str, ...]
    issuer: str
    is_self_signed: bool
    not_before: datetime
    not_after: datetime


def server_context(tls: Tls) -> ssl.SSLContext:
    """Return what a server accepts TLS connections with.

    TLS 1.2 and 1.3, HTTP/1.1 (ALPN), no compression, no renegotiation. Sessions are not resumed in TLS 1.3; in 1.2
    by tickets, whose key is the context's own: with another context they are worth nothing.

    Raises: TlsError: a file cannot be read, holds no certificate or no usable key, or they do not belong together.
            A certificate that has expired is no error.
    """
    if not tls.certificate:
        raise TlsError(_PRIVATE_KEY if tls.key else _CERTIFICATE, "there is no [tls] certificate")
    certificates = _certificates(tls.certificate)
    place, key_path = (_PRIVATE_KEY, tls.key) if tls.key else (_CERTIFICATE, tls.certificate)
    _check_pair(certificates, _private_key(place, key_path), place, key_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    # A client that comes back mostly meets another worker, and there its ticket is worth nothing.
    context.num_tickets = 0
    try:
        context.load_cert_chain(tls.certificate, key_path, password="")  # never asked for on a terminal
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or error.strerror or str(error)
        raise TlsError(_CERTIFICATE, f"{tls.certificate}: OpenSSL does not take it: {reason}") from None
    return context


def describe_certificate(path: str) -> Certificate:
    """Return what the first certificate of a PEM file says, which is the server's own. Raises: TlsError."""
    own = _certificates(path)[0]
    try:
        alternatives = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        names: tuple[str, ...] = ()
    else:
        addresses = map(str, alternatives.get_values_for_type(x509.IPAddress))
        names = (*alternatives.get_values_for_type(x509.DNSName), *addresses)
    return Certificate(
        names=names,
        issuer=own.issuer.rfc4514_string(),
        is_self_signed=own.issuer == own.subject,
        not_before=own.not_valid_before_utc,
        not_after=own.not_valid_after_utc,
    )


def certificate_expiry(path: str) -> datetime:
    """Return when the first certificate of a PEM file expires, with time zone. Raises: TlsError."""
    return describe_certificate(path).not_after


def _content(place: Place, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise TlsError(place, f"{path}: cannot be read: {reason}") from None


def _certificates(path: str) -> list[x509.Certificate]:
    content = _content(_CERTIFICATE, path)
    if b"-----BEGIN CERTIFICATE-----" not in content:
        hint = "; it holds a private key, which belongs in [tls] key" if _KEY.search(content) else ""
        raise TlsError(
            _CERTIFICATE, f'{path}: holds no certificate in PEM form, which starts "-----BEGIN CERTIFICATE-----"{hint}'
        )
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        raise TlsError(_CERTIFICATE, f"{path}: a certificate in it is damaged") from None


def _private_key(place: Place, path: str) -> PrivateKeyTypes:
    block = _KEY.search(_content(place, path))
    if block is None:
        hint = "" if place == _PRIVATE_KEY else "; name the file that holds it in [tls] key"
        raise TlsError(place, f'{path}: holds no private key in PEM form ("-----BEGIN PRIVATE KEY-----"){hint}')
    if b"ENCRYPTED" in block[0]:
        raise TlsError(
            place,
            f"{path}: the private key is encrypted, and nobody can be asked for its passphrase; "
            f"`openssl pkey -in FILE -out NEW_FILE` writes it without",
        )
    try:
        return load_pem_private_key(block[0], None)
    except (ValueError, UnsupportedAlgorithm):
        raise TlsError(place, f"{path}: the private key is damaged, or of a kind that OpenSSL does not know") from None


def _check_pair(certificates: list[x509.Certificate], key: PrivateKeyTypes, place: Place, path: str) -> None:
    """Check that the key is that of the first certificate. Raises: TlsError."""
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    fits = [
        certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == public
        for certificate in certificates
    ]
    if fits[0]:
        return
    if any(fits):
        raise TlsError(
            _CERTIFICATE, "the server's own certificate must come first in the file, those that it was signed with next"
        )
    raise TlsError(place, f"{path}: the private key does not belong to the certificate")
