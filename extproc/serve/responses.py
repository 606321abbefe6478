"""Who answered which response: the next turn may give nothing but its id.

A Responses request with `previous_response_id` has its conversation in the engine that answered
that id (vLLM with `VLLM_ENABLE_RESPONSES_API_STORE`; every other engine answers 404). The id is in
the answer's body, so ids are learnt only where the proxy shows it (`proxy.mode_override`).
"""

import re
from collections import OrderedDict
from dataclasses import dataclass

from extproc.serve.pool import Pool
from extproc.terms import InstanceId

MOST_IDS = 50_000
"""Ids that are kept, the latest: some 10 MB."""

MOST_BYTES = 16 * 1024
"""Of an answer in which its id is looked for: it stands at the beginning."""

PATH = "/v1/responses"

_ID = re.compile(rb'"id"\s*:\s*"(resp_[A-Za-z0-9_-]{1,128})"')


@dataclass(frozen=True, slots=True)
class Answerer:
    """The instance that holds a conversation."""

    pool: str
    instance: InstanceId


class Responses:
    """Response id → who answered it, as this process saw it; the oldest go first."""

    def __init__(self) -> None:
        self._answerers: OrderedDict[str, Answerer] = OrderedDict()

    def find(self, response: str) -> Answerer | None:
        """Who answered it; None where this process does not know."""
        return self._answerers.get(response)

    def remember(self, response: str, pool: Pool, instance: InstanceId) -> None:
        """The instance answered it."""
        self._answerers[response] = Answerer(pool.name, instance)
        if len(self._answerers) > MOST_IDS:
            self._answerers.popitem(last=False)


class IdReader:
    """Finds the id at the beginning of one answer's body, however it is cut."""

    def __init__(self) -> None:
        self._seen = bytearray()
        self._done = False

    def feed(self, data: bytes) -> str | None:
        """The id, once, when it has been seen whole; else None."""
        if self._done:
            return None
        self._seen += data[: MOST_BYTES - len(self._seen)]
        found = _ID.search(self._seen)
        self._done = found is not None or len(self._seen) >= MOST_BYTES
        return found.group(1).decode() if found else None
