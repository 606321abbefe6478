"""Homing computes the tokens that a live vLLM computes, in every API and family of models."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from extproc.parity import Outcome, Verdict, compare
from extproc.prompt import ServedModel
from tests.vllm.client import CHAT, COMPLETIONS
from tests.vllm.generated import generated
from tests.vllm.models import MODELS
from tests.vllm.servers import renderer
from tests.vllm.stack import MODEL, VllmStack

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

SEED = 3
REQUESTS = 600

MOST_CALLS = {"llama3_1": 1}
"""Llama's template refuses messages with more."""

COMPARED = 250
"""At least: what is refused has no tokens. Gemma's template wants user and assistant in turn, and
Mistral's tokenizers take no options of a template."""


@pytest.mark.parametrize("name", MODELS)
async def test_tokens_are_those_of_a_live_vllm(
    name: str, tmp_path: Path, report: dict[str, Any]
) -> None:
    folder = MODELS[name].write(tmp_path / name)
    requests = generated(name, SEED, REQUESTS, MOST_CALLS.get(name, 3))
    with renderer(MODELS[name], folder) as url:
        model = ServedModel.load(name, folder)
        outcomes = [outcome async for outcome in compare(url, model, requests)]
    counts = Counter(outcome.verdict for outcome in outcomes)
    report[f"parity_{name}"] = {verdict.value: counts[verdict] for verdict in Verdict}
    assert not differences(outcomes)
    assert counts[Verdict.EQUAL] >= COMPARED
    assert counts[Verdict.EQUAL] + counts[Verdict.REFUSED] == REQUESTS
    paths = {outcome.path for outcome in outcomes if outcome.verdict is Verdict.EQUAL}
    assert len(paths) == 4


async def test_tokens_are_those_that_a_live_vllm_reports_with_its_answers(
    stack: VllmStack, model_folder: Path
) -> None:
    """An engine that was started without `--enable-scale-out` does not render on request."""
    answering = (CHAT, COMPLETIONS)
    requests = [r for r in generated(MODEL.name, SEED, 300) if r.path in answering]
    engine, model = stack.engine_url("engine-2"), ServedModel.load(MODEL.name, model_folder)
    outcomes = [outcome async for outcome in compare(engine, model, requests)]
    counts = Counter(outcome.verdict for outcome in outcomes)
    assert not differences(outcomes)
    assert counts[Verdict.EQUAL] >= 140
    assert counts[Verdict.EQUAL] + counts[Verdict.REFUSED] == len(requests) == 150


def differences(outcomes: list[Outcome]) -> list[str]:
    return [
        f"request {outcome.number}, {outcome.path}: {outcome.detail}"
        for outcome in outcomes
        if outcome.verdict is Verdict.DIFFERENT
    ]
