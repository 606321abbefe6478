"""The instances of a pool: who answers where, and what each can hold."""

import pytest

from extproc.engines import Instance, Members
from extproc.engines.metrics import Reading
from extproc.terms import Endpoint, InstanceId

HERE, THERE = Endpoint("10.0.0.1:1"), Endpoint("10.0.0.2:1")


def members(*instances: Instance) -> Members:
    listed = Members()
    listed.set_instances(instances)
    return listed


def instance(name: str, endpoint: Endpoint = HERE, **more: object) -> Instance:
    return Instance(InstanceId(name), endpoint, **more)  # type: ignore[arg-type]


def test_a_retry_elsewhere_meets_the_rank_that_its_header_names() -> None:
    listed = members(*(instance(f"{e}/{n}", e, rank=n) for e in (HERE, THERE) for n in range(3)))
    found = listed.at(THERE, like=InstanceId(f"{HERE}/2"))
    assert found is not None
    assert found.id == f"{THERE}/2"


def test_where_there_is_no_such_rank_it_is_whoever_is_there() -> None:
    listed = members(instance("a", rank=5), instance("b", THERE))
    assert listed.at(THERE, like=InstanceId("a")) == listed.of(InstanceId("b"))
    assert listed.at("10.0.0.9:1", like=InstanceId("a")) is None
    assert listed.at(THERE, like=InstanceId("gone")) is not None


class TestCapacity:
    """In blocks of 16 tokens; 1,000 where nobody says any."""

    @pytest.mark.parametrize(
        ("reading", "more", "blocks"),
        [
            (Reading(0, 0, block_size=16, blocks=50), {"capacity_blocks": 7}, 50),
            (Reading(0, 0, block_size=4, blocks=50), {}, 12),
            (Reading(0, 0, block_size=24, blocks=50), {}, 0),
            (Reading(0, 0), {"capacity_blocks": 7}, 7),
            (Reading(0, 0), {}, 1000),
            (None, {}, 1000),
        ],
    )
    def test_metrics_say_it_or_else_the_listing(
        self, reading: Reading | None, more: dict[str, int], blocks: int
    ) -> None:
        one = instance("a", metrics="http://a", **more)
        listed = members(one)
        listed.conditions.scraped(one.id, reading, 0, 0, now=1.0, fresh_s=1.0)
        assert listed.capacity(one, 16, 1000) == blocks
        assert listed.is_misfit(one.id) is (blocks == 0)

    def test_it_is_open_until_metrics_have_answered(self) -> None:
        """A guess would evict what a restarted Homing knows of a larger cache."""
        one = instance("a", metrics="http://a", capacity_blocks=7)
        listed = members(one)
        listed.conditions.unanswered(one.id, refused=True, now=1.0)
        assert listed.capacity(one, 16, 1000) is None

    def test_without_metrics_there_is_nothing_to_wait_for(self) -> None:
        one = instance("a")
        assert members(one).capacity(one, 16, 1000) == 1000

    def test_what_was_told_holds_while_the_page_says_nothing(self) -> None:
        one = instance("a", metrics="http://a")
        listed = members(one)
        told = Reading(0, 0, block_size=16, blocks=50)
        for reading in (told, None):
            listed.conditions.scraped(one.id, reading, 0, 0, now=1.0, fresh_s=1.0)
        assert listed.capacity(one, 16, 1000) == 50


def test_no_list_is_something_else_than_an_empty_one() -> None:
    assert not Members().known
    assert members().known
