"""Does Homing see the tokens that a live engine sees? The logic of `homing parity`.

Each request of a file goes to the engine, to be rendered only where the engine can do that, and
through our own template and tokenizer. Nothing of a body is in an outcome, only positions and ids.
"""

import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, unique
from pathlib import Path
from typing import Any

import aiohttp

from extproc.config import Config
from extproc.errors import BadRequest, ConfigError, PeerViolation, Unroutable
from extproc.loading import load_model
from extproc.prompt import ServedModel, parse_body, unpack_ids

_NOT_SERVED = (403, 404, 405)
"""vLLM 0.32 forbids `/render` where it was not started with `--enable-scale-out`."""

_CONTEXT = 4
"""Ids shown before and after the first difference."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request to compare: the path that it was sent to and its body."""

    path: str
    body: dict[str, Any]


@unique
class Verdict(Enum):
    """How one request came out."""

    EQUAL = "equal"
    DIFFERENT = "different"
    UNROUTABLE = "unroutable"
    """Homing would route it by load."""
    REFUSED = "refused"
    """The engine answers an error, so there is nothing to predict."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request compared. number: its place in the file, from 1. detail: why, or where."""

    number: int
    path: str
    verdict: Verdict
    detail: str = ""


def read_requests(file: Path) -> Iterator[Request]:
    """Requests of a file of JSON lines, each an object with `path` and `request`.

    Raises ConfigError that names the line.
    """
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            match json.loads(line):
                case {"path": str(path), "request": dict(body)}:
                    yield Request(path, body)
                case _:
                    raise ConfigError(f"{file}:{number}: needs `path` and `request`")
        except ValueError as error:
            raise ConfigError(f"{file}:{number}: not JSON: {error}") from None


async def compare(
    engine: str, model: ServedModel, requests: Iterable[Request]
) -> AsyncIterator[Outcome]:
    """Compare each request, one at a time. engine: its base URL, such as `http://10.0.0.7:8000`.

    Raises PeerViolation where the engine cannot be reached or does not tell its tokens.
    """
    async with aiohttp.ClientSession(engine.rstrip("/") + "/") as session:
        for number, request in enumerate(requests, 1):
            try:
                theirs = await _engine_ids(session, request)
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                raise PeerViolation(f"{engine}: {error or type(error).__name__}") from error
            if isinstance(theirs, str):
                yield Outcome(number, request.path, Verdict.REFUSED, theirs)
                continue
            try:
                prompt = parse_body(request.path, json.dumps(request.body).encode())
                ours = [unpack_ids(ids) for ids in model.token_ids(prompt)]
            except (BadRequest, Unroutable) as error:
                reason = error.reason if isinstance(error, Unroutable) else "refused with 400"
                yield Outcome(number, request.path, Verdict.UNROUTABLE, reason)
                continue
            verdict = Verdict.EQUAL if ours == theirs else Verdict.DIFFERENT
            yield Outcome(number, request.path, verdict, _difference(ours, theirs))


async def _engine_ids(session: aiohttp.ClientSession, request: Request) -> list[list[int]] | str:
    """The ids of each prompt, or the status of a refusal; the best source that the engine has."""
    for path, body in _questions(request):
        async with session.post(path.lstrip("/"), json=body) as response:
            if response.status in _NOT_SERVED:
                continue
            if response.status >= 400:
                return f"status {response.status}"
            ids = _ids_of(await response.json())
            if ids:
                return ids
    raise PeerViolation(f"the engine does not tell the tokens of {request.path}")


def _questions(request: Request) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where to ask, best first: rendered only; with the answer; tokenized only."""
    yield f"{request.path}/render", request.body
    if request.path in ("/v1/chat/completions", "/v1/completions"):
        one = {
            "max_tokens": 1,
            "max_completion_tokens": None,
            "stream": False,
            "stream_options": None,
        }
        yield request.path, request.body | one | {"return_token_ids": True}
        yield "/tokenize", request.body


def _ids_of(answer: Any) -> list[list[int]]:
    """Prompt ids of an answer: a rendering, a list of them, a completion, or of /tokenize."""
    if isinstance(answer, list):
        return [ids for one in answer for ids in _ids_of(one)]
    if not isinstance(answer, dict):
        return []
    for name in ("token_ids", "prompt_token_ids", "tokens"):
        if isinstance(answer.get(name), list):
            return [answer[name]]
    return [
        choice["prompt_token_ids"]
        for choice in answer.get("choices") or []
        if isinstance(choice, dict) and isinstance(choice.get("prompt_token_ids"), list)
    ]


async def run(config: Config, name: str | None, engine: str, requests: Path) -> int:
    """The command: a line for each request that is not equal, then the counts on stdout.

    name: of one of the configuration's models, None for the first. Returns 1 where a request
    differs, else 0. Raises ConfigError for a name that is not configured, and as above.
    """
    models = {model.name: model for pool in config.pools for model in pool.models}
    listed = models.get(name) if name is not None else config.pools[0].models[0]
    if listed is None:
        raise ConfigError(f"no model {name}; configured are {', '.join(models)}")
    counts: Counter[Verdict] = Counter()
    async for outcome in compare(engine, load_model(listed), read_requests(requests)):
        counts[outcome.verdict] += 1
        if outcome.verdict is not Verdict.EQUAL:
            said = f"{outcome.number} {outcome.path}: {outcome.verdict.value}: {outcome.detail}"
            print(said, flush=True)
    print(", ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict))
    return int(bool(counts[Verdict.DIFFERENT]))


def _difference(ours: list[list[int]], theirs: list[list[int]]) -> str:
    if len(ours) != len(theirs):
        return f"{len(ours)} prompts, the engine has {len(theirs)}"
    for number, (mine, its) in enumerate(zip(ours, theirs, strict=True), 1):
        if mine == its:
            continue
        same = next((i for i, (a, b) in enumerate(zip(mine, its, strict=False)) if a != b), None)
        at = min(len(mine), len(its)) if same is None else same
        shown = slice(max(at - _CONTEXT, 0), at + _CONTEXT)
        return (
            f"prompt {number} from token {at} of {len(mine)}: {mine[shown]}, "
            f"the engine has {its[shown]} of {len(its)}"
        )
    return ""
