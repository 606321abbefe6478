"""Which instances hold which blocks of one edge."""


class Cover:
    """Holders of an edge: full ones as one integer, the others as a bitset of blocks each.

    full: bit s is set when slot s holds every block of the edge.
    part: slot → its blocks, bit b for block b of the edge; never empty, never all of them.
    """

    __slots__ = ("full", "part")

    def __init__(self, full: int = 0, part: dict[int, int] | None = None) -> None:
        self.full = full
        self.part = part if part is not None else {}

    def get(self, slot: int, size: int) -> int:
        """The blocks that `slot` holds of this edge of `size` blocks, as a bitset."""
        if self.full >> slot & 1:
            return (1 << size) - 1
        return self.part.get(slot, 0)

    def put(self, slot: int, blocks: int, size: int) -> None:
        """`slot` holds exactly these blocks from now on."""
        if blocks == (1 << size) - 1:
            self.full |= 1 << slot
            self.part.pop(slot, None)
            return
        self.full &= ~(1 << slot)
        if blocks:
            self.part[slot] = blocks
        else:
            self.part.pop(slot, None)

    def split(self, at: int, size: int) -> "Cover":
        """Cut before block `at`: self keeps the lower blocks, the upper ones are returned."""
        upper, lower = Cover(self.full), Cover(self.full)
        for slot, blocks in self.part.items():
            upper.put(slot, blocks & ((1 << at) - 1), at)
            lower.put(slot, blocks >> at, size - at)
        self.full, self.part = lower.full, lower.part
        return upper

    def resize(self, old: int, new: int) -> None:
        """The edge now has `new` blocks instead of `old`; those beyond `new` are held by nobody."""
        full, part = self.full, self.part
        self.full, self.part = 0, {}
        for slot, blocks in part.items():
            self.put(slot, blocks, new)
        for slot in ones(full):
            self.put(slot, (1 << min(old, new)) - 1, new)

    def any_at(self, block: int) -> bool:
        """Whether anybody holds this block."""
        return self.full != 0 or any(blocks >> block & 1 for blocks in self.part.values())

    def __bool__(self) -> bool:
        return self.full != 0 or bool(self.part)


def ones(mask: int) -> list[int]:
    """Positions of the set bits, lowest first. O(set bits)."""
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


def leading(blocks: int) -> int:
    """How many blocks from the first one on are held without a hole."""
    return (~blocks & (blocks + 1)).bit_length() - 1
