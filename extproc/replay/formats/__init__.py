"""Kinds of traffic: recorded traces and generators."""

from enum import Enum
from pathlib import Path

import msgspec

from extproc.errors import ConfigError
from extproc.replay.formats.chat_log import ChatLog
from extproc.replay.formats.lines import first_line
from extproc.replay.formats.mooncake import Mooncake
from extproc.replay.formats.shared_prefix import SharedPrefix
from extproc.replay.formats.sharegpt import sharegpt_lengths
from extproc.replay.formats.turns import Turns, lengths

__all__ = [
    "ChatLog",
    "Format",
    "Mooncake",
    "SharedPrefix",
    "Turns",
    "format_of",
    "lengths",
    "sharegpt_lengths",
]


class Format(Enum):
    """What a trace's file holds."""

    MOONCAKE = "Mooncake's trace"
    CHAT_LOG = "a chat log"
    LENGTHS = "lengths of turns"
    SHAREGPT = "ShareGPT's dump"


def format_of(trace: Path) -> Format:
    """By its first line. Raises ConfigError where that is nothing known."""
    line = first_line(trace)
    if line.startswith(b"[["):
        return Format.LENGTHS
    if line.startswith(b"["):
        return Format.SHAREGPT
    try:
        fields = msgspec.json.decode(line) if line else None
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{trace}: line 1: {error}") from None
    if isinstance(fields, dict):
        if "hash_ids" in fields:
            return Format.MOONCAKE
        if "conversations" in fields:
            return Format.SHAREGPT
        if "messages" in fields or "prompt" in fields:
            return Format.CHAT_LOG
    what = "empty" if not line else "no trace that is known (docs/replay.md lists them)"
    raise ConfigError(f"{trace}: is {what}")
