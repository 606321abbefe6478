"""Prometheus text, read only where a wanted metric stands (exposition format 0.0.4).

An engine's page has a thousand lines, of which twenty are wanted, five times a second: so the page
is searched for the names, and nothing else of it is looked at.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from math import isfinite

_LABEL = re.compile(rb'([A-Za-z_]\w*)\s*=\s*"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")
_AFTER_NAME = (b"{", b" ", b"\t")


class Page:
    """One page of metrics. Lines that are not of the format count as absent; nothing raises.

    Asked for in the order in which they stand, all names together cost one pass over the page.
    """

    def __init__(self, body: bytes) -> None:
        # Every line then begins after a line end.
        self._text = b"\n" + body
        self._at = 0

    def samples(self, name: bytes) -> Iterator[tuple[Mapping[str, str], float]]:
        """Labels and value of every sample of exactly this name.

        They stand together, as the format demands. O(page): 10 µs for 50 KB where there is none.
        """
        text, start = self._text, b"\n" + name
        at = self._find(start)
        while at >= 0 and self._stands(start, at):
            end = text.find(b"\n", at + 1)
            line = text[at + len(start) : end if end >= 0 else len(text)]
            if (sample := _sample(line)) is not None:
                yield sample
            self._at = at = end if end >= 0 else len(text)

    def _find(self, start: bytes) -> int:
        """Where the first sample of this name stands: looked for behind the last one's first."""
        text = self._text
        for begin, end in ((self._at, len(text)), (0, self._at + len(start))):
            at = text.find(start, begin, end)
            while at >= 0 and not self._stands(start, at):
                at = text.find(start, at + 1, end)
            if at >= 0:
                return at
        return -1

    def _stands(self, start: bytes, at: int) -> bool:
        """Whether this whole name stands there, and not one that begins like it."""
        after = at + len(start)
        return self._text.startswith(start, at) and self._text[after : after + 1] in _AFTER_NAME


def _sample(rest: bytes) -> tuple[Mapping[str, str], float] | None:
    """What comes after the name: labels, value, and maybe a time. None for what is no number."""
    labels, closing, values = rest.rpartition(b"}")
    try:
        value = float(values.split(None, 1)[0])
    except (ValueError, IndexError):
        return None
    return (read_labels(labels) if closing else {}, value) if isfinite(value) else None


@lru_cache(maxsize=8192)  # the labels of an engine's samples do not change
def read_labels(labels: bytes) -> Mapping[str, str]:
    """Names and values of `{name="value",…`."""
    return {
        name.decode(): _ESCAPE.sub(
            lambda escaped: "\n" if escaped[1] == "n" else escaped[1],
            value.decode("utf-8", "replace"),
        )
        for name, value in _LABEL.findall(labels)
    }
