"""The embedded log with a snapshot file: warm after a restart, and never worse than cold."""

import asyncio
import fcntl
import logging
import os
from pathlib import Path

import pytest

from extproc.index import Held, Joined, PrefixIndex, Source, Tier
from extproc.log import BadSnapshot, IndexSnapshots, KeptLog, LogClosedError
from extproc.log.file import FileWriter, Section, read_file
from extproc.terms import NO_BLOCK, InstanceId, PackedKeys
from tests.index.chains import A, B, depths, held

SELDOM_S = 3600.0


class Process:
    """What a Homing has of its log: an index a pool, and what it was told."""

    def __init__(self, path: Path, *pools: str, every_s: float = SELDOM_S) -> None:
        self.told: list[tuple[str, str]] = []
        self.log = KeptLog(path, every_s, lambda *told: self.told.append(told))
        self.indexes = {pool: self._subscribed(pool) for pool in pools}

    def _subscribed(self, pool: str) -> PrefixIndex:
        index = PrefixIndex()
        snapshots = IndexSnapshots(pool, index, lambda: self.log.secret(pool) or b"")
        self.log.subscribe(pool, lambda _, fact: index.apply(fact), index.reset, snapshots)
        return index


async def lived(path: Path, *pools: str) -> Process:
    """A process that served, folded something in each pool, and ended."""
    process = Process(path, *pools)
    await process.log.open()
    for number, pool in enumerate(pools):
        process.log.append(pool, [Joined(A, 16), held(A, f"{number} and the same")])
    await process.log.close()
    return process


async def begun(path: Path, *pools: str) -> Process:
    process = Process(path, *pools)
    await process.log.open()
    return process


async def test_a_process_that_starts_again_is_as_warm_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "homing.snapshot"
    before = await lived(path, "p", "q")
    assert before.told == [("p", "written"), ("q", "written")]
    after = await begun(path, "p", "q")
    assert after.told == [("p", "loaded"), ("q", "loaded")]
    for pool in ("p", "q"):
        assert after.indexes[pool].digest == before.indexes[pool].digest
        assert after.log.secret(pool) == before.log.secret(pool)
    assert after.log.secret("p") != after.log.secret("q")
    assert depths(after.indexes["q"], "1 and the same") == {"a": 14}
    await after.log.close()


async def test_only_the_owner_can_read_the_file_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "homing.snapshot"
    previous = os.umask(0)
    try:
        await lived(path, "p")
    finally:
        os.umask(previous)
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == [path.name]


