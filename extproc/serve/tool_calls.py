"""Whether an answer ends in a call of a tool: its agent comes back as soon as that has run."""

import re

_CALL = re.compile(
    rb'"(?:finish_reason|stop_reason)"\s*:\s*"(?:tool_calls|tool_use)"'
    rb'|"type"\s*:\s*"function_call"'
)
"""In the chat API, Anthropic's and Responses. What a model says has its quotes escaped."""

_LONGEST = 64
"""Bytes of such a mark, with some spaces."""


class ToolCallReader:
    """Looks for a call in one answer's body, streamed or not, however it is cut."""

    __slots__ = ("_tail", "found")

    def __init__(self) -> None:
        self._tail = b""
        self.found = False

    def feed(self, data: bytes) -> None:
        """A piece of the body. O(its bytes)."""
        if not self.found:
            seen = self._tail + data
            self.found = _CALL.search(seen) is not None
            self._tail = seen[-_LONGEST:]
