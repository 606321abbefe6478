"""Files of JSON lines, plain or compressed."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from extproc.errors import ConfigError

Line = TypeVar("Line")


def lines_of(path: Path) -> Iterator[bytes]:
    """Lines that are not empty, one at a time. Raises ConfigError where it cannot be read."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from (line for line in file if line.strip())
    except (OSError, EOFError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def first_line(path: Path) -> bytes:
    """The first line that is not empty; nothing where there is none."""
    return next(lines_of(path), b"")


def decoded(path: Path, kind: type[Line]) -> Iterator[Line]:
    """Every line as this type. Raises ConfigError with the number of one that is not."""
    decode = msgspec.json.Decoder(kind).decode
    for number, line in enumerate(lines_of(path), 1):
        try:
            yield decode(line)
        except msgspec.MsgspecError as error:
            raise ConfigError(f"{path}: line {number}: {error}") from None
