"""What of a replay is drawn: its distribution and its course, in a few kilobytes."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from extproc.replay.outcome import Outcome

Floats: TypeAlias = NDArray[np.float64]

WINDOWS = 60
"""Windows of equal length that a replay's time is cut into, from 0 to the last first token."""

SHARES: Floats = np.linspace(0.0, 1.0, 401)
"""Of which shares of the requests the longest TTFT is kept."""


@dataclass(frozen=True, slots=True)
class Curves:
    """A replay's curves.

    ttft: seconds, one for each of SHARES. ends: of the windows, seconds. hit: (windows,) cached of
    prompt tokens of the requests that arrived in each; nan where none did. load: (engines, windows)
    share of the window in which the engine prefilled.
    """

    ttft: Floats
    ends: Floats
    hit: Floats
    load: Floats


def curves(outcome: Outcome, windows: int = WINDOWS) -> Curves:
    """The curves of a replay that has ended, with at least one request. O(n log n)."""
    at, ttft = np.frombuffer(outcome.at), np.frombuffer(outcome.ttft)
    edges = np.linspace(0.0, float((at + ttft).max()), windows + 1)
    prompt, cached = (
        np.histogram(at, edges, weights=np.array(tokens, "f8"))[0]
        for tokens in (outcome.prompt, outcome.cached)
    )
    return Curves(
        ttft=np.asarray(np.quantile(ttft, SHARES), "f8"),
        ends=edges[1:],
        hit=np.divide(cached, prompt, out=np.full(windows, np.nan), where=prompt > 0),
        load=np.stack([load(outcome, engine, edges) for engine in range(len(outcome.picks))]),
    )


def load(outcome: Outcome, engine: int, edges: Floats) -> Floats:
    """Share of each window between two edges in which the engine prefilled."""
    here = np.array(outcome.engine) == engine
    ends = (np.frombuffer(outcome.at) + np.frombuffer(outcome.ttft))[here]
    seconds = np.frombuffer(outcome.prefill_s)[here]
    # One prefill at a time, in order: busy time grows from the start of each to its end.
    points = np.stack([ends - seconds, ends], axis=1).ravel()
    busy = np.stack([np.zeros(len(seconds)), seconds], axis=1).ravel().cumsum()
    if not len(points):
        return np.zeros(len(edges) - 1)
    return np.diff(np.interp(edges, points, busy, left=0.0)) / np.diff(edges)
