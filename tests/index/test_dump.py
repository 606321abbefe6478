"""What an operator sees of the index."""

import json
from pathlib import Path

from extproc.index import (
    Dropped,
    PrefixIndex,
    Source,
    Tier,
    arrange,
    overview,
    render,
    rows,
)
from extproc.terms import PackedKeys
from tests.index.chains import A, B, held, index_of, keys

GOLDEN = Path(__file__).parent / "golden"


def story() -> PrefixIndex:
    index = index_of(A, B, capacity=40)
    index.apply(held(A, "system: hello", source=Source.EVENT))
    index.apply(held(B, "system: good day", tenant="blue"))
    index.apply(held(B, "system", tier=Tier.CPU, source=Source.EVENT))
    hole = PackedKeys(keys("system: hello")[10].to_bytes(8, "little"))
    index.apply(Dropped(A, Tier.GPU, hole, Source.EVENT))
    return index


def everything(index: PrefixIndex, secret: int = 7):
    found, end = rows(index, secret, 1, 10_000)
    assert end == 0
    return found


def test_the_rows_are_json_and_read_as_the_golden_file() -> None:
    index = story()
    shown = {**overview(index), "digest": "…", "edges": everything(index)}
    assert json.loads(json.dumps(shown)) == json.loads((GOLDEN / "rows.json").read_text())


def test_the_readable_tree_reads_as_the_golden_file() -> None:
    index = story()
    text = render({**overview(index), "digest": "…"}, arrange(everything(index), limit=100))
    assert text + "\n" == (GOLDEN / "dump.txt").read_text()


def test_no_block_key_is_in_the_rows() -> None:
    text = json.dumps(everything(story()))
    for key in (*keys("system: hello"), *keys("system: good day")):
        assert str(key) not in text
        assert f"{key:x}" not in text
        assert key.to_bytes(8, "little").hex() not in text


def test_short_ids_differ_with_the_secret() -> None:
    one, other = (everything(story(), secret)[0]["first"] for secret in (1, 2))
    assert one != other


def test_rows_come_in_pieces_that_together_are_all_of_them() -> None:
    index, found, at = story(), [], 1
    pieces = 0
    while at:
        piece, at = rows(index, 7, at, 1)
        assert len(piece) <= 1
        found += piece
        pieces += 1
    assert found == everything(index)
    assert pieces > len(found) / 2 > 1


def test_an_empty_index_has_no_rows() -> None:
    assert rows(PrefixIndex(), 7, 1, 100) == ([], 0)


def test_a_tree_has_a_bound_and_keeps_the_heads() -> None:
    places = arrange(everything(story()), limit=1)
    assert [(place.level, place.depth, place.row["blocks"]) for place in places] == [(0, 0, 6)]


def test_an_edge_that_was_cut_while_the_rows_were_read_is_shown_with_the_heads() -> None:
    found = everything(story())
    (top,) = (row for row in found if not row["after"])
    lost = arrange([row for row in found if row is not top], 100)
    assert [place.level for place in lost] == [0, 1, 1]
    assert len(arrange([*found, *found], 100)) == len(found)


def test_a_long_line_is_cut() -> None:
    index = story()
    text = render(overview(index), arrange(everything(index), limit=100), width=30)
    assert max(map(len, text.splitlines())) == 30
