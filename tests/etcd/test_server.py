"""The clusters that the other tests rely on do what they say."""

from pathlib import Path

from tests.etcd.server import cluster


async def test_a_cluster_of_three_goes_on_without_its_leader(tmp_path: Path) -> None:
    async with cluster(tmp_path, members=3) as etcd:
        first = await etcd.leader()
        await etcd.ctl("put", "/a", "1")
        await first.kill()
        second = await etcd.leader()
        assert second is not first
        await etcd.ctl("put", "/b", "2")
        await etcd.start()
        assert "2" in await etcd.ctl("get", "/b", at=first)


async def test_a_member_that_was_killed_or_frozen_keeps_its_data(tmp_path: Path) -> None:
    async with cluster(tmp_path) as etcd:
        (member,) = etcd.members
        await etcd.ctl("put", "/a", "1")
        before = await etcd.revision()
        await member.kill()
        await etcd.start()
        member.pause()
        assert (await etcd.try_ctl("endpoint", "health"))[0] != 0
        member.resume()
        assert await etcd.revision() == before
        assert await etcd.compact() == before
