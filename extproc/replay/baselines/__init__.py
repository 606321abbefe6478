"""Published routing policies, re-implemented from their descriptions, to be compared with.

Each is a `Policy` of one file with its source and its published defaults. They see what the
product's own policies see, and what `LabView` and `LabTurn` add. Reasons are not given: a score's
seconds are 0.
"""

from collections.abc import Callable, Mapping

from extproc.replay.baselines.aibrix import AIBrixPrefixCache
from extproc.replay.baselines.counting import LeastRequests, LongestPrefix
from extproc.replay.baselines.dualmap import DualMap
from extproc.replay.baselines.dynamo import Dynamo
from extproc.replay.baselines.gorgo import Gorgo
from extproc.replay.baselines.llmd import LLMDDefault, LLMDSticky
from extproc.replay.baselines.lmetric import LMetric
from extproc.replay.baselines.mooncake import MinTTFT
from extproc.replay.baselines.preble import PrebleE2
from extproc.replay.baselines.session import SessionHash, SessionLeastLoaded
from extproc.replay.baselines.sglang import SGLangCacheAware
from extproc.routing import LeastTokens, Policy, PricedTTFT, RoundRobin

BASELINES: Mapping[str, Callable[[], Policy]] = {
    "round-robin": RoundRobin,
    "least-requests": LeastRequests,
    "least-tokens": LeastTokens,
    "longest-prefix": LongestPrefix,
    "session-hash": SessionHash,
    "session-least-loaded": SessionLeastLoaded,
    "sglang-cache-aware": SGLangCacheAware,
    "aibrix-prefix-cache": AIBrixPrefixCache,
    "mooncake-min-ttft": MinTTFT,
    "lmetric": LMetric,
    "llm-d-default": LLMDDefault,
    "llm-d-sticky": LLMDSticky,
    "dynamo": Dynamo,
    "preble-e2": PrebleE2,
    "dualmap": DualMap,
    "gorgo": Gorgo,
}

REFERENCES: Mapping[str, Callable[[], Policy]] = {"pooled": LeastTokens, "oracle": PricedTTFT}
"""No policies of a router: `pooled` is what one cache for all engines would give, `oracle` the
product's policy if it knew when each conversation's next turn comes."""

__all__ = ["BASELINES", "REFERENCES"]
