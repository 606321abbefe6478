"""`homing parity` against answers that a real vLLM gave, played back."""

import asyncio
import json
import lzma
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from extproc.config import Config, Instance, Model, Pool
from extproc.demo.engine import DEMO_TOKENIZER
from extproc.errors import ConfigError, PeerViolation
from extproc.parity import Outcome, Request, Verdict, compare, read_requests, run
from extproc.prompt import ServedModel, parse_body, unpack_ids
from extproc.terms import Endpoint

SHAPES = Path(__file__).parent / "data" / "vllm-0.32.0-shapes.jsonl.xz"
RENDER, ANSWER, TOKENIZE = "render", "answer", "tokenize"


def recorded() -> list[dict[str, Any]]:
    with lzma.open(SHAPES, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def answer(source: str, path: str, ids: list[list[int]]) -> Any:
    """What vLLM 0.32.0 answers, as far as it is read."""
    if source == RENDER:
        rendered = [{"request_id": "r", "token_ids": one, "features": None} for one in ids]
        return rendered if path == "/v1/completions" else rendered[0]
    if source == TOKENIZE:
        return {"count": len(ids[0]), "tokens": ids[0]}
    if path == "/v1/completions":
        return {"choices": [{"index": i, "prompt_token_ids": one} for i, one in enumerate(ids)]}
    return {"choices": [{"index": 0}], "prompt_token_ids": ids[0]}


@asynccontextmanager
async def playback(known: list[dict[str, Any]], *sources: str) -> AsyncIterator[str]:
    """An engine that answers these requests as recorded, in these ways, and else as vLLM does."""
    ids_of = {json.dumps(one["request"], sort_keys=True): one for one in known}

    async def handle(request: web.Request) -> web.Response:
        body = await request.json()
        path, source = request.path, ANSWER
        if path.endswith("/render"):
            path, source = path.removesuffix("/render"), RENDER
        elif path == "/tokenize":
            source = TOKENIZE
        if source not in sources:
            status = 403 if source == RENDER else 404
            return web.json_response({"detail": "Not here"}, status=status)
        if source == ANSWER:
            assert body.pop("return_token_ids") is True
            assert (body.pop("max_tokens"), body.pop("stream")) == (1, False)
            for name in ("max_completion_tokens", "stream_options"):
                assert body.pop(name) is None
            body["max_tokens"] = 3
        one = ids_of.get(json.dumps(body, sort_keys=True))
        if one is None:
            return web.json_response({"error": {"message": "bad", "code": 400}}, status=400)
        return web.json_response(answer(source, one["path"], one["prompt_ids"]))

    app = web.Application()
    app.router.add_post("/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def outcomes(engine: str, model: ServedModel, *requests: Request) -> list[Outcome]:
    return [outcome async for outcome in compare(engine, model, requests)]


async def test_recorded_requests_are_equal_or_have_a_reason(qwen3: ServedModel) -> None:
    known = recorded()
    async with playback(known, RENDER) as engine:
        requests = [Request(one["path"], one["request"]) for one in known]
        found = await outcomes(engine, qwen3, *requests)
    assert Counter(outcome.verdict for outcome in found) == {
        Verdict.EQUAL: 348,
        Verdict.UNROUTABLE: 11,
    }
    assert [outcome.number for outcome in found] == list(range(1, 360))
    assert all(bool(outcome.detail) == (outcome.verdict is not Verdict.EQUAL) for outcome in found)


HELLO = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
HELLO_IDS = [151644, 872, 198, 6023, 151645, 198, 151644, 77091, 198]
CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("source", [RENDER, ANSWER, TOKENIZE])
async def test_best_source_that_the_engine_has_is_asked(qwen3: ServedModel, source: str) -> None:
    known = [{"path": CHAT, "request": HELLO, "prompt_ids": [HELLO_IDS]}]
    async with playback(known, source) as engine:
        found = await outcomes(engine, qwen3, Request(CHAT, HELLO))
    assert found == [Outcome(1, CHAT, Verdict.EQUAL)]


async def test_difference_is_placed_and_shows_no_text(qwen3: ServedModel) -> None:
    other = [*HELLO_IDS[:3], 7, *HELLO_IDS[4:]]
    known = [{"path": CHAT, "request": HELLO, "prompt_ids": [other]}]
    async with playback(known, RENDER) as engine:
        (outcome,) = await outcomes(engine, qwen3, Request(CHAT, HELLO))
    assert outcome.verdict is Verdict.DIFFERENT
    assert outcome.detail == (
        "prompt 1 from token 3 of 9: [151644, 872, 198, 6023, 151645, 198, 151644], "
        "the engine has [151644, 872, 198, 7, 151645, 198, 151644] of 9"
    )


async def test_longer_prompt_differs_where_the_other_ends(qwen3: ServedModel) -> None:
    known = [{"path": CHAT, "request": HELLO, "prompt_ids": [[*HELLO_IDS, 1]]}]
    async with playback(known, RENDER) as engine:
        (outcome,) = await outcomes(engine, qwen3, Request(CHAT, HELLO))
    assert outcome.detail.startswith("prompt 1 from token 9 of 9: ")


async def test_number_of_prompts_is_compared(qwen3: ServedModel) -> None:
    body = {"model": "m", "prompt": ["a", "b"], "max_tokens": 3}
    known = [{"path": "/v1/completions", "request": body, "prompt_ids": [[64]]}]
    async with playback(known, RENDER) as engine:
        (outcome,) = await outcomes(engine, qwen3, Request("/v1/completions", body))
    assert outcome.detail == "2 prompts, the engine has 1"


async def test_request_that_the_engine_refuses_is_no_difference(qwen3: ServedModel) -> None:
    async with playback([], RENDER) as engine:
        found = await outcomes(engine, qwen3, Request(CHAT, HELLO))
    assert found == [Outcome(1, CHAT, Verdict.REFUSED, "status 400")]


async def test_engine_that_does_not_tell_is_at_fault(qwen3: ServedModel) -> None:
    async with playback([]) as engine:
        with pytest.raises(PeerViolation, match="does not tell the tokens of /v1/messages"):
            await outcomes(engine, qwen3, Request("/v1/messages", HELLO))


async def test_engine_that_is_not_there_is_named(qwen3: ServedModel) -> None:
    async with playback([]) as engine:
        pass
    with pytest.raises(PeerViolation, match=r"^http://127\.0\.0\.1:\d+: "):
        await outcomes(engine, qwen3, Request(CHAT, HELLO))


def test_requests_are_read_from_lines(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text('{"path": "/v1/completions", "request": {"prompt": "a"}, "n": 1}\n\n')
    assert list(read_requests(file)) == [Request("/v1/completions", {"prompt": "a"})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}\n", "{file}:1: needs `path` and `request`"),
        ('{"path": "/", "request": {}}\n[1]', "{file}:2: needs `path` and `request`"),
        ("{\n", "{file}:1: not JSON: "),
    ],
)
def test_broken_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        list(read_requests(file))
    assert str(error.value).startswith(message.format(file=file))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere: cannot be read: "):
        list(read_requests(tmp_path / "nowhere"))


def test_the_command_prints_counts_and_no_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = tmp_path / "requests.jsonl"
    one = {"path": CHAT, "request": HELLO | {"model": "m"}}
    requests.write_text(json.dumps(one) + "\n")
    config = Config(
        pools=(
            Pool(
                name="p",
                models=(Model(name="m", tokenizer=DEMO_TOKENIZER),),
                instances=(Instance(endpoint=Endpoint("10.0.0.1:80")),),
            ),
        )
    )

    async def engine_that_has(ids: list[list[int]]) -> int:
        async with playback([{**one, "prompt_ids": ids}], RENDER) as engine:
            return await run(config, None, engine, requests)

    model = ServedModel.load("m", DEMO_TOKENIZER)
    body = json.dumps(one["request"]).encode()
    right = [unpack_ids(ids) for ids in model.token_ids(parse_body(CHAT, body))]
    assert asyncio.run(engine_that_has(right)) == 0
    assert capsys.readouterr().out == "1 equal, 0 different, 0 unroutable, 0 refused\n"
    assert asyncio.run(engine_that_has([right[0][:-1]])) == 1
    assert "1 different" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no model x; configured are m"):
        asyncio.run(run(config, "x", "http://127.0.0.1:1", requests))
