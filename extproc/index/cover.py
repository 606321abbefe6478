"""Which instances hold which blocks of one run of blocks."""

from msgspec import Struct


class Cover(Struct, gc=False, eq=False):
    """The holders of a run of blocks: full ones as one integer, the others each with a number.

    full: bit s is set when slot s holds every block.
    part: slot → what it holds if that is neither all nor nothing; None where there is nobody. A
    positive number is a prefix length, the usual case. A negative one is the complement of a
    bitset, bit b for block b: the slot has a hole.

    Neither form depends on the length of the run, so a run can grow and shrink at its end.
    """

    full: int = 0
    part: dict[int, int] | None = None

    def get(self, slot: int, size: int) -> int:
        """The blocks that `slot` holds of this run of `size` blocks, as a bitset."""
        if self.full >> slot & 1:
            return (1 << size) - 1
        if self.part is None:
            return 0
        return decode(self.part.get(slot, 0))

    def put(self, slot: int, blocks: int, size: int) -> None:
        """`slot` holds exactly these blocks from now on."""
        if blocks == (1 << size) - 1:
            self.full |= 1 << slot
        else:
            if self.full >> slot & 1:
                self.full ^= 1 << slot
            if blocks:
                if self.part is None:
                    self.part = {}
                self.part[slot] = encode(blocks)
                return
        if self.part is not None:
            self.part.pop(slot, None)
            if not self.part:
                self.part = None

    def cut(self, at: int, size: int, ghosts: int) -> "Cover":
        """Cut before block `at`: self keeps the lower blocks, the upper ones are returned.

        ghosts: slots that the upper cover leaves out.
        """
        upper = Cover(self.full & ~ghosts)
        part, self.part = self.part, None
        for slot, number in (part or {}).items():
            blocks = decode(number)
            if not ghosts >> slot & 1:
                upper.put(slot, blocks & ((1 << at) - 1), at)
            self.put(slot, blocks >> at, size - at)
        return upper

    def grow(self, size: int, keep: int) -> None:
        """The run gets longer than `size` blocks: full holders, but for `keep`, hold a prefix."""
        others = self.full & ~keep
        if others:
            self.full &= keep
            if self.part is None:
                self.part = {}
            for slot in ones(others):
                self.part[slot] = size

    def shrink(self, size: int) -> None:
        """The run is cut to `size` blocks, beyond which nobody holds any."""
        if self.part is not None:
            for slot in [s for s, number in self.part.items() if number == size]:
                self.put(slot, (1 << size) - 1, size)

    def reach(self, size: int) -> int:
        """Blocks from the first to the last that anybody holds. O(partial holders)."""
        if self.full:
            return size
        if self.part is None:
            return 0
        return max(
            number if number > 0 else (~number).bit_length() for number in self.part.values()
        )

    def at(self, block: int, size: int, live: int) -> bool:
        """Whether any slot of `live` holds this block."""
        if self.full & live:
            return True
        return any(
            live >> slot & 1 and decode(number) >> block & 1
            for slot, number in (self.part or {}).items()
        )

    @property
    def empty(self) -> bool:
        """Whether nobody holds anything."""
        return not self.full and self.part is None

    def slots(self) -> list[int]:
        """All that hold something."""
        return ones(self.full) + list(self.part or ())

    def without(self, slots: int) -> None:
        """Forget these slots."""
        if self.full & slots:
            self.full &= ~slots
        if self.part is not None:
            for slot in [s for s in self.part if slots >> s & 1]:
                del self.part[slot]
            if not self.part:
                self.part = None

    def holds(self, slot: int) -> bool:
        """Whether `slot` holds anything."""
        return bool(self.full >> slot & 1 or (self.part is not None and slot in self.part))


def encode(blocks: int) -> int:
    """A bitset as a number of `Cover.part`."""
    return blocks.bit_length() if blocks & (blocks + 1) == 0 else ~blocks


def decode(number: int) -> int:
    """A number of `Cover.part` as a bitset."""
    return (1 << number) - 1 if number >= 0 else ~number


def lead(number: int) -> int:
    """How many blocks from the first one on a number of `Cover.part` has without a hole."""
    return number if number >= 0 else (number & -number).bit_length() - 1


def leading(blocks: int) -> int:
    """How many blocks from the first one on a bitset has without a hole."""
    return (~blocks & (blocks + 1)).bit_length() - 1


def ones(mask: int) -> list[int]:
    """Positions of the set bits, lowest first. O(set bits)."""
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found
