"""A small trace of conversations that can be played at the sockets and in the replay lab alike.

Its bodies are text. The simulated engine's answers are drawn from a hash of the prompt, so they are
known beforehand: each turn carries the answers that the engines gave to the turns before.
"""

import json
import lzma
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

from extproc.demo.answers import Answer, Vocabulary
from extproc.demo.engine import DEMO_MODEL, DEMO_TOKENIZER, EngineSettings
from extproc.demo.openai import CHAT
from extproc.demo.prefix_cache import TokenChain, chain_root
from extproc.prompt import ServedModel, parse_body
from extproc.replay.traffic import Request
from extproc.terms import KEY_BYTES, TOKEN_BYTES, PackedKeys, TokenIds

CORPUS = DEMO_TOKENIZER.parent / "corpus" / "topics.txt.xz"

SYSTEM_PROMPTS, SYSTEM_CHARACTERS = 4, 2_400
"""Of which every conversation has one: the prefix that conversations share."""

FIRST_CHARACTERS, LATER_CHARACTERS = (1_000, 9_000), (100, 2_500)
"""Of what a user says: at first, and then."""

ANSWER_TOKENS = (8, 40)
MOST_TURNS = 8
SOONEST_S, THINK_S = 3.0, 12.0
"""From one turn to the next: at least, and so much more in the mean."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One turn. body: what the client sends, in `CHAT`'s form. answer: the text that it will get.
    request: the same for the lab."""

    body: bytes
    answer: str
    request: Request

    @property
    def at(self) -> float:
        """When it is sent, seconds."""
        return self.request.at


class Recorded:
    """The trace as the lab's traffic: an open loop."""

    def __init__(self, turns: Sequence[Sent], block_size: int) -> None:
        self.block_size = block_size
        self._turns = turns

    def arrivals(self) -> Iterator[Request]:
        """All of them, by time."""
        return (turn.request for turn in self._turns)

    def following(self, request: Request, ended: float) -> Request | None:
        """Nothing: the loop is open."""
        return None


class Writer:
    """Writes traces for engines with these settings. seed: the same seed, the same trace."""

    def __init__(self, engine: EngineSettings, seed: int) -> None:
        self._block_size = engine.block_size
        self._chance = random.Random(seed)
        self._text = lzma.decompress(CORPUS.read_bytes()).decode()
        self._model = ServedModel.load(DEMO_MODEL, DEMO_TOKENIZER)
        self._vocabulary = Vocabulary(self._model)
        self._systems = [self._some(SYSTEM_CHARACTERS) for _ in range(SYSTEM_PROMPTS)]

    def turns(self, seconds: float, conversations_per_s: float) -> list[Sent]:
        """Conversations that begin as a Poisson process; what would come later is left out."""
        turns: list[Sent] = []
        begins, number = 0.0, 0
        while (begins := begins + self._chance.expovariate(conversations_per_s)) < seconds:
            turns += self._conversation(number, begins, seconds)
            number += 1
        return sorted(turns, key=lambda turn: turn.at)

    def _conversation(self, number: int, at: float, end: float) -> Iterator[Sent]:
        messages = [{"role": "system", "content": self._chance.choice(self._systems)}]
        before = PackedKeys(b"")
        for turn in range(self._chance.randint(1, MOST_TURNS)):
            if at >= end:
                return
            size = self._chance.randint(*(LATER_CHARACTERS if turn else FIRST_CHARACTERS))
            messages.append({"role": "user", "content": self._some(size)})
            sent = self._sent(number, turn, at, messages)
            assert sent.request.keys.startswith(before), "a turn extends the one before"
            before = sent.request.answered
            yield sent
            messages.append({"role": "assistant", "content": sent.answer})
            at += SOONEST_S + self._chance.expovariate(1 / THINK_S)

    def _sent(
        self, conversation: int, turn: int, at: float, messages: list[dict[str, str]]
    ) -> Sent:
        output = self._chance.randint(*ANSWER_TOKENS)
        body = json.dumps(
            {
                "model": DEMO_MODEL,
                "messages": messages,
                "max_tokens": output,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        ).encode()
        (ids,) = self._model.token_ids(parse_body(CHAT, body))
        answer = self._answer(ids, output)
        chain = TokenChain(TokenIds(ids + answer.ids), chain_root(DEMO_MODEL, ""), self._block_size)
        tokens = len(ids) // TOKEN_BYTES
        request = Request(
            at,
            conversation,
            turn,
            self._keys(chain, tokens),
            tokens,
            output,
            self._keys(chain, tokens + output - 1),  # the last sampled token is never computed
        )
        return Sent(body, "".join(answer.pieces), request)

    def _answer(self, ids: TokenIds, output: int) -> Answer:
        """As `EngineApi` draws it; whoever plays the trace checks that it came so."""
        return self._vocabulary.answer(
            seed=sha256(ids + (0).to_bytes(4)).digest(),
            usual_tokens=output,
            limit=output,
            ignore_eos=True,
            after_blank=True,
        )

    def _keys(self, chain: TokenChain, tokens: int) -> PackedKeys:
        hashes = chain.hashes[: tokens // self._block_size]
        return PackedKeys(b"".join(one[:KEY_BYTES] for one in hashes))

    def _some(self, characters: int) -> str:
        at = self._chance.randrange(len(self._text) - characters)
        return self._text[at : at + characters]
