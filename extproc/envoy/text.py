"""Typed Envoy messages as the YAML that Envoy reads and people edit."""

from typing import Any

import yaml
from betterproto2 import Casing, Message, OutputFormat


def to_yaml(message: Message, comment: str = "") -> str:
    """Block-style YAML in Envoy's own field names; `comment` becomes lines with # above it."""
    fields = message.to_dict(output_format=OutputFormat.PROTO_JSON, casing=Casing.SNAKE)
    lines = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    return lines + yaml.dump(_plain(fields), sort_keys=False, allow_unicode=True, width=100)


def _plain(value: Any) -> Any:
    """Every list and dict a new object, or the dumper would write anchors for shared ones."""
    match value:
        case dict():
            return {key: _plain(inner) for key, inner in value.items()}
        case list():
            return [_plain(inner) for inner in value]
        case _:
            return value
