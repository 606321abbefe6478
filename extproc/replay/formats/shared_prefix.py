"""llm-d's shared-prefix generator: groups of questions over one system prompt."""

import random
from collections.abc import Iterator

import numpy as np

from extproc.replay.traffic import Request, packed


class SharedPrefix:
    """Every group has a prefix of its own, every question one after it; Poisson, open loop."""

    block_size = 64

    def __init__(
        self,
        groups: int = 150,
        questions: int = 5,
        prefix: int = 6000,
        question: int = 1200,
        output: int = 1000,
        rate: float = 40.0,
        requests: int = 6000,
        seed: int = 0,
    ) -> None:
        self._groups = groups
        self._questions = questions
        self._prefix = prefix
        self._question = question
        self._output = output
        self._rate = rate
        self._requests = requests
        self._seed = seed

    def arrivals(self) -> Iterator[Request]:
        """Questions drawn at random, each any number of times."""
        chance = random.Random(self._seed)  # noqa: S311
        time = 0.0
        tokens = self._prefix + self._question
        shared = self._prefix // self.block_size
        blocks = tokens // self.block_size
        for number in range(self._requests):
            group, question = chance.randrange(self._groups), chance.randrange(self._questions)
            time += chance.expovariate(self._rate)
            ids = np.arange(blocks, dtype="<u8") + np.uint64((group + 1) << 24)
            ids[shared:] += np.uint64((question + 1) << 48)
            keys = packed(ids)
            yield Request(time, number, 0, keys, tokens, self._output, keys)

    def following(self, request: Request, ended: float) -> Request | None:
        """Nothing: the loop is open."""
        return None
