"""A picker as a whole, on the wire in FULL_DUPLEX_STREAMED: the full picker's cases, re-expressed.

llm-d/llm-d-router: test/integration/epp/ {common_tests,hermetic_test,datalayer_integration_test,
endpoint_scores_test,session_affinity_test,dynamic_attributes_test}.go
"""

import json

import pytest
from google.protobuf.json_format import MessageToDict

from extproc.stream import BodyMode
from proto_gen.ext_proc_pb2 import ProcessingRequest
from tests.conformance.wire import (
    Wire,
    chunk,
    endpoints,
    kinds,
    pick,
    pool_of,
    request_body,
    request_headers,
    response_body,
    response_headers,
    set_headers,
    with_hint,
)
from tests.serve.proxy import LONG, MODEL, chat, serving

POOL = ("192.168.1.1:8000", "192.168.1.2:8000", "192.168.1.3:8000")
STRANGER = "192.168.1.99:8000"


def sent(*pieces: bytes, headers: ProcessingRequest | None = None) -> list[ProcessingRequest]:
    """A request whose body comes in these pieces."""
    *begin, last = pieces
    return [
        headers or request_headers(),
        *(request_body(piece, end=False) for piece in begin),
        request_body(last),
    ]


async def forwarded(*pieces: bytes, path: str = "/v1/completions") -> tuple[list[str], bytes]:
    """Who was picked, and the body that goes on."""
    async with serving(pool_of(*POOL)) as (_, channel):
        first, *rest = await Wire(channel).ask(*sent(*pieces, headers=request_headers(path=path)))
    return endpoints(first), b"".join(chunk(answer)[0] for answer in rest)


async def test_the_least_loaded_instance_is_picked() -> None:
    async with serving(pool_of(*POOL)) as (_, channel):
        busy = [Wire(channel), Wire(channel)]
        taken = []
        for number, wire in enumerate(busy):
            await wire.say(*sent(chat(f"{number} {LONG}")))
            taken.append(endpoints((await wire.hear(2))[0])[0])
        free = set(POOL) - set(taken)
        assert len(free) == 1
        answers = await Wire(channel).ask(*sent(chat(f"another {LONG}")))
        assert endpoints(answers[0])[0] in free
        for wire in busy:
            await wire.end()


async def test_a_prompt_that_is_cached_outweighs_a_little_load() -> None:
    async with serving(pool_of(*POOL)) as (_, channel):
        home = endpoints((await Wire(channel).ask(*sent(chat(LONG))))[0])[0]
        busy = Wire(channel)
        await busy.say(*sent(chat(LONG)))
        assert endpoints((await busy.hear(2))[0])[0] == home
        again = await Wire(channel).ask(*sent(chat(LONG + "And then?")))
        assert endpoints(again[0])[0] == home
        await busy.end()


async def test_nothing_is_shed_however_much_is_in_flight() -> None:
    async with serving(pool_of(*POOL)) as (app, channel):
        open_wires = [Wire(channel) for _ in range(50)]
        for number, wire in enumerate(open_wires):
            await wire.say(*sent(chat(f"{number} {LONG}")))
            assert endpoints((await wire.hear(2))[0])
        assert app.pools[0].load.in_flight == len(open_wires)
        for wire in open_wires:
            await wire.end()


async def test_a_body_of_another_kind_is_passed_on_as_it_is() -> None:
    listed, body = await forwarded(b"passthrough-parser", path="/upload")
    assert set(listed) == set(POOL)
    assert body == b"passthrough-parser"


