"""On real etcd: whatever happens to replicas, they are the same once they have read as far.

The same programs on a model, many more of them: tests/log/test_convergence.py.
"""

import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from extproc.index import Capacity, Dropped, Fact, Joined, Source, Tier
from extproc.log import LogClosedError
from extproc.terms import InstanceId
from tests.etcd.relay import Relay, relay
from tests.etcd.replicas import Replica, alike
from tests.etcd.server import Cluster, cluster
from tests.index.chains import held, packed

REPLICAS = 3
NAMES = [InstanceId(name) for name in "abc"]
WHAT = ["cut", "mend", "kill", "stop", "snapshot", "snapshot", "compact", "damage"]
prefixes = itertools.count()


@dataclass
class Step:
    """What happens to one replica."""

    what: str
    which: int
    prompts: list[str]


steps = st.lists(
    st.builds(
        Step,
        st.sampled_from(["append"] * 6 + WHAT),
        st.integers(0, REPLICAS - 1),
        st.lists(st.text("xyz", min_size=1, max_size=12), min_size=1, max_size=8),
    ),
    min_size=10,
    max_size=40,
)


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path) as running:
        yield running


def facts(prompts: list[str]) -> list[Fact]:
    """Some of every kind, decided by the prompts."""
    said: list[Fact] = []
    for prompt in prompts:
        name = NAMES[len(prompt) % 3]
        if prompt.endswith("zz"):
            said.append(Dropped(name, Tier.GPU, packed(prompt, 1), Source.EVENT))
        elif prompt.endswith("yy"):
            said.append(Capacity(name, Tier.GPU, 10 * len(prompt)))
        else:
            said.append(held(name, prompt, min(len(prompt) - 1, prompt.count("x"))))
    return said


@pytest.mark.slow
@settings(
    deadline=None,
    max_examples=8,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(program=steps)
async def test_replicas_that_have_read_as_far_are_the_same(
    etcd: Cluster, program: list[Step]
) -> None:
    prefix = f"/t{next(prefixes)}"
    async with AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(relay(etcd.endpoints[0])) for _ in range(REPLICAS)]
        cut = [False] * REPLICAS

        async def start(wire: Relay) -> Replica:
            one = Replica(
                etcd,
                endpoints=(wire.endpoint,),
                prefix=prefix,
                snapshot_bytes=700,
                warm_timeout_s=0.5,
            )
            stack.push_async_callback(one.log.close)
            await one.log.open()
            return one

        replicas = [await start(wire) for wire in wires]
        replicas[0].append(*(Joined(name, 16) for name in NAMES))
        for step in program:
            wire, one = wires[step.which], replicas[step.which]
            if step.what == "append":
                one.append(*facts(step.prompts))
            elif step.what in ("cut", "mend") and cut[step.which] != (step.what == "cut"):
                cut[step.which] = not cut[step.which]
                await (wire.cut() if cut[step.which] else wire.mend())
            elif step.what in ("kill", "stop"):
                if step.what == "kill":
                    one.die()
                else:
                    await one.log.close()
                    with pytest.raises(LogClosedError):
                        one.append()
                replicas[step.which] = await start(wire)
            elif step.what == "snapshot":
                await one.snapshot()
            elif step.what == "compact":
                # Refused where somebody else has compacted as far.
                await etcd.try_ctl("compaction", str(await etcd.revision()))
            elif step.what == "damage":
                seq = len(step.prompts)
                await etcd.ctl("put", f"{prefix}/p/log/00000000000000aa/{seq:010x}", "damaged")
        for wire, is_cut in zip(wires, cut, strict=True):
            if is_cut:
                await wire.mend()
        for one in replicas:
            await one.settled()
        await alike(*replicas)
        await alike(replicas[0], await start(wires[0]))
