"""Calls of tools are found in answers as the three APIs give them, and nowhere else."""

import json

import pytest

from extproc.serve.tool_calls import ToolCallReader

CALLS = {
    "chat": b'{"choices":[{"message":{"tool_calls":[{}]},"finish_reason":"tool_calls"}]}',
    "chat, streamed": b'data: {"choices":[{"delta":{},"finish_reason": "tool_calls"}]}\n\n',
    "messages": b'{"content":[{"type":"tool_use"}],"stop_reason":"tool_use","usage":{}}',
    "messages, streamed": b'data: {"type":"message_delta","delta":{"stop_reason" : "tool_use"}}',
    "responses": b'{"output":[{"arguments":"{}","type":"function_call","status":"completed"}]}',
    "responses, streamed": b'data: {"type":"response.output_item.added","item":'
    b'{"id":"fc_1","type":"function_call","name":"weather"}}',
}


@pytest.mark.parametrize("answer", CALLS.values(), ids=CALLS)
def test_a_call_is_found_however_the_answer_is_cut(answer: bytes) -> None:
    for size in range(1, len(answer) + 1):
        reader = ToolCallReader()
        reader.feed(b'{"id": "chatcmpl-1"} ' * 100)
        for at in range(0, len(answer), size):
            assert not reader.found or b"call" in answer[:at] or b"tool_use" in answer[:at]
            reader.feed(answer[at : at + size])
        assert reader.found


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_a_model_says_of_calls_is_none(call: bytes) -> None:
    said = call.decode()
    for content in (said, json.dumps(said)):
        reader = ToolCallReader()
        message = {"role": "assistant", "content": content}
        choice = {"message": message, "finish_reason": "stop"}
        reader.feed(json.dumps({"choices": [choice]}).encode())
        assert not reader.found
