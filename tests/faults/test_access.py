"""Etcd that takes nothing from Homing any more, while conversations go on: issue 7, "Faults"."""

import asyncio
from pathlib import Path

import pytest

from tests.etcd.server import Cluster, cluster
from tests.etcd.test_security import Authority
from tests.faults.world import World, world

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

QUOTA_BYTES = 16 * 1024 * 1024
FILLING = "x" * 100_000
AT_ONCE = 16


async def refused(all_of: World, reason: str) -> None:
    """No replica gets anything into the log, and each says why."""
    await all_of.cut_off()
    for one in all_of.running:
        assert await all_of.metric(one, "homing_log_failures_total", reason=reason)


async def test_a_quota_that_is_used_up(tmp_path: Path) -> None:
    async with (
        cluster(tmp_path / "etcd", members=3, quota_bytes=QUOTA_BYTES) as etcd,
        world(tmp_path / "stack", etcd) as three,
    ):
        level = await three.home_share()
        assert level > 0.9
        await fill(etcd)
        await refused(three, "no_space")
        await etcd.ctl("del", "/filling", "--prefix")
        await etcd.compact()
        for member in etcd.members:
            await etcd.ctl("defrag", at=member)
        await etcd.ctl("alarm", "disarm")
        await three.recovered(level)


async def fill(etcd: Cluster) -> None:
    """Until etcd takes no more."""
    for first in range(0, 2 * QUOTA_BYTES // len(FILLING), AT_ONCE):
        puts = (
            etcd.try_ctl("put", f"/filling/{number}", FILLING)
            for number in range(first, first + AT_ONCE)
        )
        errors = [error for status, _, error in await asyncio.gather(*puts) if status]
        if errors:
            assert "database space exceeded" in errors[0]
            return
    pytest.fail("etcd has no quota")


async def test_a_password_that_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("first")
    async with cluster(tmp_path / "etcd", members=3) as etcd:
        await etcd.ctl("role", "add", "homing")
        await etcd.ctl("role", "grant-permission", "homing", "readwrite", "--prefix", "/homing/")
        await add_user(etcd, "first")
        await etcd.enable_auth()
        settings = {"user": "homing", "password_file": str(file)}
        async with world(tmp_path / "stack", etcd, **settings) as three:
            level = await three.home_share()
            assert level > 0.9
            await etcd.ctl("user", "delete", "homing")
            await add_user(etcd, "second")
            await refused(three, "denied")
            file.write_text("second")
            await three.recovered(level)


async def add_user(etcd: Cluster, password: str) -> None:
    await etcd.ctl("user", "add", "homing", "--new-user-password", password)
    await etcd.ctl("user", "grant-role", "homing", "homing")


async def test_a_certificate_that_has_expired(tmp_path: Path) -> None:
    issue = Authority(tmp_path / "tls").issue
    server, own = issue("etcd", "127.0.0.1"), issue("homing", "homing")
    tls = {"ca": str(own.ca), "cert": str(own.cert), "key": str(own.key)}
    etcdctl = issue("etcdctl", "etcdctl")
    async with (
        cluster(tmp_path / "etcd", 3, server=server, client=etcdctl, mutual=True) as etcd,
        world(tmp_path / "stack", etcd, tls=tls) as three,
    ):
        level = await three.home_share()
        assert level > 0.9
        issue("homing", "homing", days=-1)
        await three.more_turns()
        for member in etcd.members:  # connections that are open are not asked again
            await member.stop()
            await etcd.start()
        await refused(three, "unreachable")
        issue("homing", "homing")
        await three.recovered(level)
