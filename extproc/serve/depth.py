"""How deeply the JSON of a body is nested, without making values of it."""

import re

MOST_TOKENS = 200_000
"""Brackets and texts that are looked at: a tenth of a second. What has more counts as too deep."""

_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\]]', re.DOTALL)


def deeper_than(body: bytes, limit: int) -> bool:
    """Whether objects and lists are nested more than `limit` deep. Never raises.

    Nearly free for what has no more than `limit` of them in all; brackets inside texts do not
    count. A body that is no JSON may get either answer.
    """
    if body.count(b"{") + body.count(b"[") <= limit:
        return False
    depth = 0
    for number, token in enumerate(_TOKEN.finditer(body)):
        first = body[token.start()]
        if first in b"{[":
            depth += 1
            if depth > limit:
                return True
        elif first in b"}]":
            depth -= 1
        if number > MOST_TOKENS:
            return True
    return False