async def test_a_first_start_is_cold_and_no_mistake(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    process = await begun(tmp_path / "homing.snapshot", "p")
    assert (process.told, caplog.messages) == ([], [])
    assert process.log.warm("p")
    await process.log.close()
    assert os.listdir(tmp_path) == []  # there was nothing to write


async def test_facts_that_come_before_the_file_is_read_are_folded_after_it(tmp_path: Path) -> None:
    path = tmp_path / "homing.snapshot"
    await lived(path, "p")
    after = Process(path, "p")
    assert after.log.secret("p") is None
    assert not after.log.warm("p")
    ticket = after.log.append("p", [held(A, "0 and the same, longer", after=14)])
    assert after.log.settled("p") < ticket
    await after.log.open()
    assert after.log.settled("p") == ticket
    assert depths(after.indexes["p"], "0 and the same, longer") == {"a": 22}
    await after.log.close()


async def test_it_is_written_on_a_timer_while_there_are_new_facts(tmp_path: Path) -> None:
    path = tmp_path / "homing.snapshot"
    process = Process(path, "p", every_s=0.01)
    await process.log.open()
    process.log.append("p", [Joined(A, 16), held(A, "first")])
    async with asyncio.timeout(30):
        while process.told != [("p", "written")]:
            await asyncio.sleep(0.01)
    written = path.stat().st_ino
    async with asyncio.timeout(30):
        for _ in range(20):  # nothing new, nothing written
            await asyncio.sleep(0.01)
    assert path.stat().st_ino == written
    process.log.append("p", [held(B, "unknown"), held(A, "second")])
    async with asyncio.timeout(30):
        while len(process.told) < 2:
            await asyncio.sleep(0.01)
    assert path.stat().st_ino != written
    crashed_then = await begun(path, "p")  # without a close
    assert crashed_then.indexes["p"].digest == process.indexes["p"].digest
    await crashed_then.log.close()
    await process.log.close()


async def test_picks_go_on_while_it_is_written(tmp_path: Path) -> None:
    process = Process(tmp_path / "homing.snapshot", "p")
    await process.log.open()
    process.log.append("p", [Joined(A, 16)])
    process.log.append("p", [held(A, f"{number:04d} and more") for number in range(4_000)])
    closing = asyncio.ensure_future(process.log.close())
    turns = 0
    while not closing.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 10
    after = await begun(tmp_path / "homing.snapshot", "p")
    assert after.indexes["p"].digest == process.indexes["p"].digest
    await after.log.close()


async def test_a_closed_log_refuses_facts_and_may_be_closed_again(tmp_path: Path) -> None:
    process = await lived(tmp_path / "homing.snapshot", "p")
    await process.log.close()
    with pytest.raises(LogClosedError):
        process.log.append("p", [])
    never_opened = Process(tmp_path / "homing.snapshot", "p")
    await never_opened.log.close()


async def test_every_cut_and_every_flipped_byte_is_refused_or_loads_the_same(
    tmp_path: Path,
) -> None:
    path = tmp_path / "homing.snapshot"
    before = await lived(path, "p", "q")
    whole = path.read_bytes()
    assert len(whole) < 3_000
    damaged = [whole[:size] for size in range(len(whole))]
    for place in range(len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 1 << place % 8
        damaged.append(bytes(broken))
    damaged += [whole + b"\0", whole + whole, b"", b"\0" * 100]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(BadSnapshot):
            read_file(path)
    for data in damaged[:: len(damaged) // 40]:  # and so says a start
        path.write_bytes(data)
        cold = await begun(path, "p", "q")
        assert cold.told == [("p", "refused"), ("q", "refused")]
        assert [index.instances() for index in cold.indexes.values()] == [[], []]
        assert cold.log.secret("p") != before.log.secret("p")
        cold.log.append("p", [Joined(A, 16)])
        await cold.log.close()
        assert cold.told[2:] == [("p", "written"), ("q", "written")]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GIF89a" * 10, "no snapshot file of this version"),
        (b"homing snapshot file 2\n...", "no snapshot file of this version"),
        (b"homing snapshot file 1\n", "cut off"),
        (b"homing snapshot file 1\n\xff\xff\xff\xff", "a frame is too long"),
        (b"homing snapshot file 1\n\x03\0\0\0abc", "piece 0 is damaged"),
    ],
)
async def test_a_file_that_is_not_used_is_named_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, data: bytes, why: str
) -> None:
    path = tmp_path / "homing.snapshot"
    path.write_bytes(data)
    process = await begun(path, "p")
    (message,) = caplog.messages
    assert message.startswith(f"{path} is not used, a cold start: ")
    assert why in message
    await process.log.close()


async def test_a_pool_that_is_not_in_the_file_starts_cold_and_the_others_warm(
    tmp_path: Path,
) -> None:
    path = tmp_path / "homing.snapshot"
    await lived(path, "p", "gone")
    after = await begun(path, "new", "p")
    assert after.told == [("p", "loaded")]
    assert after.indexes["new"].instances() == []
    assert depths(after.indexes["p"], "0 and the same") == {"a": 14}
    after.log.append("new", [Joined(B, 16)])
    await after.log.close()
    found = read_file(path)
    assert found is not None
    assert [section.pool for section, _ in found] == ["new", "p"]


