"""Protobuf definitions as plain data, printable from a process of its own.

    python -m tests.proto_gen.describe MODULE... -- NAME...

imports the modules and prints, as JSON, what they define under these full names.
"""

import json
import sys
from importlib import import_module

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

Described = dict[str, dict[str, object]]


def describe(names: list[str]) -> Described:
    """Messages as `{field: …}`, enums as `{value: number}`, services as `{method: …}`; a name that
    is not defined is left out."""
    pool = descriptor_pool.Default()
    finders = (
        (pool.FindMessageTypeByName, _message),
        (pool.FindEnumTypeByName, _enum),
        (pool.FindServiceByName, _service),
    )
    described: Described = {}
    for name in names:
        for find, show in finders:
            try:
                described[name] = show(find(name))
            except KeyError:
                continue
    return described


def _message(message: Descriptor) -> dict[str, object]:
    return {field.name: _field(field) for field in message.fields}


def _field(field: FieldDescriptor) -> dict[str, object]:
    kind = field.message_type or field.enum_type
    return {
        "number": field.number,
        "type": field.type,
        "of": kind.full_name if kind else None,
        "repeated": field.is_repeated,
        "presence": field.has_presence,
        "oneof": field.containing_oneof.name if field.containing_oneof else None,
    }


def _enum(enum: EnumDescriptor) -> dict[str, object]:
    return {value.name: value.number for value in enum.values}


def _service(service: object) -> dict[str, object]:
    return {
        method.name: {
            "full_name": method.full_name,
            "input": method.input_type.full_name,
            "output": method.output_type.full_name,
            "client_streaming": method.client_streaming,
            "server_streaming": method.server_streaming,
        }
        for method in service.methods  # type: ignore[attr-defined]
    }


if __name__ == "__main__":
    split = sys.argv.index("--")
    for module in sys.argv[1:split]:
        import_module(module)
    json.dump(describe(sys.argv[split + 1 :]), sys.stdout)
