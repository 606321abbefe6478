"""Our subset against Envoy's own descriptors, as `xds-protos` ships them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor

from proto_gen import base_pb2, ext_proc_pb2, http_status_pb2, processing_mode_pb2
from tests.proto_gen.describe import Described, describe
from tests.proto_gen.referee import xds_protos

OURS = (base_pb2, ext_proc_pb2, http_status_pb2, processing_mode_pb2)

ENVOYS = (
    "envoy.service.ext_proc.v3.external_processor_pb2",
    "envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2",
)


def _messages(message: Descriptor) -> Iterator[str]:
    yield message.full_name
    for nested in message.nested_types:
        yield from _messages(nested)
    for enum in message.enum_types:
        yield enum.full_name


def _names() -> list[str]:
    names: list[str] = []
    for module in OURS:
        file = module.DESCRIPTOR
        names += [name for top in file.message_types_by_name.values() for name in _messages(top)]
        names += [enum.full_name for enum in file.enum_types_by_name.values()]
        names += [service.full_name for service in file.services_by_name.values()]
    return names


@pytest.fixture(scope="module")
def envoys() -> Described:
    # In a process of its own: protobuf's pool refuses a second definition of a name.
    done = subprocess.run(
        [sys.executable, "-m", "tests.proto_gen.describe", *ENVOYS, "--", *_names()],
        env=os.environ | {"PYTHONPATH": str(xds_protos())},
        capture_output=True,
        check=True,
        text=True,
    )
    described: Described = json.loads(done.stdout)
    return described


@pytest.mark.parametrize("name", _names())
def test_every_field_value_and_method_is_envoys(name: str, envoys: Described) -> None:
    ours = describe([name])[name]
    assert ours
    theirs = envoys[name]
    assert {member: theirs.get(member) for member in ours} == ours


def test_the_whole_service_is_compared() -> None:
    names = _names()
    assert "envoy.service.ext_proc.v3.ExternalProcessor" in names
    assert "envoy.service.ext_proc.v3.ProcessingRequest.AttributesEntry" in names
    assert len(names) >= 25


def test_the_method_is_the_one_that_envoy_calls() -> None:
    (method,) = ext_proc_pb2.DESCRIPTOR.services_by_name["ExternalProcessor"].methods
    assert method.full_name == "envoy.service.ext_proc.v3.ExternalProcessor.Process"