async def test_a_section_under_another_pools_name_is_refused_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "homing.snapshot"
    await lived(path, "p", "q")
    found = read_file(path)
    assert found is not None
    (first, one), (second, other) = found
    with FileWriter(path) as file:
        file.section(first)
        file.pieces(one)
        file.section(Section("q", first.secret))  # its blocks are keyed with another
        file.pieces(other)
        file.commit()
    after = await begun(path, "p", "q")
    assert after.told == [("p", "loaded"), ("q", "refused")]
    assert "another secret" in caplog.text
    assert after.log.secret("q") not in (first.secret, second.secret)
    assert depths(after.indexes["q"], "1 and the same") == {}
    await after.log.close()
    with FileWriter(path) as file:
        file.section(Section("q", first.secret))
        file.pieces(one)
        file.commit()
    foreign = await begun(path, "p", "q")
    assert foreign.told == [("q", "refused")]
    assert "of the pool 'p', not of 'q'" in caplog.text
    await foreign.log.close()


async def test_a_file_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "homing.snapshot"
    before = await lived(path, "p")
    after = await begun(path, "p")
    after.log.append("p", [held(A, "lost")])
    with FileWriter(path):  # as another process would
        await after.log.close()
    assert after.told == [("p", "loaded"), ("p", "failed")]
    assert f"{path} could not be written, the old one stays" in caplog.text
    again = await begun(path, "p")
    assert again.indexes["p"].digest == before.indexes["p"].digest
    await again.log.close()


async def test_a_folder_in_its_place_is_refused_and_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "homing.snapshot"
    path.mkdir()
    process = await begun(path, "p")
    process.log.append("p", [Joined(A, 16)])
    await process.log.close()
    assert process.told == [("p", "refused"), ("p", "failed")]
    assert os.listdir(tmp_path) == [path.name]


def test_what_a_crash_left_half_written_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "homing.snapshot"
    beside = tmp_path / ".homing.snapshot.new"
    beside.write_bytes(b"half" * 10_000)
    beside.chmod(0o644)
    with FileWriter(path) as file:
        file.section(Section("p", b"secret"))
        file.commit()
    assert read_file(path) == [(Section("p", b"secret"), [])]
    assert path.stat().st_mode & 0o777 == 0o600
    assert not beside.exists()


def test_it_takes_the_old_ones_place_only_when_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "homing.snapshot"
    path.write_bytes(b"old")
    synced: list[bytes] = []
    fsync = os.fsync

    def noting(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(path.read_bytes()[:6])

    monkeypatch.setattr(os, "fsync", noting)
    with FileWriter(path) as file:
        file.commit()
    assert synced == [b"old", b"homing"]  # the file's bytes first, then the folder's entry


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    (tmp_path / ".homing.snapshot.new").symlink_to(precious)
    with pytest.raises(OSError), FileWriter(tmp_path / "homing.snapshot"):
        pass
    assert precious.read_bytes() == b"precious"


def test_the_lock_is_that_of_the_file_that_is_written(tmp_path: Path) -> None:
    path = tmp_path / "homing.snapshot"
    with FileWriter(path) as file:
        with pytest.raises(OSError), FileWriter(path):
            pass
        file.commit()
    fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)


async def test_a_large_index_survives(tmp_path: Path) -> None:
    path = tmp_path / "homing.snapshot"
    process = await begun(path, "p")
    names = [InstanceId(f"i{number}") for number in range(8)]
    process.log.append("p", [Joined(name, 16) for name in names])
    for number in range(400):
        keys = b"".join((number * 1000 + k + 1).to_bytes(8, "little") for k in range(200))
        name = names[number % 8]
        process.log.append(
            "p", [Held(name, Tier.GPU, NO_BLOCK, PackedKeys(keys), Source.PICK, "t")]
        )
    await process.log.close()
    after = await begun(path, "p")
    assert after.indexes["p"].digest == process.indexes["p"].digest
    assert after.indexes["p"].stats().held == 80_000
    await after.log.close()
