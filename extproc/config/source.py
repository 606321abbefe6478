"""YAML text to plain data, with the line of every key and item, and all findings at once."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode
from ruamel.yaml.reader import ReaderError

FieldPath: TypeAlias = tuple[str | int, ...]
"""Keys and indices from the top of the file: ("pools", 0, "name")."""


def spell_field(field: FieldPath) -> str:
    """As an operator writes it: `pools[0].name`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in field)
    return "".join(parts).lstrip(".")


UNREADABLE = object()
"""Stands in the data for what has a finding already."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. field: empty where the file itself is."""

    field: FieldPath
    what: str
    line: int | None = None
    """Counted from 1; None: the line of the field."""


@dataclass(slots=True)
class Source:
    """What a YAML file says. Sequences are tuples, so that strict types accept them.

    lines: for every field and item, and () for the file; counted from 1.
    """

    data: object = None
    lines: dict[FieldPath, int] = field(default_factory=lambda: {(): 1})
    findings: list[Finding] = field(default_factory=list)

    def line(self, path: FieldPath) -> int:
        """The line of the field, or of the nearest one around it that the file has."""
        while path not in self.lines:
            path = path[:-1]
        return self.lines[path]


def read_yaml(text: str) -> Source:
    """Parse one YAML 1.2 document. Never raises: what is wrong is in `findings`.

    A syntax error ends the reading, and leaves the data None. Anchors and aliases work; merge
    keys, tags of one's own and keys that are no strings are findings.
    """
    source = Source()
    parser = YAML(typ="safe", pure=True)
    try:
        root = parser.compose(text)
        if root is not None:
            source.data = _Builder(source, parser.constructor).build(root, ())
    except MarkedYAMLError as error:
        source.findings.append(_syntax_finding(error))
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"character U+{error.character:04X} is not allowed in YAML"
        source.findings.append(Finding((), what, line))
    except RecursionError:
        source.findings.append(Finding((), "nested too deeply", 1))
    return source


def _syntax_finding(error: MarkedYAMLError) -> Finding:
    problem, around = error.problem_mark, error.context_mark
    what = error.problem or "not YAML"
    if r"'\t'" in what:
        what = "a tab where spaces must be; YAML is indented with spaces only"
    elif around:
        what = f"{error.context} (from line {around.line + 1}): {what}"
    return Finding((), what, problem.line + 1 if problem else 1)


@dataclass(slots=True)
class _Builder:
    source: Source
    scalars: SafeConstructor
    open_nodes: set[int] = field(default_factory=set)

    def build(self, node: Node, path: FieldPath) -> object:
        self.source.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        if id(node) in self.open_nodes:
            self._found(path, "an alias to something around it", node)
            return UNREADABLE
        self.open_nodes.add(id(node))
        try:
            if isinstance(node, MappingNode):
                return dict(self._entries(node, path))
            return tuple(self.build(item, (*path, i)) for i, item in enumerate(node.value))
        finally:
            self.open_nodes.discard(id(node))

    def _entries(self, node: MappingNode, path: FieldPath) -> Iterator[tuple[str, object]]:
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                self._found(path, "merge keys (<<) are not supported; repeat the fields", key_node)
                continue
            key = key_node.value
            if not isinstance(key, str):
                self._found(path, "a key must be a plain word", key_node)
                continue
            if key in first:
                what = f"written twice; the first is in line {first[key]}"
                self._found((*path, key), what, key_node)
                continue
            first[key] = line
            self.source.lines[(*path, key)] = line
            yield key, self.build(value_node, (*path, key))

    def _scalar(self, node: ScalarNode, path: FieldPath) -> object:
        try:
            return self.scalars.construct_object(node)
        except (ConstructorError, ValueError):
            self._found(path, f"cannot be read as {node.tag}", node)
            return UNREADABLE

    def _found(self, path: FieldPath, what: str, node: Node) -> None:
        self.source.findings.append(Finding(path, what, node.start_mark.line + 1))
