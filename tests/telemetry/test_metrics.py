import re

from extproc.telemetry import Metrics
from tests.telemetry.reference import PAGE, page


def test_the_page_lists_every_metric() -> None:
    assert PAGE.read_text() == page(), "run python -m tests.telemetry.reference"
    assert page().count("\n| `") > 10


def test_every_name_has_the_prefix_and_its_base_unit() -> None:
    for family in Metrics().registry.collect():
        assert re.fullmatch(r"homing_[a-z_]+", family.name)
        assert family.documentation.endswith("."), family.name
        assert not re.search(r"_(ms|us|kb|mb)\b", family.name), family.name
