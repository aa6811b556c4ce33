"""Self-signed certificates for tests: real ones, made in a moment."""

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

Kind = Literal["ecdsa", "rsa", "weak"]


def make_certificate(
    path: Path, kind: Kind = "ecdsa", *, days: float = 30, names: tuple[str, ...] = ("localhost", "127.0.0.1"),
    key_path: Path | None = None, passphrase: str = "", intermediate: Path | None = None,
) -> Path:  # fmt: skip
    """Write a certificate, and its key into the same file or `key_path`; return `path`.

    kind: "weak" is RSA with a key that nobody takes any more.
    days: until it expires, from now on; may be negative.  intermediate: a PEM file to append.
    """
    key = ec.generate_private_key(ec.SECP256R1()) if kind == "ecdsa" else _rsa(1024 if kind == "weak" else 2048)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"fastpush test {path.name}")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=100))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([_name(name) for name in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encryption = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    public = certificate.public_bytes(Encoding.PEM) + (intermediate.read_bytes() if intermediate else b"")
    if key_path is None:
        path.write_bytes(public + private)
    else:
        path.write_bytes(public)
        key_path.write_bytes(private)
    return path


def _rsa(bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def trusting(*certificates: Path) -> ssl.SSLContext:
    """Return a client's context that trusts these certificates and no others."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for certificate in certificates:
        context.load_verify_locations(certificate)
    return context
