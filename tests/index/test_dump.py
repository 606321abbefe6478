"""What an operator sees of the index."""

import json
from pathlib import Path

from extproc.index import Dropped, Source, Tier, dump, render
from extproc.terms import PackedKeys
from tests.index.chains import A, B, held, index_of, keys

GOLDEN = Path(__file__).parent / "golden"


def story():
    index = index_of(A, B, capacity=40)
    index.apply(held(A, "system: hello", source=Source.EVENT))
    index.apply(held(B, "system: good day", tenant="blue"))
    index.apply(held(B, "system", tier=Tier.CPU, source=Source.EVENT))
    hole = PackedKeys(keys("system: hello")[10].to_bytes(8, "little"))
    index.apply(Dropped(A, Tier.GPU, hole, Source.EVENT))
    return index


def test_the_dump_is_json_and_reads_as_the_golden_file() -> None:
    tree = dump(story(), secret=7)
    assert json.loads(json.dumps(tree)) == json.loads((GOLDEN / "dump.json").read_text())


def test_the_readable_tree_reads_as_the_golden_file() -> None:
    assert render(dump(story(), secret=7)) + "\n" == (GOLDEN / "dump.txt").read_text()


def test_no_block_key_is_in_a_dump() -> None:
    text = json.dumps(dump(story(), secret=7))
    for key in (*keys("system: hello"), *keys("system: good day")):
        assert str(key) not in text
        assert f"{key:x}" not in text
        assert key.to_bytes(8, "little").hex() not in text


def test_short_ids_differ_with_the_secret() -> None:
    one, other = (dump(story(), secret=s)["edges"][0]["first"] for s in (1, 2))
    assert one != other


def test_a_dump_has_a_bound_and_keeps_the_heads() -> None:
    tree = dump(story(), secret=7, limit=1)
    assert [(edge["depth"], edge["edges"]) for edge in tree["edges"]] == [(0, [])]


def test_a_long_line_is_cut() -> None:
    assert max(map(len, render(dump(story(), secret=7), width=30).splitlines())) == 30
