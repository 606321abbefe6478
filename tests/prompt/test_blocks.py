import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from extproc.prompt import block_keys, pack_ids, root_seed, unpack_ids
from extproc.prompt import blocks as blocks_module
from extproc.terms import KEY_BYTES, BlockKey

IDS = st.lists(st.integers(0, 2**32 - 1), max_size=100)
SIZES = st.integers(1, 20)
ROOT = BlockKey(7)


def naive_keys(ids: list[int], root: int, size: int) -> list[int]:
    keys: list[int] = []
    for start in range(0, len(ids) // size * size, size):
        data = b"".join(token.to_bytes(4, "little") for token in ids[start : start + size])
        root = xxhash.xxh3_64_intdigest(data, seed=root) or 1
        keys.append(root)
    return keys


def unpacked(keys: bytes) -> list[int]:
    return [int.from_bytes(keys[i : i + 8], "little") for i in range(0, len(keys), 8)]


@given(IDS, SIZES)
def test_keys_are_chained_hashes_of_full_blocks(ids: list[int], size: int) -> None:
    assert unpacked(block_keys(pack_ids(ids), ROOT, size)) == naive_keys(ids, ROOT, size)


@given(IDS, IDS, SIZES)
def test_keys_of_a_prefix_are_a_prefix_of_the_keys(
    ids: list[int], more: list[int], size: int
) -> None:
    keys = block_keys(pack_ids(ids), ROOT, size)
    assert block_keys(pack_ids(ids + more), ROOT, size).startswith(keys)


@given(st.lists(st.integers(0, 9), min_size=8, max_size=8), st.integers(0, 7))
def test_block_after_another_prefix_has_another_key(block: list[int], changed: int) -> None:
    """X·B and Y·B never share B."""
    other = block.copy()
    other[changed] += 1
    mine = block_keys(pack_ids(block + block), ROOT, 8)
    theirs = block_keys(pack_ids(other + block), ROOT, 8)
    assert not set(unpacked(mine)) & set(unpacked(theirs))


def test_key_of_zero_becomes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_module, "xxh3_64_intdigest", lambda data, seed: 0)
    assert unpacked(block_keys(pack_ids([1, 2]), ROOT, 1)) == [1, 1]


def test_keys_do_not_change_between_versions() -> None:
    """Replicas of different versions share an index: these values are part of the log format."""
    root = root_seed(secret=b"secret", model="m", adapter="a", salt="s", tenant="t", block_size=2)
    assert root == 8595864623061503577
    keys = [11948422168082047877, 12721712416611011558]
    assert unpacked(block_keys(pack_ids([1, 2, 3, 4, 5]), root, 2)) == keys


FIELDS = st.text(max_size=4)


@given(*[st.tuples(st.binary(max_size=4), FIELDS, FIELDS, FIELDS, FIELDS, st.integers(1, 99))] * 2)
def test_roots_are_equal_only_for_equal_arguments(
    one: tuple[bytes, str, str, str, str, int], other: tuple[bytes, str, str, str, str, int]
) -> None:
    names = ("secret", "model", "adapter", "salt", "tenant", "block_size")
    roots = [root_seed(**dict(zip(names, args, strict=True))) for args in (one, other)]  # type: ignore[arg-type]
    assert (roots[0] == roots[1]) == (one == other)
    assert 0 < roots[0] < 2 ** (8 * KEY_BYTES)


def test_root_tells_where_one_field_ends() -> None:
    one = root_seed(secret=b"", model="ab", adapter="c", block_size=16)
    other = root_seed(secret=b"", model="a", adapter="bc", block_size=16)
    assert one != other


def test_root_takes_a_secret_of_any_length() -> None:
    roots = {root_seed(secret=b"x" * n, model="m", block_size=16) for n in (0, 63, 64, 65, 1000)}
    assert len(roots) == 5


@given(IDS)
def test_ids_come_back_from_their_packed_form(ids: list[int]) -> None:
    assert unpack_ids(pack_ids(ids)) == ids