async def test_a_body_that_is_not_json_is_a_400() -> None:
    async with serving(pool_of(*POOL)) as (_, channel):
        wire = Wire(channel)
        await wire.say(*sent(b"no healthy upstream"))
        (refusal,) = await wire.hear(1)
        await wire.end()
    assert refusal.immediate_response.status.code == 400
    error = json.loads(refusal.immediate_response.body)["error"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("cut", [1, 33, 34, 50])
async def test_a_body_in_two_chunks_is_one_prompt(cut: int) -> None:
    async with serving(pool_of(*POOL)) as (app, channel):
        whole = chat(LONG)
        first, *_ = await Wire(channel).ask(*sent(whole))
        known = app.pools[0].describe(0.0)
        second, *chunks = await Wire(channel).ask(*sent(whole[:cut], whole[cut:]))
        assert endpoints(second)[0] == endpoints(first)[0]
        assert app.pools[0].describe(0.0)["instances"] == known["instances"], "nothing is new"
    assert [chunk(answer) for answer in chunks] == [(whole[:cut], False), (whole[cut:], True)]


async def test_a_request_without_a_model_is_the_engines_to_judge() -> None:
    body = b'{"prompt":"hello world"}'
    listed, passed = await forwarded(body)
    assert set(listed) == set(POOL)
    assert passed == body


async def test_the_best_of_the_hinted_is_picked() -> None:
    async with serving(pool_of(*POOL)) as (_, channel):
        home = endpoints((await Wire(channel).ask(*sent(chat(LONG))))[0])[0]
        hinted = with_hint(request_headers(), list(POOL))
        answers = await Wire(channel).ask(*sent(chat(LONG), headers=hinted))
        assert endpoints(answers[0])[0] == home


async def test_the_hint_counts_more_than_the_cache() -> None:
    async with serving(pool_of(*POOL)) as (_, channel):
        home = endpoints((await Wire(channel).ask(*sent(chat(LONG))))[0])[0]
        other = next(endpoint for endpoint in POOL if endpoint != home)
        hinted = with_hint(request_headers(), [other])
        answers = await Wire(channel).ask(*sent(chat(LONG), headers=hinted))
        assert endpoints(answers[0]) == [other]


async def test_a_hint_that_leaves_nobody_is_a_503_that_says_why() -> None:
    async with serving(pool_of(*POOL)) as (_, channel):
        wire = Wire(channel)
        await wire.say(*sent(chat(LONG), headers=with_hint(request_headers(), [STRANGER])))
        (refusal,) = await wire.hear(1)
        await wire.end()
    assert refusal.immediate_response.status.code == 503
    assert set_headers(refusal)["x-homing-reason"] == "no_endpoint"


async def test_a_model_that_no_pool_lists_goes_on_as_it_came() -> None:
    pieces = (b'{"max_tokens":100,"model":"direct-', b'model","prompt":"test6","temperature":0}')
    listed, passed = await forwarded(*pieces)
    assert set(listed) == set(POOL)
    assert passed == b"".join(pieces)


async def test_a_model_asked_for_by_an_alias_goes_on_as_it_came() -> None:
    body = json.dumps({"model": "alias", "prompt": LONG}).encode()
    assert (await forwarded(body))[1] == body


async def test_a_request_of_headers_only_has_a_pick() -> None:
    async with serving(pool_of(*POOL)) as (_, channel):
        get = request_headers({"accept": "text/event-stream"}, method="GET", end=True)
        (answer,) = await Wire(channel).ask(get)
    assert set(endpoints(answer)) == set(POOL)


JSON = {":status": "200", "content-type": "application/json"}
EVENTS = {":status": "200", "content-type": "text/event-stream"}
ANSWER = b'{"max_tokens":100,"model":"demo-model","prompt":"test6","temperature":0}'


@pytest.mark.parametrize(
    ("headers", "chunks"),
    [
        (JSON, [ANSWER[:34], ANSWER[34:]]),
        (JSON, [b"no healthy upstream"]),
        (JSON, [ANSWER, b""]),
        (EVENTS, [b"data: {}", b'data: {"usage":{"prompt_tokens":7}}\ndata: [DONE]', b""]),
    ],
    ids=["two chunks", "not JSON", "an empty last chunk", "events"],
)
async def test_an_answer_is_passed_on_chunk_by_chunk(
    headers: dict[str, str], chunks: list[bytes]
) -> None:
    async with serving(pool_of(*POOL)) as (_, channel):
        wire = Wire(channel)
        await wire.say(response_headers(headers))
        (first,) = await wire.hear(1)
        assert set_headers(first) == {}
        for number, data in enumerate(chunks):
            last = number == len(chunks) - 1
            await wire.say(response_body(data, end=last))
            (answer,) = await wire.hear(1)
            assert chunk(answer) == (data, last)
        await wire.end()


async def test_a_request_and_its_answer_are_one_stream() -> None:
    async with serving(pool_of(*POOL)) as (app, channel):
        answers = await Wire(channel).ask(
            *sent(chat(LONG)), response_headers(JSON), response_body(ANSWER, end=True)
        )
        assert kinds(answers) == [
            "request_headers",
            "request_body",
            "response_headers",
            "response_body",
        ]
        assert not answers[-1].HasField("dynamic_metadata")
        assert app.pools[0].load.in_flight == 0


async def test_a_pick_tells_its_endpoints_and_no_scores_unless_asked_to() -> None:
    async with serving(pool_of(*POOL)) as (_, channel):
        answer = await pick(channel, request_headers(), chat(LONG))
    assert MessageToDict(answer.dynamic_metadata) == {
        "envoy.lb": {"x-gateway-destination-endpoint": ",".join(endpoints(answer))}
    }


async def test_a_conversation_stays_without_any_session_header() -> None:
    said = [{"role": "user", "content": LONG}]
    async with serving(pool_of(*POOL)) as (_, channel):
        homes = set()
        for number in range(4):
            body = json.dumps({"model": MODEL, "messages": said}).encode()
            answers = await Wire(channel).ask(*sent(body))
            homes.add(endpoints(answers[0])[0])
            said.append({"role": "assistant", "content": f"Answer {number}."})
            said.append({"role": "user", "content": f"Question {number}?"})
    assert len(homes) == 1


async def test_a_session_header_of_another_picker_chooses_nobody() -> None:
    token = {"x-session-token": "MTkyLjE2OC4xLjI6ODAwMA==", "x-session-id": "one"}
    async with serving(pool_of(*POOL)) as (_, channel):
        first = {endpoints(await pick(channel, request_headers(token)))[0] for _ in POOL}
    assert first == set(POOL)


async def test_a_second_request_is_not_held_back_while_the_first_is_in_flight() -> None:
    async with serving(pool_of(POOL[0])) as (_, channel):
        first, second = Wire(channel), Wire(channel)
        for wire in (first, second):
            await wire.say(*sent(chat(LONG)))
            assert endpoints((await wire.hear(2))[0]) == [POOL[0]]
        await first.end()
        await second.end()


async def test_an_older_proxy_that_announces_no_mode_is_served_as_buffered() -> None:
    async with serving(pool_of(*POOL)) as (_, channel):
        wire = Wire(channel, BodyMode.BUFFERED)
        wire.announce = False
        await wire.say(request_headers())
        (first,) = await wire.hear(1)
        assert not set_headers(first)
        await wire.say(request_body(chat(LONG)))
        (second,) = await wire.hear(1)
        assert set(endpoints(second)) == set(POOL)
        await wire.end()
