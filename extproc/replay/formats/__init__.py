"""Kinds of traffic: recorded traces and generators."""

from extproc.replay.formats.mooncake import Mooncake
from extproc.replay.formats.shared_prefix import SharedPrefix
from extproc.replay.formats.turns import Turns

__all__ = ["Mooncake", "SharedPrefix", "Turns"]
