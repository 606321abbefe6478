"""Pages of an engine that are smaller than our blocks (SGLang's default page is one token)."""

from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from extproc.terms import TOKEN_BYTES, BlockKey


class Page(NamedTuple):
    """Where a page stands.

    key: its block's, if it `ends` one; else one of its own. above: the key of the block before the
    one it is in, 0 for none.
    """

    key: BlockKey
    above: BlockKey
    ends: bool


class _Begun(NamedTuple):
    seed: BlockKey
    above: BlockKey
    ids: bytes


class Pages:
    """The blocks that are begun, by the key of each page that ends inside one.

    A page chains on a block or on a page before it in the same block, so what is begun is kept as
    long as the page is held: about 300 bytes for each page that does not end a block.
    """

    def __init__(self, block_size: int) -> None:
        self._step = block_size * TOKEN_BYTES
        self._begun: dict[BlockKey, _Begun] = {}

    def follow(self, seed: BlockKey, above: BlockKey, ids: bytes) -> Page:
        """The page with these tokens that follows a block or a page, or begins a prompt.

        seed: the key of what it follows, or the root. above: the same, or 0 at the root.
        """
        begun = self._begun.get(seed)
        if begun is not None:
            seed, above, ids = begun.seed, begun.above, begun.ids + ids
        key = BlockKey(xxh3_64_intdigest(ids, seed) or 1)
        ends = len(ids) == self._step
        if not ends:
            self._begun[key] = _Begun(seed, above, ids)
        return Page(key, above, ends)

    def is_begun(self, key: BlockKey) -> bool:
        """Whether the key is a page's that ends inside a block."""
        return key in self._begun

    def forget(self, key: BlockKey) -> None:
        """The page is gone."""
        self._begun.pop(key, None)
