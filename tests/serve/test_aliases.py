"""Aliases that are forwarded under the model's name, as a proxy sees it; the list of models."""

import json
from typing import Any

import grpc
import pytest

from extproc.config import Config, Limits
from proto_gen.ext_proc_pb2 import ProcessingRequest, ProcessingResponse
from tests.serve.proxy import ENDPOINTS, LONG, MODEL, Exchange, config, picked, sample, serving

ALIAS = "alias"


def renaming(**changes: Any) -> Config:
    """The usual pool, whose engines know no alias."""
    (pool,) = config().pools
    (model,) = pool.models
    model = model.model_copy(update={"rewrite_aliases": True})
    return config(pools=(pool.model_copy(update={"models": (model,)}),), **changes)


def said(words: str, model: str = ALIAS, before: str = "") -> bytes:
    """A body as a client may write it: nothing else of it may change."""
    content = json.dumps(words)
    return f'{{ "temperature":1.0,{before}"model" : "{model}","messages":[{{"role":"user", \
"content":{content}}}], "metadata":{{"model":"alias"}} }}'.encode()


def headers_of(reply: ProcessingResponse) -> dict[str, str]:
    options = reply.request_body.response.header_mutation.set_headers
    return {option.header.key: option.header.raw_value.decode() for option in options}


def forwarded(reply: ProcessingResponse) -> bytes | None:
    mutation = reply.request_body.response.body_mutation
    return mutation.body if mutation.WhichOneof("mutation") else None


async def answered(exchange: Exchange, **headers: str) -> ProcessingResponse:
    """The answer to the response headers; names with "_" for "-"."""
    message = ProcessingRequest()
    for name, value in {":status": "200", **headers}.items():
        name = name.replace("_", "-")
        message.response_headers.headers.headers.add(key=name, raw_value=value.encode())
    await exchange.call.write(message)
    return await exchange.read()


async def asked(channel: grpc.aio.Channel, body: bytes) -> tuple[Exchange, ProcessingResponse]:
    exchange = Exchange(channel)
    await exchange.headers()
    return exchange, await exchange.body(body)


async def why(exchange: Exchange) -> str:
    reply = await answered(exchange, content_type="application/json")
    options = reply.response_headers.response.header_mutation.set_headers
    (said,) = [one.header.raw_value.decode() for one in options if "why" in one.header.key]
    return said


async def test_the_name_is_forwarded_and_every_other_byte_as_it_came() -> None:
    async with serving(renaming()) as (app, channel):
        _, reply = await asked(channel, said(LONG))
        body = said(LONG, model=MODEL)
        assert forwarded(reply) == body
        headers = headers_of(reply)
        assert headers["content-length"] == str(len(body))
        assert headers["accept-encoding"] == "identity"
        assert picked(reply)
        assert sample(app, "homing_model_rewrites_total", what="request") == 1


async def test_what_is_forwarded_is_what_is_hashed() -> None:
    async with serving(renaming()) as (_, channel):
        by_alias, first = await asked(channel, said(LONG))
        assert (await why(by_alias)).startswith("new")
        by_name, second = await asked(channel, said(LONG, model=MODEL))
        assert picked(second)[0] == picked(first)[0]
        assert (await why(by_name)).startswith("home")


@pytest.mark.parametrize("model", [MODEL, "nobody's", "Alias"])
async def test_a_body_that_gives_no_alias_is_forwarded_as_it_came(model: str) -> None:
    async with serving(renaming()) as (_, channel):
        _, reply = await asked(channel, said(LONG, model=model))
        assert forwarded(reply) is None
        assert {"content-length", "accept-encoding"}.isdisjoint(headers_of(reply))


async def test_an_alias_is_left_where_the_engines_know_it() -> None:
    async with serving(config()) as (_, channel):
        exchange, reply = await asked(channel, said(LONG))
        assert forwarded(reply) is None
        assert (await why(exchange)).startswith("new")


async def test_the_alias_is_replaced_where_the_prompt_is_not_understood() -> None:
    async with serving(renaming()) as (_, channel):
        exchange, reply = await asked(channel, said("x", before='"n":NaN,'))
        assert forwarded(reply) == said("x", model=MODEL, before='"n":NaN,')
        assert await why(exchange) == "load (json_dialect)"


async def test_the_alias_is_replaced_beyond_a_limit_too() -> None:
    limits = Limits(max_header_bytes=1, pick_timeout_ms=20_000)
    async with serving(renaming(limits=limits)) as (_, channel):
        exchange, reply = await asked(channel, said("x"))
        assert forwarded(reply) == said("x", model=MODEL)
        assert await why(exchange) == "load (max_header_bytes)"


