"""Kinds of traffic: recorded traces and generators."""

from pathlib import Path

from extproc.errors import ConfigError
from extproc.replay.formats.lines import first_line
from extproc.replay.formats.mooncake import Mooncake
from extproc.replay.formats.shared_prefix import SharedPrefix
from extproc.replay.formats.turns import Turns

__all__ = ["Mooncake", "SharedPrefix", "Turns", "format_of"]


def format_of(trace: Path) -> type[Mooncake] | type[Turns]:
    """What a file holds, by its first line. Raises ConfigError where that is nothing known."""
    line = first_line(trace)
    if line.startswith(b"{") and b"hash_ids" in line:
        return Mooncake
    if line.startswith(b"[["):
        return Turns
    raise ConfigError(f"{trace}: neither a Mooncake trace nor lengths of turns")
