"""[tls]: what is said of files that are of no use, and what a certificate says of itself."""

import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fastpush import config as configuration
from fastpush.config import Tls
from fastpush.config.tls import TlsError, certificate_expiry, describe_certificate, server_context
from fastpush.errors import ConfigError
from tests.certificates import make_certificate


def problem_of(certificate: Path | str, key: Path | str = "") -> tuple[str, str]:
    """Return the place and the text of what is wrong."""
    with pytest.raises(TlsError) as raised:
        server_context(Tls(certificate=str(certificate), key=str(key)))
    return ".".join(map(str, raised.value.place)), str(raised.value)


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
@pytest.mark.parametrize("apart", [False, True], ids=["one file", "two files"])
def test_a_usable_certificate(tmp_path: Path, kind: str, *, apart: bool) -> None:
    """Key and certificate stand in one file or in two; the context speaks TLS 1.2 and later, and no renegotiation."""
    key = tmp_path / "key.pem" if apart else None
    certificate = make_certificate(tmp_path / "certificate.pem", kind, key_path=key)
    context = server_context(Tls(certificate=str(certificate), key=str(key or "")))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION
    assert all("CBC" not in cipher["name"] and "RC4" not in cipher["name"] for cipher in context.get_ciphers())


def test_an_expired_certificate_is_loaded(tmp_path: Path) -> None:
    """A certificate that has expired is no reason not to start: half of the clients may not even look."""
    server_context(Tls(certificate=str(make_certificate(tmp_path / "old.pem", days=-1))))


def missing(folder: Path) -> tuple[Path, Path | str]:
    return folder / "nowhere.pem", ""


def is_a_folder(folder: Path) -> tuple[Path, Path | str]:
    return folder, ""


def holds_no_certificate(folder: Path) -> tuple[Path, Path | str]:
    path = folder / "empty.pem"
    path.write_text("nothing here\n")
    return path, ""


def is_the_key(folder: Path) -> tuple[Path, Path | str]:
    make_certificate(folder / "c.pem", key_path=folder / "k.pem")
    return folder / "k.pem", folder / "k.pem"


def is_damaged(folder: Path) -> tuple[Path, Path | str]:
    path = folder / "damaged.pem"
    text = make_certificate(folder / "c.pem").read_text()
    path.write_text(text[:100] + "AAAA" + text[110:])
    return path, ""


def has_no_key_beside_it(folder: Path) -> tuple[Path, Path | str]:
    return make_certificate(folder / "c.pem", key_path=folder / "k.pem"), ""


def key_is_missing(folder: Path) -> tuple[Path, Path | str]:
    return make_certificate(folder / "c.pem"), folder / "nowhere.key"


def key_file_holds_none(folder: Path) -> tuple[Path, Path | str]:
    certificate = make_certificate(folder / "c.pem", key_path=folder / "k.pem")
    return certificate, certificate


def key_is_encrypted(folder: Path) -> tuple[Path, Path | str]:
    return make_certificate(folder / "c.pem", key_path=folder / "k.pem", passphrase="secret"), folder / "k.pem"


def key_is_damaged(folder: Path) -> tuple[Path, Path | str]:
    certificate = make_certificate(folder / "c.pem", key_path=folder / "k.pem")
    (folder / "k.pem").write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    return certificate, folder / "k.pem"


def key_is_of_another(folder: Path) -> tuple[Path, Path | str]:
    make_certificate(folder / "other.pem", key_path=folder / "k.pem")
    return make_certificate(folder / "c.pem"), folder / "k.pem"


def chain_is_in_the_wrong_order(folder: Path) -> tuple[Path, Path | str]:
    own = make_certificate(folder / "own.pem", key_path=folder / "k.pem")
    return make_certificate(folder / "c.pem", key_path=folder / "issuer.key", intermediate=own), folder / "k.pem"


def is_too_weak(folder: Path) -> tuple[Path, Path | str]:
    return make_certificate(folder / "c.pem", "weak"), ""


