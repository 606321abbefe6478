"""A configuration file to a `Config`, or to everything that is wrong with it."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from extproc.config.checks import check
from extproc.config.model import Config
from extproc.config.source import UNREADABLE, FieldPath, Finding, Source, read_yaml, spell_field
from extproc.errors import ConfigError

_Section = TypeVar("_Section", bound=BaseModel)


def load_config(path: Path) -> Config:
    """A whole configuration, as `load_file` reads it."""
    return load_file(path, Config, check)


def load_file(
    path: Path, section: type[_Section], check: Callable[[_Section], Iterable[Finding]]
) -> _Section:
    """Read, type and check a file of this form. Paths in it are relative to its folder.

    Raises ConfigError with one line a finding, in the order of the file:
    `homing.yaml:14: pools[0].instances[2].endpoint: "10.0.0.7" has no port; write …`.
    Relations between fields are checked once every field is right by itself.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 from byte {error.start} on") from error
    source = read_yaml(text)
    read, findings = _typed(source, path.parent, section)
    if read is not None:
        findings = list(check(read))
    findings = [*source.findings, *findings]
    if findings:
        raise ConfigError(_report(path, source, findings))
    assert read is not None
    return read


def _typed(
    source: Source, folder: Path, section: type[_Section]
) -> tuple[_Section | None, list[Finding]]:
    if source.data is None and source.findings:
        return None, []
    data = {} if source.data is None else source.data
    try:
        return section.model_validate(data, context={"folder": folder}), []
    except ValidationError as error:
        details = error.errors(include_url=False)
        return None, [_finding(detail, data, section) for detail in details if not _is_echo(detail)]


def _is_echo(error: ErrorDetails) -> bool:
    """Whether the error only follows from another finding.

    pydantic calls a list too short when it left out the items that are wrong.
    """
    value = error["input"]
    return value is UNREADABLE or (error["type"] == "too_short" and bool(value))


def _report(path: Path, source: Source, findings: list[Finding]) -> str:
    lines = [(finding.line or source.line(finding.field), finding) for finding in findings]
    lines.sort(key=lambda pair: pair[0])
    return "\n".join(f"{path}:{line}: {_sentence(finding)}" for line, finding in lines)


def _sentence(finding: Finding) -> str:
    said = f"{spell_field(finding.field)}: {finding.what}" if finding.field else finding.what
    # What the file says is quoted, and may have line ends or worse: a finding is one line.
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in said)


def _finding(error: ErrorDetails, data: object, section: type[BaseModel]) -> Finding:
    field = _field_path(error["loc"], data)
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        field = (*field, "kind")
    return Finding(field, _words(error, field, section))


def _field_path(loc: tuple[int | str, ...], data: Any) -> FieldPath:
    """pydantic's location without what the file does not have: the tags of unions."""
    path: list[int | str] = []
    for position, part in enumerate(loc):
        present = (isinstance(data, dict) and part in data) or isinstance(data, tuple)
        if present:
            data = data[part]
        missing = position == len(loc) - 1 and isinstance(data, dict)
        if present or missing:
            path.append(part)
    return tuple(path)


def _words(error: ErrorDetails, field: FieldPath, section: type[BaseModel]) -> str:
    """The finding in the operator's words; pydantic's own where there are none here."""
    context = error.get("ctx", {})
    found = _shown(error["input"])
    if error["type"] == "missing":
        return "is missing"
    if error["input"] is None:
        return "has no value; write one, or leave the key out"
    match error["type"]:
        case "extra_forbidden":
            return _unknown_key(section, field)
        case "value_error":
            return str(context["error"])
        case "string_type":
            return f"must be text, not {found}; quote it if it is meant as text"
        case "int_type" | "int_from_float":
            return f"must be a whole number, not {found}"
        case "float_type":
            return f"must be a number, not {found}"
        case "tuple_type":
            return f"must be a list, not {found}"
        case "model_type":
            return f"must be a mapping with {_quoted(_keys_at(section, field))}, not {found}"
        case "is_instance_of" | "path_type":
            return f"must be a path, not {found}"
        case "greater_than_equal":
            return f"must be at least {_bound(context['ge'])}, not {found}"
        case "greater_than":
            return f"must be more than {_bound(context['gt'])}, not {found}"
        case "less_than_equal":
            return f"must be at most {_bound(context['le'])}, not {found}"
        case "finite_number":
            return f"must be a finite number, not {found}"
        case "too_short" | "string_too_short":
            return "must not be empty"
        case "too_long":
            return f"must have at most {_bound(context['max_length'])} entries"
        case "union_tag_not_found":
            return "is missing"
        case "union_tag_invalid":
            expected = context["expected_tags"].replace("'", '"').replace(", ", " or ")
            return f"must be {expected}, not {_shown(context['tag'])}"
        case "literal_error":
            expected = context["expected"].replace("'", '"')
            if keys := _keys_at(section, field):
                expected += f", or a mapping with {_quoted(keys)}"
            return f"must be {expected}, not {found}"
        case _:
            return f"{error['msg']}, not {found}"


def _bound(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else f"{value:,}"


def _shown(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return f'"{value}"' if len(value) <= 60 else f'"{value[:57]}..."'
        case int() | float():
            return str(value)
        case dict():
            return "a mapping"
        case tuple():
            return "a list"
        case _:
            return f"a {type(value).__name__}"


def _unknown_key(section: type[BaseModel], field: FieldPath) -> str:
    known = _keys_at(section, field[:-1])
    if field[-1] in known:
        return "goes with another kind"
    close = get_close_matches(str(field[-1]), known, n=1)
    if close:
        return f'unknown key; did you mean "{close[0]}"?'
    return f"unknown key; known here: {_quoted(known)}"


def _quoted(words: list[str]) -> str:
    return ", ".join(f'"{word}"' for word in words)


def _keys_at(section: type[BaseModel], field: FieldPath) -> list[str]:
    """The keys that the section at this path knows."""
    sections = [section]
    for part in field:
        if isinstance(part, str):
            sections = [
                inner
                for outer in sections
                if part in outer.model_fields
                for inner in _sections_in(outer.model_fields[part].annotation)
            ]
    return list(dict.fromkeys(key for inner in sections for key in inner.model_fields))


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (tuple, Union, UnionType, Annotated):
        return [inner for part in get_args(annotation) for inner in _sections_in(part)]
    return []
