"""Published routing policies, re-implemented from their descriptions, to be compared with.

Each is a `Policy` of one file with its source and its published defaults. They see what the
product's own policies see, and what `LabView` and `LabTurn` add. Reasons are not given: a score's
seconds are 0.
"""

from collections.abc import Callable, Mapping

from extproc.replay.baselines.aibrix import AIBrixPrefixCache
from extproc.replay.baselines.counting import LeastRequests, LeastTokens, LongestPrefix, RoundRobin
from extproc.replay.baselines.lmetric import LMetric
from extproc.replay.baselines.mooncake import MinTTFT
from extproc.replay.baselines.session import SessionHash
from extproc.replay.baselines.sglang import SGLangCacheAware
from extproc.routing import Policy

BASELINES: Mapping[str, Callable[[], Policy]] = {
    "round-robin": RoundRobin,
    "least-requests": LeastRequests,
    "least-tokens": LeastTokens,
    "longest-prefix": LongestPrefix,
    "session-hash": SessionHash,
    "sglang-cache-aware": SGLangCacheAware,
    "aibrix-prefix-cache": AIBrixPrefixCache,
    "mooncake-min-ttft": MinTTFT,
    "lmetric": LMetric,
}

__all__ = ["BASELINES"]
