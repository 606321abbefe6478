"""The certificate that gRPC shows: from files that are replaced as they run out, or made here."""

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from extproc.config import TlsFiles
from extproc.config.certificates import Certificate, read_certificate

logger = logging.getLogger("homing.tls")

SELF_SIGNED_NAME = "homing"
SELF_SIGNED_DAYS = 3650
"""Longer than a process runs: nobody verifies it, so nobody would be served by an end."""


class ServerTls:
    """The certificate of new connections; open ones keep what they were opened with.

    source: where it is from. Raises ConfigError where files cannot be used.
    """

    def __init__(self, source: TlsFiles | Literal["self-signed"]) -> None:
        self._files = source if isinstance(source, TlsFiles) else None
        self._certificate = read_certificate(self._files) if self._files else self_signed()
        self._fresh: grpc.ServerCertificateConfiguration | None = None
        self._warn()

    @property
    def files(self) -> tuple[Path, ...]:
        """What to watch, and to `refresh` after; none where the certificate was made here."""
        if self._files is None:
            return ()
        return tuple(file for file in self._files.model_dump().values() if file is not None)

    @property
    def expires(self) -> datetime:
        """When the certificate of new connections ends."""
        return self._certificate.expires

    def credentials(self) -> grpc.ServerCredentials:
        """For one port of a gRPC server."""
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._certificate),
            self._fetch,
            require_client_authentication=self._certificate.client_ca is not None,
        )

    def refresh(self) -> bool:
        """Read the files again, off the event loop; whether they have changed.

        Raises CertificateError where they cannot be used: what was served before stays.
        """
        if self._files is None:
            return False
        certificate = read_certificate(self._files)
        if certificate == self._certificate:
            return False
        self._certificate = certificate
        self._fresh = _configuration(certificate)
        self._warn()
        return True

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """For gRPC's own thread, before each handshake; None: nothing new."""
        fresh, self._fresh = self._fresh, None
        return fresh

    def _warn(self) -> None:
        if self.expires <= datetime.now(UTC):
            logger.warning("the certificate ended on %s", self.expires)


def self_signed() -> Certificate:
    """A new key and a certificate of its own for it: encrypts, and proves nothing."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SELF_SIGNED_NAME)])
    now = datetime.now(UTC).replace(microsecond=0)
    expires = now + timedelta(days=SELF_SIGNED_DAYS)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # clocks differ
        .not_valid_after(expires)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(SELF_SIGNED_NAME)]), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    return Certificate(
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        None,
        expires,
    )


def _configuration(certificate: Certificate) -> grpc.ServerCertificateConfiguration:
    pair = (certificate.key, certificate.chain)
    return grpc.ssl_server_certificate_configuration([pair], certificate.client_ca)
