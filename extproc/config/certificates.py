"""Certificates and keys from PEM files, read together and checked before anybody uses them."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from extproc.config.model import TlsFiles
from extproc.errors import ConfigError


class CertificateError(ConfigError):
    """A file of the section `tls` cannot be used.

    field: which of the section's; what: is wrong with it. Nothing of a key is in the text.
    """

    def __init__(self, field: str, what: str) -> None:
        super().__init__(f"tls.{field}: {what}")
        self.field = field
        self.what = what


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a server shows, and whom it lets in; PEM.

    chain: its own certificate first. client_ca: None where clients need no certificate.
    expires: end of the validity of its own certificate, in UTC.
    """

    chain: bytes
    key: bytes
    client_ca: bytes | None
    expires: datetime


def read_certificate(files: TlsFiles) -> Certificate:
    """Read the files now; the key is the certificate's.

    Raises CertificateError. Files that are replaced one after the other can be seen in between, as
    a key that does not belong to its certificate: whoever watches them reads again.
    """
    chain, key = _read("cert", files.cert), _read("key", files.key)
    certificate = _parse("cert", files.cert, chain)
    if certificate.public_key() != _parse_key(files.key, key).public_key():
        raise CertificateError("key", f"{files.key} does not belong to {files.cert}")
    client_ca = None
    if files.client_ca is not None:
        client_ca = _read("client_ca", files.client_ca)
        _parse("client_ca", files.client_ca, client_ca)
    return Certificate(chain, key, client_ca, certificate.not_valid_after_utc)


def _read(field: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CertificateError(field, f"{file} cannot be read: {error.strerror}") from None


def _parse(field: str, file: Path, pem: bytes) -> x509.Certificate:
    """The first certificate of the file, which has none but good ones."""
    try:
        return x509.load_pem_x509_certificates(pem)[0]
    except ValueError:
        raise CertificateError(field, f"{file} is no certificate in PEM") from None


def _parse_key(file: Path, pem: bytes) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(pem, password=None)
    except TypeError:
        raise CertificateError("key", f"{file} has a passphrase; write it without one") from None
    except (ValueError, UnsupportedAlgorithm):
        raise CertificateError("key", f"{file} is no private key in PEM") from None
