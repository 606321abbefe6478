"""Instances as the configuration lists them."""

from extproc.config import Instance as Entry
from extproc.engines.instances import Instance, State


def instance_of(entry: Entry, scraped: bool, state: State = State.READY) -> Instance:
    """scraped: whether the pool's engines have metrics."""
    return Instance(
        id=entry.id,
        endpoint=entry.endpoint,
        state=state,
        rank=entry.rank,
        capacity_blocks=entry.capacity_blocks,
        events=entry.events,
        metrics=(entry.metrics or f"http://{entry.endpoint}/metrics") if scraped else None,
    )
