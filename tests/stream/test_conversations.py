"""Every conversation in `conversations/`, word for word and at every chunking."""

import os
from pathlib import Path

import pytest

from tests.stream.conversation import Conversation, chunkings, whole

FILES = sorted(Path(__file__).parent.joinpath("conversations").glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_conversation_goes_as_written(path: Path) -> None:
    conversation = Conversation(path)
    played = conversation.play(whole)
    if os.environ.get("REWRITE"):
        path.write_text("\n".join(played) + "\n")
    assert played == conversation.lines


CUT = [path for path in FILES if Conversation(path).longest_cut()]


@pytest.mark.parametrize("path", CUT, ids=lambda path: path.stem)
def test_conversation_goes_the_same_at_every_chunking(path: Path) -> None:
    conversation = Conversation(path)
    for chunking in chunkings(conversation.longest_cut()):
        assert conversation.play(chunking) == conversation.lines


def test_there_are_conversations_to_play() -> None:
    assert len(FILES) >= 40
    assert len(CUT) >= 8
