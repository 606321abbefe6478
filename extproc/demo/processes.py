"""Child processes of the local stack: each in a group of its own, its output in a log file."""

import http.client
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from extproc.errors import HomingError

POLL_S = 0.02
TAIL_LINES = 15


class StackError(HomingError):
    """A process of the stack did not do what it should; the message ends with its log's tail."""


class Process:
    """One child, which can be started again after it ended.

    ready_url: answers 200 once the process can be used.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path, ready_url: str) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._ready_url = ready_url
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the running child; None where there is none."""
        return self._child.pid if self.running and self._child else None

    @property
    def running(self) -> bool:
        """Whether the child has been started and has not ended."""
        return self._child is not None and self._child.poll() is None

    def start(self) -> None:
        """Start it; does not wait until it is ready. Its log goes on where it was."""
        assert not self.running, f"{self.name} runs already"
        with self.log.open("ab") as log, _signals_deferred():
            # A group of its own: Ctrl-C goes to the parent alone, which then ends all in order.
            self._child = subprocess.Popen(  # noqa: S603 - our own commands
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_ready(self, deadline: float) -> None:
        """Poll until it is ready. deadline: on the clock of `time.monotonic`.

        Raises StackError where the process ends before, or the deadline passes.
        """
        while not answers(self._ready_url):
            self.check()
            if time.monotonic() > deadline:
                raise StackError(f"{self.name} is not ready ({self._ready_url})\n{self.tail()}")
            time.sleep(POLL_S)

    def check(self) -> None:
        """Raise StackError where the process has ended."""
        if not self.running:
            status = self._child.returncode if self._child else None
            raise StackError(f"{self.name} ended with status {status}\n{self.tail()}")

    def tail(self) -> str:
        """The last lines of the log, under its path."""
        text = self.log.read_text("utf-8", errors="replace") if self.log.exists() else ""
        lines = text.splitlines()[-TAIL_LINES:] or ["(empty)"]
        return "\n".join([f"{self.log}:", *("  " + line for line in lines)])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole group; nothing where the process has ended."""
        if self._child is not None and self._child.poll() is None:
            os.killpg(self._child.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        if self._child is not None:
            self._child.wait()


def stop(processes: Iterable[Process], grace_s: float) -> None:
    """End all: SIGTERM, then SIGKILL for what is still there after `grace_s` seconds together."""
    running = [process for process in processes if process.running]
    try:
        for process in running:
            process.signal(signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while any(process.running for process in running) and time.monotonic() < deadline:
            time.sleep(POLL_S)
    finally:  # also when a second Ctrl-C ends the waiting
        for process in running:
            process.kill()


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Let signals wait until the block is over.

    A KeyboardInterrupt between a child's start and its being noted would leave it running for ever.
    (A blocked mask would do too, but children inherit it.)
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python runs handlers in the main thread only
        return
    arrived: list[int] = []
    previous = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if callable(handler := signal.getsignal(number)):
            previous[number] = handler
            signal.signal(number, lambda number, _: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for late in arrived:
            signal.raise_signal(late)


def answers(url: str) -> bool:
    """Whether a GET of `http://host:port/path` is answered with 200; proxies are not asked."""
    address, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(address, timeout=2)
    try:
        connection.request("GET", f"/{path}")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
