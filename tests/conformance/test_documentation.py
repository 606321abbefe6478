"""docs/conformance.md names tests that exist, and every test of this folder."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "conformance.md").read_text()
CONVERSATIONS = TESTS / "stream" / "conversations"

ROW = re.compile(r"^\| (?!---)(?!case )(.*) \|$", re.MULTILINE)
RESULT = re.compile(r"(same|different|not applicable|not yet)\b")


def names_in(folder: Path) -> set[str]:
    """The test functions of all files under the folder."""
    return {
        node.name
        for file in folder.rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name[:5] == "test_"
    }


NAMED = set(re.findall(r"`(test_\w+)`", PAGE))


def test_every_test_that_the_page_names_exists() -> None:
    assert NAMED - names_in(TESTS) == set()


def test_the_page_names_every_test_of_this_folder() -> None:
    own = {name for name in globals() if name.startswith("test_")}
    assert names_in(Path(__file__).parent) - own - NAMED == set()


def test_every_conversation_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`(\w+\.txt)`", PAGE))
    assert named
    assert {name for name in named if not (CONVERSATIONS / name).exists()} == set()


def test_every_case_has_a_result_and_a_test_or_a_reason() -> None:
    rows = [row.split(" | ") for row in ROW.findall(PAGE)]
    assert len(rows) > 100
    for row in rows:
        assert len(row) == 3, row
        _, tests, result = row
        assert RESULT.match(result), row
        assert "`" in tests or not result.startswith(("same", "different")), row
        assert result.startswith("same") or ": " in result, f"why? {row}"