@pytest.mark.parametrize(
    ("make", "place", "text"),
    [
        (missing, "tls.certificate", "nowhere.pem: cannot be read: No such file or directory"),
        (is_a_folder, "tls.certificate", "cannot be read: Is a directory"),
        (holds_no_certificate, "tls.certificate", "empty.pem: holds no certificate in PEM form"),
        (is_the_key, "tls.certificate", "k.pem: holds no certificate in PEM form"),
        (is_damaged, "tls.certificate", "damaged.pem: a certificate in it is damaged"),
        (has_no_key_beside_it, "tls.certificate", "c.pem: holds no private key in PEM form"),
        (key_is_missing, "tls.key", "nowhere.key: cannot be read: No such file or directory"),
        (key_file_holds_none, "tls.key", "c.pem: holds no private key in PEM form"),
        (key_is_encrypted, "tls.key", "k.pem: the private key is encrypted"),
        (key_is_damaged, "tls.key", "k.pem: the private key is damaged"),
        (key_is_of_another, "tls.key", "k.pem: the private key does not belong to the certificate"),
        (chain_is_in_the_wrong_order, "tls.certificate", "own certificate must come first"),
        (is_too_weak, "tls.certificate", "c.pem: OpenSSL does not take it"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, make: Callable[[Path], tuple[Path, Path | str]], place: str, text: str
) -> None:
    """A file of no use is refused with the key that names it, the file and the reason."""
    found_place, found = problem_of(*make(tmp_path))
    assert found_place == place
    assert found.startswith(f"[tls] {place.removeprefix('tls.')}: ")
    assert text in found


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that this user may not read is told from one that is missing."""

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "cannot be read: Permission denied" in problem_of(tmp_path / "c.pem")[1]


def test_a_configuration_with_a_bad_certificate_is_refused(tmp_path: Path) -> None:
    """`load` names file and line of the setting, as for every other mistake."""
    path = tmp_path / "config.toml"
    path.write_text('[tls]\ncertificate = "nowhere.pem"\n')
    with pytest.raises(ConfigError) as raised:
        configuration.load(path, environ={})
    assert str(raised.value).startswith(f"{path}:2: [tls] certificate: {tmp_path}/nowhere.pem: cannot be read")


def test_a_key_needs_a_certificate(tmp_path: Path) -> None:
    """[tls] key alone, a half-written section, is refused instead of serving plain text."""
    make_certificate(tmp_path / "c.pem", key_path=tmp_path / "k.pem")
    path = tmp_path / "config.toml"
    path.write_text('[tls]\nkey = "k.pem"\n')
    with pytest.raises(ConfigError, match=r"config.toml:2: \[tls\] key: there is no \[tls\] certificate"):
        configuration.load(path, environ={})


def test_a_good_configuration_is_loaded(tmp_path: Path) -> None:
    """Names of [tls] are relative to the configuration's folder."""
    make_certificate(tmp_path / "c.pem", key_path=tmp_path / "k.pem")
    path = tmp_path / "config.toml"
    path.write_text('[tls]\ncertificate = "c.pem"\nkey = "k.pem"\n')
    config = configuration.load(path, environ={})
    assert config.tls.certificate == str(tmp_path / "c.pem")
    assert config.tls.key == str(tmp_path / "k.pem")


def test_a_certificate_is_described(tmp_path: Path) -> None:
    """Names, issuer and dates are those of the first certificate in the file."""
    other = make_certificate(tmp_path / "other.pem", key_path=tmp_path / "other.key", days=1)
    path = make_certificate(
        tmp_path / "c.pem", names=("push.example", "*.push.example", "192.0.2.1"), days=10, intermediate=other
    )
    described = describe_certificate(str(path))
    assert described.names == ("push.example", "*.push.example", "192.0.2.1")
    assert described.issuer == "CN=fastpush test c.pem"
    assert described.is_self_signed
    assert described.not_before < datetime.now(UTC)
    assert described.not_after == certificate_expiry(str(path))
    assert timedelta(days=9) < certificate_expiry(str(path)) - datetime.now(UTC) < timedelta(days=11)
