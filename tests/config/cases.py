"""Pairs of a configuration and what is said about it, a file each: input, `----`, findings."""

from functools import cache
from pathlib import Path

import trustme

from extproc.config import load_config
from extproc.errors import ConfigError

FOLDER = Path(__file__).parent / "errors"
SEPARATOR = "----\n"


@cache
def certificates() -> dict[str, bytes]:
    """PEM files by name."""
    ca = trustme.CA()
    issued, other = ca.issue_cert("homing.example"), ca.issue_cert("other.example")
    return {
        "tls.crt": b"".join(pem.bytes() for pem in issued.cert_chain_pems),
        "tls.key": issued.private_key_pem.bytes(),
        "ca.crt": ca.cert_pem.bytes(),
        "other.key": other.private_key_pem.bytes(),
    }


def findings(text: str, folder: Path) -> str:
    """What loading the text as `homing.yaml` says, "" where it is right.

    Beside the file are `tok`, a tokenizer's folder, `empty`, a folder without files, and
    `tls.crt`, `tls.key`, `ca.crt`, `other.key`, a key of another certificate, and `etcd-password`.
    """
    (folder / "tok").mkdir()
    (folder / "tok" / "tokenizer.json").write_text("{}")
    (folder / "empty").mkdir()
    (folder / "etcd-password").write_text("secret\n")
    for name, pem in certificates().items():
        (folder / name).write_bytes(pem)
    file = folder / "homing.yaml"
    file.write_text(text)
    try:
        load_config(file)
    except ConfigError as error:
        return str(error).replace(f"{folder}/", "")
    return ""
