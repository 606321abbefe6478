from pathlib import Path

import pytest

from extproc.config import load_config
from extproc.errors import ConfigError
from tests.config.cases import FOLDER, SEPARATOR, findings

CASES = sorted(FOLDER.glob("*.txt"))


def test_there_are_cases() -> None:
    assert len(CASES) >= 40


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_each_mistake_is_named_with_its_line_and_field(case: Path, tmp_path: Path) -> None:
    text, _, expected = case.read_text().rpartition(SEPARATOR)
    assert findings(text, tmp_path) == expected.rstrip("\n")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file"):
        load_config(tmp_path / "none.yaml")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)


def test_bytes_that_are_no_utf8_are_named_by_place(tmp_path: Path) -> None:
    file = tmp_path / "homing.yaml"
    file.write_bytes(b"listen: \xff\n")
    with pytest.raises(ConfigError, match="not UTF-8 from byte 8 on"):
        load_config(file)
