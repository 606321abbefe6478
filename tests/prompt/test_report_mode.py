"""`kv_cache_report_mode` is taken out of a body, and nothing else of it changes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.prompt import without_report_mode

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


def test_the_field_goes_and_its_neighbours_stay() -> None:
    given_ = body(vllm_xargs={"kv_cache_report_mode": "full", "other": 1}, prompt="x")
    assert without_report_mode(given_) is not None
    assert json.loads(without_report_mode(given_) or b"") == {
        "model": "m",
        "vllm_xargs": {"other": 1},
        "prompt": "x",
    }


def test_every_other_value_comes_out_byte_for_byte() -> None:
    odd = b'{"temperature":1.50e0,"big":123456789012345678901234567890,"text":"\\u00e9\\/"}'
    raw = b'{"a":' + odd + b',"vllm_xargs":{"kv_cache_report_mode":"full"}}'
    assert without_report_mode(raw) == b'{"a":' + odd + b',"vllm_xargs":{}}'


@pytest.mark.parametrize("key", ["vllm_xargs", "extra_args"])
def test_it_goes_from_the_sampling_parameters_of_a_generate_request_too(key: str) -> None:
    given_ = body(sampling_params={key: {"kv_cache_report_mode": "full"}, "n": 1})
    assert json.loads(without_report_mode(given_) or b"")["sampling_params"] == {key: {}, "n": 1}


@pytest.mark.parametrize(
    "raw",
    [
        b'{"vllm_\\u0078args":{"kv_cache_report_mode":"full"}}',
        b'{"vllm\\u005fxargs":{"kv\\u005Fcache_report_mode":"full"}}',
        b'{"\\u0076llm_xargs":{"kv_cache_report_mod\\u0065":"full"}}',
    ],
)
def test_escapes_do_not_hide_it(raw: bytes) -> None:
    assert json.loads(without_report_mode(raw) or b"") == {"vllm_xargs": {}}


def test_of_a_key_written_twice_the_last_counts_as_engines_read_it() -> None:
    raw = b'{"vllm_xargs":{"a":1},"vllm_xargs":{"kv_cache_report_mode":"full","b":2}}'
    assert json.loads(without_report_mode(raw) or b"") == {"vllm_xargs": {"b": 2}}


@pytest.mark.parametrize(
    "raw",
    [
        body(messages=[{"role": "user", "content": "what is kv_cache_report_mode?"}]),
        body(kv_cache_report_mode="full"),
        body(vllm_xargs=None, note="kv_cache_report_mode"),
        body(vllm_xargs=["kv_cache_report_mode"]),
        b'["kv_cache_report_mode"]',
        b'{"vllm_xargs":{"kv_cache_report_mode":"full"}',
        b"kv_cache_report_mode",
        b"",
    ],
)
def test_a_body_without_it_is_left_as_it_came(raw: bytes) -> None:
    assert without_report_mode(raw) is None


@given(st.dictionaries(st.text(), JSON), st.dictionaries(st.text(), JSON), st.booleans())
def test_what_python_reads_is_the_same_but_for_the_field(
    fields: dict[str, Any], xargs: dict[str, Any], ascii_only: bool
) -> None:
    asked = {**fields, "vllm_xargs": {**xargs, "kv_cache_report_mode": "full"}}
    rewritten = without_report_mode(json.dumps(asked, ensure_ascii=ascii_only).encode())
    xargs.pop("kv_cache_report_mode", None)
    assert rewritten is not None
    assert json.loads(rewritten) == {**fields, "vllm_xargs": xargs}
