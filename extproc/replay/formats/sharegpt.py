"""ShareGPT's dump as it is passed on: texts of turns, of which the lengths are played.

    [{"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}, …]

One JSON array, or a JSON line a conversation.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from extproc.errors import ConfigError
from extproc.replay.formats.lines import decoded, first_line, lines_of
from extproc.replay.formats.turns import Lengths

USER = frozenset(("human", "user"))


class _Said(msgspec.Struct):
    value: str
    speaker: str = msgspec.field(name="from")


class _Conversation(msgspec.Struct):
    conversations: list[_Said]


def sharegpt_lengths(path: Path, count: Callable[[str], int]) -> list[Lengths]:
    """Of every conversation that a user begins. count: tokens of a text.

    Raises ConfigError that names the file, and the line where it is one of lines.
    """
    return [turns for one in _conversations(path) if (turns := _turns(one, count))]


def _conversations(path: Path) -> Iterator[_Conversation]:
    if not first_line(path).lstrip().startswith(b"["):
        yield from decoded(path, _Conversation)
        return
    try:
        yield from msgspec.json.decode(b"".join(lines_of(path)), type=list[_Conversation])
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path}: {error}") from None


def _turns(one: _Conversation, count: Callable[[str], int]) -> Lengths:
    """What one side says twice in a row is one turn; what comes before the user is left out."""
    turns: Lengths = []
    was_user = False
    for said in one.conversations:
        tokens, is_user = count(said.value), said.speaker in USER
        if is_user and was_user:
            turns[-1] = turns[-1][0] + tokens, 0
        elif is_user:
            turns.append((tokens, 0))
        elif turns:
            turns[-1] = turns[-1][0], turns[-1][1] + tokens
        was_user = is_user
    return turns
