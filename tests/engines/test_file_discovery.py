"""Instances from a file that something else writes."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path

import pytest

from extproc.engines import Instance, State
from extproc.engines.discovery import DiscoveryError, follow
from extproc.engines.discovery.file import FileDiscovery

ONE = "instances: [{endpoint: 10.0.0.7:8000, name: one}]"
TWO = "instances: [{endpoint: 10.0.0.7:8000, name: one}, {endpoint: 10.0.0.8:8000, name: two}]"
NONE = "instances: []"


class File:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "engines.yaml"

    def write(self, text: str) -> None:
        """Replace the file, as careful writers do."""
        new = self.path.with_suffix(".new")
        new.write_text(text)
        new.rename(self.path)

    def discovery(self) -> FileDiscovery:
        return FileDiscovery(self.path, scraped=True, look_s=0.01)


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path)


async def following(lists: AsyncIterator[Sequence[Instance]]) -> list[str]:
    async with asyncio.timeout(30):
        return [one.id for one in await anext(lists)]


async def test_the_file_is_read_at_once_and_after_each_change(file: File) -> None:
    file.write(ONE)
    async with aclosing(file.discovery().watch()) as lists:
        assert await following(lists) == ["one"]
        for text, names in ((TWO, ["one", "two"]), (NONE, []), (ONE, ["one"])):
            file.write(text)
            assert await following(lists) == names


async def test_an_entry_says_all_that_the_configuration_may_and_its_state(file: File) -> None:
    file.write("""
        {"instances": [{"endpoint": "[::1]:8000", "name": "one", "rank": 3, "state": "draining",
        "capacity_blocks": 70, "metrics": "http://[::1]:9/m", "events": {"port": 5600}}]}
    """)
    async with aclosing(file.discovery().watch()) as lists:
        (one,) = await anext(lists)
    assert (one.id, one.endpoint, one.rank) == ("one", "[::1]:8000", 3)
    assert (one.state, one.capacity_blocks, one.metrics) == (
        State.DRAINING,
        70,
        "http://[::1]:9/m",
    )
    assert one.events is not None
    assert one.events.port == 5600
    assert one.headers == {"x-data-parallel-rank": "3"}


async def test_an_entry_that_says_little_is_ready_and_has_its_metrics_where_vllm_has(
    file: File,
) -> None:
    file.write(ONE)
    async with aclosing(file.discovery().watch()) as lists:
        (one,) = await anext(lists)
    assert (one.state, one.metrics) == (State.READY, "http://10.0.0.7:8000/metrics")
    blind = FileDiscovery(file.path, scraped=False)
    async with aclosing(blind.watch()) as lists:
        (one,) = await anext(lists)
    assert one.metrics is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("instances: [{endpoint: 10.0.0.7}]", "engines.yaml:1: instances[0].endpoint: "),
        ("instances: [", "engines.yaml:1: "),
        ("", "engines.yaml:1: instances: is missing"),
        ("instances: [{endpoint: 10.0.0.7:1, state: gone}]", "[0].state: must be"),
        ("instances: [{endpoint: 10.0.0.7:1}, {endpoint: 10.0.0.7:1}]", "is taken by"),
        (None, "engines.yaml: cannot be read: No such file or directory"),
    ],
)
async def test_a_file_that_is_wrong_is_refused_with_its_line(
    file: File, text: str | None, said: str
) -> None:
    if text is not None:
        file.write(text)
    with pytest.raises(DiscoveryError) as refused:
        await anext(file.discovery().watch())
    assert said in str(refused.value)


async def test_what_was_listed_last_holds_while_the_file_is_wrong(
    file: File, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    file.write(TWO)
    listed: list[list[str]] = []
    failures = 0
    changed = asyncio.Event()

    def take(instances: Sequence[Instance]) -> None:
        listed.append([one.id for one in instances])
        changed.set()

    def failed() -> None:
        nonlocal failures
        failures += 1
        changed.set()

    async def until(count: int) -> None:
        async with asyncio.timeout(30):
            while failures < count:
                changed.clear()
                await changed.wait()

    running = asyncio.create_task(
        follow("main", file.discovery(), take, failed, first_pause_s=0.01)
    )
    async with asyncio.timeout(30):
        await changed.wait()
    file.write("instances: {")
    await until(3)
    assert listed == [["one", "two"]]
    file.write(ONE)
    async with asyncio.timeout(30):
        while listed[-1] != ["one"]:
            changed.clear()
            await changed.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    said = [record.getMessage() for record in caplog.records]
    assert len([line for line in said if "stay as they are" in line]) == 1, "once, not each time"
    assert said[-1] == "pool main: discovery works again"


async def test_a_fault_of_ours_is_said_and_tried_again() -> None:
    class Faulty:
        calls = 0

        async def watch(self) -> AsyncIterator[Sequence[Instance]]:
            self.calls += 1
            if self.calls < 3:
                raise RuntimeError
            yield []
            await asyncio.Event().wait()

    done = asyncio.Event()
    failures: list[int] = []
    running = asyncio.create_task(
        follow(
            "main",
            Faulty(),
            lambda _: done.set(),
            lambda: failures.append(1),
            first_pause_s=0.001,
        )
    )
    async with asyncio.timeout(30):
        await done.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert len(failures) == 2
