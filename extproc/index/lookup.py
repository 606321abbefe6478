"""How far each instance's blocks cover a prompt: the walk down the tree."""

from typing import NamedTuple

from extproc.index.cover import encode, lead, ones
from extproc.index.edge import HELD_CPU
from extproc.index.keys import common_prefix
from extproc.index.roster import Roster
from extproc.index.tree import Tree
from extproc.terms import KEY_BYTES, InstanceId

_new_tuple = tuple.__new__


class Depths(NamedTuple):
    """Leading blocks of a prompt that an instance holds without a hole."""

    gpu: int
    """On the GPU."""
    any: int
    """On the GPU or a slower tier; at least `gpu`."""


def match(tree: Tree, roster: Roster, keys: bytes) -> dict[InstanceId, Depths]:
    """`PrefixIndex.match` where all blocks are on the GPU."""
    first = tree.first
    alive = roster.live
    total = len(keys)
    found: dict[InstanceId, Depths] = {}
    at = 0
    while at < total:
        edge = first[keys[at]].get(keys[at : at + 8])
        if edge is None:
            break
        edge_keys = edge.keys
        end = at + len(edge_keys)
        whole = edge_keys[-8:] == keys[end - 8 : end]
        if not whole:
            end = at + common_prefix(edge_keys, 0, keys, at) * 8
        lost = alive & ~edge.full
        if lost:
            alive ^= _leave(roster, found, edge.part, lost, at >> 3, end >> 3)
            if not alive:
                return found
        at = end
        if not whole:
            break
    _found_all(roster, found, alive, at >> 3)
    return found


def match_tiers(tree: Tree, roster: Roster, keys: bytes) -> dict[InstanceId, Depths]:
    """`match` where some blocks are on a slower tier: the same walk for two depths at once."""
    first = tree.first
    on_gpu = anywhere = roster.live
    gpu: dict[InstanceId, Depths] = {}
    deepest: dict[InstanceId, Depths] = {}
    total = len(keys)
    at = 0
    while at < total and anywhere:
        edge = first[keys[at]].get(keys[at : at + 8])
        if edge is None:
            break
        size = common_prefix(edge.keys, 0, keys, at)
        start, stop = at >> 3, (at >> 3) + size
        if on_gpu:
            on_gpu ^= _leave(roster, gpu, edge.part, on_gpu & ~edge.full, start, stop)
        cpu = edge.plane(HELD_CPU)
        if cpu is None:
            anywhere ^= _leave(roster, deepest, edge.part, anywhere & ~edge.full, start, stop)
        else:
            both = {
                slot: encode(edge.get(slot, edge.size) | cpu.get(slot, edge.size))
                for slot in ones(anywhere & ~edge.full & ~cpu.full)
                if edge.has(slot)
            }
            lost = anywhere & ~edge.full & ~cpu.full
            anywhere ^= _leave(roster, deepest, both, lost, start, stop)
        at += size * KEY_BYTES
        if size < edge.size:
            break
    _found_all(roster, gpu, on_gpu, at >> 3)
    _found_all(roster, deepest, anywhere, at >> 3)
    none = Depths(0, 0)
    return {name: Depths(gpu.get(name, none).gpu, d.gpu) for name, d in deepest.items()}


def _leave(
    roster: Roster,
    found: dict[InstanceId, Depths],
    part: dict[int, int] | None,
    lost: int,
    start: int,
    stop: int,
) -> int:
    """Note how far the slots of `lost` go that hold less than blocks `start` to `stop`.

    Returns these slots; the others hold enough.
    """
    ended = 0
    if part is not None:
        names = roster.names
        for slot, number in part.items():
            if lost >> slot & 1:
                depth = start + lead(number)
                if depth >= stop:
                    lost ^= 1 << slot
                    continue
                ended |= 1 << slot
                if depth:
                    found[names[slot]] = _new_tuple(Depths, (depth, depth))
    _found_all(roster, found, lost ^ ended, start)
    return lost


def _found_all(roster: Roster, found: dict[InstanceId, Depths], slots: int, depth: int) -> None:
    """All these slots go that far."""
    if depth and slots:
        found.update(dict.fromkeys(roster.group(slots), Depths(depth, depth)))
