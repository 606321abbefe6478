"""HTTP of the simulated engine, as vLLM 0.32's OpenAI-compatible server answers."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, TypeAlias

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from extproc.demo.answers import Answer, Vocabulary
from extproc.demo.metrics import EngineMetrics
from extproc.demo.openai import (
    CHAT,
    COMPLETIONS,
    ApiError,
    Shapes,
    Usage,
    Wanted,
    bad_request,
    unknown_model,
)
from extproc.demo.prefix_cache import TokenChain, chain_root
from extproc.demo.scheduler import Job, VirtualEngine
from extproc.errors import BadRequest, Unroutable
from extproc.prompt import ServedModel, parse_body
from extproc.terms import TOKEN_BYTES, TokenIds

VERSION = "0.32.0+simulated"
MAX_BODY_BYTES = 64 << 20

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Choice:
    """One sequence of a request: what is generated, and the job that takes the time for it.

    last: of the samples of its prompt.
    """

    job: Job
    answer: Answer
    last: bool


class EngineApi:
    """The handlers. Tokenizes in a thread of its own, so a long prompt stops no running answer.

    name: sent as `x-served-by` with every answer. usual_tokens: of an answer that nothing cuts.
    """

    def __init__(
        self,
        engine: VirtualEngine,
        model: ServedModel,
        *,
        name: str,
        context: int,
        usual_tokens: int,
    ) -> None:
        self._engine = engine
        self._model = model
        self._name = name
        self._context = context
        self._usual_tokens = usual_tokens
        self._vocabulary = Vocabulary(model)
        self._metrics = EngineMetrics(engine, model.name)
        self._started = int(time.time())
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenize")

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_errors_as_json])
        app.router.add_post(CHAT, self._generate)
        app.router.add_post(COMPLETIONS, self._generate)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._scrape)
        app.router.add_get("/health", self._health)
        app.router.add_post("/reset_prefix_cache", self._reset)
        app.router.add_get("/version", self._version)
        app.on_response_prepare.append(self._sign)
        app.on_cleanup.append(self._close)
        return app

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        wanted = self._wanted(body)
        choices = await asyncio.get_running_loop().run_in_executor(
            self._thread, self._choices, request.path, body, wanted
        )
        shapes = Shapes(request.path == CHAT, self._model.name)
        if wanted.stream:
            options = wanted.stream_options
            include_usage = options is not None and options.include_usage
            return await self._stream(request, shapes, choices, include_usage)
        return web.json_response(await self._collect(shapes, choices))

    def _wanted(self, body: bytes) -> Wanted:
        try:
            wanted = msgspec.json.decode(body, type=Wanted)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise bad_request(f"The body cannot be read: {error}.") from None
        if wanted.model is not None and wanted.model != self._model.name:
            raise unknown_model(wanted.model)
        if refusal := wanted.refusal():
            raise bad_request(*refusal)
        return wanted

    def _choices(self, path: str, body: bytes, wanted: Wanted) -> list[Choice]:
        """Tokenize, and settle what each choice will say. Runs in the tokenizer's thread."""
        try:
            prompts = self._model.token_ids(parse_body(path, body))
        except BadRequest as error:
            raise bad_request(str(error), error.path or None) from None
        except Unroutable as error:
            raise bad_request(f"The prompt cannot be rendered: {error.reason}.") from None
        samples = wanted.n or 1
        return [
            self._choice(path, ids, wanted, sample, last=sample == samples - 1)
            for ids in prompts
            for sample in range(samples)
        ]

    def _choice(self, path: str, ids: TokenIds, wanted: Wanted, sample: int, last: bool) -> Choice:
        prompt_tokens = len(ids) // TOKEN_BYTES
        room = self._context - prompt_tokens
        limit = wanted.limit(path)
        if not prompt_tokens:
            raise bad_request("The prompt is empty.", "prompt")
        if room < (limit or 1):
            raise bad_request(
                f"The context is {self._context} tokens long: {prompt_tokens} of the prompt and "
                f"{limit or 1} of the answer do not fit."
            )
        answer = self._vocabulary.answer(
            seed=sha256(ids + sample.to_bytes(4)).digest(),
            usual_tokens=self._usual_tokens,
            limit=limit or room,
            ignore_eos=wanted.ignore_eos,
            after_blank=path == CHAT,
        )
        salt = wanted.cache_salt or ""
        chain = TokenChain(
            TokenIds(ids + answer.ids),
            chain_root(self._model.name, salt),
            self._engine.cache.block_size,
            salt,
        )
        return Choice(Job(chain, prompt_tokens, answer.tokens, answer.finish_reason), answer, last)

    async def _collect(self, shapes: Shapes, choices: Sequence[Choice]) -> dict[str, Any]:
        for choice in choices:
            async for _ in self._engine.generate(choice.job):
                pass
        texts = [("".join(c.answer.pieces), c.answer.finish_reason) for c in choices]
        return shapes.whole(texts, _usage(choices))

    async def _stream(
        self,
        request: web.Request,
        shapes: Shapes,
        choices: Sequence[Choice],
        include_usage: bool,
    ) -> web.StreamResponse:
        """Server-sent events, a token each; several choices one after the other."""
        response = web.StreamResponse(headers={"Cache-Control": "no-cache"})
        response.content_type = "text/event-stream"
        response.charset = "utf-8"
        await response.prepare(request)
        for index, choice in enumerate(choices):
            pieces, reason = choice.answer.pieces, choice.answer.finish_reason
            last = choice.job.output_tokens - 1
            async with aclosing(self._engine.generate(choice.job)) as tokens:
                async for number in tokens:
                    if number == 0 and (opening := shapes.opening(index)):
                        await _send(response, opening)
                    text = pieces[number] if number < len(pieces) else ""
                    ended = reason if number == last else None
                    await _send(response, shapes.piece(index, text, ended))
        if include_usage:
            await _send(response, shapes.closing(_usage(choices)))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _models(self, _: web.Request) -> web.Response:
        listed = {
            "id": self._model.name,
            "object": "model",
            "created": self._started,
            "owned_by": "homing-demo",
            "root": self._model.name,
            "parent": None,
            "max_model_len": self._context,
        }
        return web.json_response({"object": "list", "data": [listed]})

    async def _scrape(self, _: web.Request) -> web.Response:
        return web.Response(
            body=self._metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _reset(self, _: web.Request) -> web.Response:
        """vLLM's in `VLLM_SERVER_DEV_MODE`."""
        return web.Response(status=200 if self._engine.cache.reset() else 500)

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": VERSION})

    async def _sign(self, _: web.Request, response: web.StreamResponse) -> None:
        response.headers["x-served-by"] = self._name

    async def _close(self, _: web.Application) -> None:
        self._thread.shutdown()


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return web.json_response(error.body, status=error.status)


async def _send(response: web.StreamResponse, chunk: dict[str, Any]) -> None:
    await response.write(b"data: " + msgspec.json.encode(chunk) + b"\n\n")


def _usage(choices: Sequence[Choice]) -> Usage:
    """A prompt counts once; of several samples the last one says what was cached."""
    prompts = [choice.job for choice in choices if choice.last]
    return Usage(
        prompt_tokens=sum(job.prompt_tokens for job in prompts),
        completion_tokens=sum(choice.job.output_tokens for choice in choices),
        cached_tokens=sum(job.cached_tokens for job in prompts),
    )
