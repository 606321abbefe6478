import itertools
import json
import re

import pytest
from ruamel.yaml import YAML

from extproc.cli import main
from extproc.config import Config
from tests.config.cases import findings
from tests.config.reference import PAGE, fields, page_with, table

EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
DISCOVERY = re.findall(
    r"```yaml\n(pools:.*?)```", PAGE.with_name("discovery.md").read_text(), re.DOTALL
)


def test_the_page_has_every_field_with_its_default() -> None:
    page = PAGE.read_text()
    assert page_with(table(), page) == page, "run python -m tests.config.reference"


def test_every_field_says_what_it_means() -> None:
    silent = [path for path, field in fields() if not (field.description or "").strip()]
    assert silent == []


@pytest.mark.parametrize("example", DISCOVERY, ids=itertools.count())
def test_the_examples_of_discoveries_are_right(
    example: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = example.replace("models/qwen3", "tok").replace("admin.conf", "ca.crt")
    assert findings(text, tmp_path_factory.mktemp("example")) == ""


@pytest.mark.parametrize(
    "example", EXAMPLES, ids=["smallest", "everything", "warm", "events", "hub"]
)
def test_the_examples_of_the_page_are_right(
    example: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = re.sub(r"models/[a-z0-9-]+\.jinja", "tok/tokenizer.json", example)
    text = re.sub(r"models/[a-z0-9]+", "tok", text)
    assert findings(text, tmp_path_factory.mktemp("example")) == ""


def test_every_field_is_in_an_example() -> None:
    examples = [YAML(typ="safe").load(example) for example in EXAMPLES + DISCOVERY]
    for path, _ in fields():
        seen = examples
        for part in path.split("."):
            key = part.removesuffix("[]")
            seen = [above[key] for above in seen if key in above]
            if part.endswith("[]"):
                seen = [item for items in seen for item in items]
        assert seen, f"{path} is in no example"


def test_the_schema_knows_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config-schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["properties"].keys() == Config.model_fields.keys()
    assert schema["additionalProperties"] is False
    described = [*schema["properties"].values()]
    described += [p for d in schema["$defs"].values() for p in d["properties"].values()]
    assert all("description" in field or "$ref" in field for field in described)
