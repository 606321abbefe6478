"""The tables of docs/configuration.md, from the models. `python -m tests.config.reference` writes.

Between the markers of the page; everything around them is written by hand.
"""

from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from extproc.config import Config

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
BEGIN = "<!-- written by python -m tests.config.reference -->\n"
END = "<!-- end -->\n"


def fields(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field with its path, sections before what is in them: `pools[].models[].name`.

    Where there are several sections to choose from, what they share is that of the first.
    """
    for name, field in section.model_fields.items():
        path = f"{prefix}{name}"
        yield path, field
        found: dict[str, FieldInfo] = {}
        for inner, many in _sections_in(field.annotation):
            for inside, its in fields(inner, f"{path}[]." if many else f"{path}."):
                found.setdefault(inside, its)
        yield from found.items()


def table() -> str:
    """All fields as one Markdown table."""
    rows = ["| field | default | meaning |", "|---|---|---|"]
    rows += [f"| `{path}` | {_default(field)} | {_meaning(field)} |" for path, field in fields()]
    return "\n".join(rows) + "\n"


def page_with(table: str, page: str) -> str:
    """The page with this table in the place of its own."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def _sections_in(annotation: Any, many: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    """The sections that a field may have, and whether it has a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, many
        return
    for part in get_args(annotation):
        yield from _sections_in(part, many or get_origin(annotation) is tuple)


def _default(field: FieldInfo) -> str:
    default = field.default
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, BaseModel) or default in (None, ()):
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, int | float):
        return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"
    return f"`{default}`"


def _meaning(field: FieldInfo) -> str:
    said = " ".join((field.description or "").split())
    choices = [choice for choice in get_args(field.annotation) if choice is not NoneType]
    if get_origin(field.annotation) is Literal and len(choices) > 1:
        said += f" One of {', '.join(f'`{choice}`' for choice in choices)}."
    return said


if __name__ == "__main__":
    PAGE.write_text(page_with(table(), PAGE.read_text()))
