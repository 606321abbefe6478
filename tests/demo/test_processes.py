import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from extproc.demo.processes import Process, StackError, answers, stop

READY_S = 20.0

SERVER = """
import http.server, signal, sys
signal.signal(signal.SIGTERM, {on_term})
print("{word}", flush=True)
server = http.server.HTTPServer(("127.0.0.1", {port}), http.server.SimpleHTTPRequestHandler)
server.serve_forever()
"""

Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path, free_port: int) -> Iterator[Start]:
    """Starts a small HTTP server; what still runs at the end is killed."""
    made: list[Process] = []

    def start(
        word: str = "hello",
        on_term: str = "signal.SIG_DFL",
        code: str = SERVER,
        started: bool = True,
    ) -> Process:
        script = code.format(word=word, port=free_port, on_term=on_term)
        process = Process(
            f"server-{len(made)}",
            [sys.executable, "-c", script],
            tmp_path / "server.log",
            f"http://127.0.0.1:{free_port}/",
        )
        made.append(process)
        if started:
            process.start()
        return process

    yield start
    for process in made:
        process.kill()


def soon() -> float:
    return time.monotonic() + READY_S


def test_a_process_is_ready_when_its_url_answers(start: Start) -> None:
    process = start("hello")
    process.wait_ready(soon())
    assert process.running
    assert process.pid is not None
    assert process.tail().splitlines()[1] == "  hello"


def test_a_process_that_ends_at_once_is_named_with_its_status_and_the_end_of_its_log(
    start: Start,
) -> None:
    process = start(code="import sys; [print(n) for n in range(99)]; sys.exit('no such model')")
    with pytest.raises(StackError) as failure:
        process.wait_ready(soon())
    first, path, *tail = str(failure.value).splitlines()
    assert first == "server-0 ended with status 1"
    assert path == f"{process.log}:"
    assert len(tail) == 15
    assert tail[-2:] == ["  98", "  no such model"] or tail[0] == "  no such model"


def test_a_process_that_is_never_ready_is_named_when_the_deadline_is_over(start: Start) -> None:
    process = start(code="import signal; print('waiting', flush=True); signal.pause()")
    with pytest.raises(StackError, match=r"server-0 is not ready \(http://127"):
        process.wait_ready(time.monotonic())
    assert process.running


def test_a_killed_process_is_gone_and_starts_again_with_the_same_log(start: Start) -> None:
    process = start("hello")
    process.wait_ready(soon())
    first = process.pid
    process.kill()
    assert (process.running, process.pid) == (False, None)
    process.start()
    process.wait_ready(soon())
    assert process.pid not in (None, first)
    assert process.log.read_text().count("hello") == 2


def test_a_process_that_ignores_sigterm_is_killed(start: Start) -> None:
    deaf = start(on_term="signal.SIG_IGN")
    deaf.wait_ready(soon())
    stop([deaf], grace_s=0.1)
    assert not deaf.running
    with pytest.raises(StackError, match=f"ended with status {-signal.SIGKILL}"):
        deaf.check()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C works, also where the tests are a job in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_while_a_process_starts_waits_until_it_is_known(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGINT arrives when the child runs already and its starter has not noted it yet."""

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    process = start(code="0", started=False)
    with pytest.raises(KeyboardInterrupt):
        process.start()
    monkeypatch.undo()
    process.kill()
    with pytest.raises(StackError, match=r"server-0 ended with status -?\d"):
        process.check()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_process_ends_by_sigterm_where_it_can(start: Start) -> None:
    polite = start(on_term="lambda *_: sys.exit(0)")
    polite.wait_ready(soon())
    stop([polite], grace_s=READY_S)
    with pytest.raises(StackError, match="ended with status 0"):
        polite.check()


def test_children_of_a_process_end_with_it(start: Start, free_port: int) -> None:
    serve = "[sys.executable, '-m', 'http.server', '-b', '127.0.0.1', '{port}']"
    parent = start(code=f"import subprocess, sys; subprocess.run({serve})")
    parent.wait_ready(soon())
    parent.kill()
    deadline = soon()
    while answers(f"http://127.0.0.1:{free_port}/"):
        assert time.monotonic() < deadline, "the child of the killed process still answers"