async def test_of_a_large_body_the_name_is_replaced_too() -> None:
    words = "word " * 100_000
    async with serving(renaming()) as (_, channel):
        _, reply = await asked(channel, said(words))
        assert forwarded(reply) == said(words, model=MODEL)


async def test_the_answer_names_the_alias() -> None:
    async with serving(renaming()) as (app, channel):
        exchange = Exchange(channel, response_mode="STREAMED")
        await exchange.headers()
        await exchange.body(said(LONG))
        reply = await answered(exchange, content_type="text/event-stream", content_length="99")
        removed = reply.response_headers.response.header_mutation.remove_headers
        assert list(removed) == ["content-length"]
        events = [b'data: {"model":"demo', b'-model"}\n\n', b'data: {"x":"demo-model"}\n\n']
        out = []
        for data in events:
            mutation = (await exchange.answer_body(data)).response_body.response.body_mutation
            out.append(mutation.body if mutation.WhichOneof("mutation") else data)
        assert out == [b'data: {"model":"alias"', b"}\n\n", b'data: {"x":"demo-model"}\n\n']
        assert sample(app, "homing_model_rewrites_total", what="answer") == 1


async def test_an_answer_that_comes_compressed_all_the_same_is_left_and_counted() -> None:
    async with serving(renaming()) as (app, channel):
        exchange = Exchange(channel, response_mode="STREAMED")
        await exchange.headers()
        await exchange.body(said(LONG))
        reply = await answered(
            exchange, content_type="application/json", content_encoding="gzip", content_length="9"
        )
        assert not reply.response_headers.response.header_mutation.remove_headers
        assert sample(app, "homing_model_rewrites_total", what="answer_encoded") == 1
        assert sample(app, "homing_model_rewrites_total", what="answer") == 0


# --- GET /v1/models ---


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models?limit=5"])
async def test_the_list_of_models_has_those_of_all_pools(path: str) -> None:
    (pool,) = config().pools
    (model,) = pool.models
    other = model.model_copy(update={"name": "other-model", "aliases": ()})
    pools = (pool, pool.model_copy(update={"name": "second", "models": (other,)}))
    async with serving(config(models_endpoint=True, pools=pools)) as (app, channel):
        reply = (await Exchange(channel).headers(path, "GET", end=True)).immediate_response
        assert reply.status.code == 200
        (kind,) = reply.headers.set_headers
        assert (kind.header.key, kind.header.raw_value) == ("content-type", b"application/json")
        listed = json.loads(reply.body)
        assert listed["object"] == "list"
        assert [entry["id"] for entry in listed["data"]] == [MODEL, ALIAS, "other-model"]
        assert all(
            (entry["object"], type(entry["created"]), entry["owned_by"]) == ("model", int, "homing")
            for entry in listed["data"]
        )
        assert sample(app, "homing_replies_total", what="models") == 1


@pytest.mark.parametrize(
    ("enabled", "method", "path"),
    [
        (False, "GET", "/v1/models"),
        (True, "POST", "/v1/models"),
        (True, "GET", "/v1/models/demo-model"),
    ],
)
async def test_any_other_request_for_models_goes_to_an_engine(
    enabled: bool, method: str, path: str
) -> None:
    async with serving(config(models_endpoint=enabled)) as (_, channel):
        reply = await Exchange(channel).headers(path, method, end=True)
        assert len(picked(reply)) == 3


# --- scores ---


async def test_scores_are_told_in_the_order_of_the_pick() -> None:
    async with serving(config(scores=True)) as (_, channel):
        await asked(channel, said(LONG, model=MODEL))
        _, reply = await asked(channel, said(LONG, model=MODEL))
        told = reply.dynamic_metadata["envoy.lb"]["x-gateway-destination-endpoint-scores"]
        endpoints, costs = zip(*(one.split("=") for one in told.split(",")), strict=True)
        names = {endpoint: name for name, endpoint in ENDPOINTS.items()}
        assert [names[endpoint] for endpoint in endpoints] == picked(reply)
        seconds = [float(cost) for cost in costs]
        assert seconds == sorted(seconds)
        assert seconds[0] < seconds[-1]


async def test_scores_are_not_told_by_default() -> None:
    async with serving(config()) as (_, channel):
        _, reply = await asked(channel, said(LONG, model=MODEL))
        assert list(reply.dynamic_metadata["envoy.lb"]) == ["x-gateway-destination-endpoint"]
