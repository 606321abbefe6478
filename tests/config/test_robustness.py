import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.config import load_config
from extproc.errors import ConfigError
from tests.config.cases import findings
from tests.config.test_load import FULL

ODD = st.sampled_from([*"[]{}:,&*!|>%@`#?-'\"\n\t \x00\x85\ufeff", "<<: ", "---", "- ", "{}: "])


@st.composite
def edited(draw: st.DrawFn) -> str:
    """The full configuration with some characters cut out or put in."""
    text = FULL
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 12)))
        text = text[:start] + draw(ODD) + text[end:]
    return text


@given(st.one_of(edited(), st.text(max_size=60)))
def test_every_file_is_read_or_has_findings_with_lines(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    said = findings(text, tmp_path_factory.mktemp("case"))
    assert all(re.match(r"homing\.yaml:\d+: \S", line) for line in said.splitlines())


def test_a_file_nested_too_deeply_is_a_finding(tmp_path: Path) -> None:
    file = tmp_path / "homing.yaml"
    file.write_text("pools: " + "[" * 5_000 + "]" * 5_000)
    with pytest.raises(ConfigError, match="nested too deeply"):
        load_config(file)
