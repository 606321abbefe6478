"""Certificates on disk, replaced as Kubernetes replaces those of a mounted secret."""

import itertools
from pathlib import Path

import trustme

from extproc.config import TlsFiles


class Secret:
    """A mounted secret: `tls.crt`, `tls.key` and `ca.crt` are links through the link `..data`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._versions = itertools.count()

    @property
    def files(self) -> TlsFiles:
        """As a server without client certificates has them."""
        return TlsFiles(cert=self.folder / "tls.crt", key=self.folder / "tls.key")

    @property
    def mutual(self) -> TlsFiles:
        """As a server has them that asks clients for theirs."""
        return self.files.model_copy(update={"client_ca": self.folder / "ca.crt"})

    def put(self, issued: trustme.LeafCert, clients: trustme.CA | None = None) -> None:
        """Swap in another certificate, all its files in one rename."""
        new = {"tls.crt": chain(issued), "tls.key": issued.private_key_pem.bytes()}
        if clients is not None:
            new["ca.crt"] = clients.cert_pem.bytes()
        self.put_bytes(new)

    def put_bytes(self, new: dict[str, bytes]) -> None:
        version = self.folder / f"..{next(self._versions)}"
        version.mkdir(parents=True)
        for name, data in new.items():
            (version / name).write_bytes(data)
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(Path("..data", name))
        link = self.folder / "..data_tmp"
        link.symlink_to(version.name)
        link.rename(self.folder / "..data")


def chain(issued: trustme.LeafCert) -> bytes:
    """PEM, its own certificate first."""
    return b"".join(pem.bytes() for pem in issued.cert_chain_pems)
