"""Replicas that share a log in etcd."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from extproc.index import Joined
from tests.etcd.replicas import POOL, alike, replica
from tests.etcd.server import Cluster, cluster
from tests.index.chains import A, B, depths, held


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path) as running:
        yield running


async def test_what_one_replica_appends_all_have(etcd: Cluster) -> None:
    async with replica(etcd) as first, replica(etcd) as second:
        assert first.log.secret(POOL) == second.log.secret(POOL) is not None
        first.append(Joined(A, 16), held(A, "xyz"))
        await first.settled()
        second.append(Joined(B, 16), held(B, "xy"))
        await second.settled()
        await alike(first, second)
        assert depths(first.index, "xyz") == {"a": 3, "b": 2}
        assert first.facts == second.facts


async def test_a_replica_that_starts_later_has_all_that_was_there(etcd: Cluster) -> None:
    async with replica(etcd) as first:
        first.append(Joined(A, 16), held(A, "xyz"))
        await first.settled()
        async with replica(etcd) as second:
            assert second.log.warm(POOL)
            assert depths(second.index, "xyz") == {"a": 3}
            await alike(first, second)
