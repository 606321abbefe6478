"""The committed stubs are what the schemas generate."""

import re
import tomllib
from pathlib import Path

from proto_gen.generate import HERE, generate

# The compiler writes its version into each stub; all else must be equal.
_COMPILER = re.compile(r"# Protobuf Python Version: [\d.]+|Domain\.PUBLIC,\s+\d+,\s+\d+,\s+\d+,")


def _stubs(directory: Path) -> dict[str, str]:
    return {path.name: _COMPILER.sub("", path.read_text()) for path in directory.glob("*_pb2.py*")}


def test_committed_stubs_equal_a_fresh_generation(tmp_path: Path) -> None:
    written = generate(tmp_path)
    assert {path.name for path in written} >= {"ext_proc_pb2.py", "ext_proc_pb2.pyi"}
    assert _stubs(HERE) == _stubs(tmp_path / HERE.name)


def test_the_protobuf_that_the_stubs_need_is_demanded() -> None:
    """Stubs refuse a protobuf that is older than the compiler that wrote them."""
    project = tomllib.loads(HERE.parent.joinpath("pyproject.toml").read_text())["project"]
    (demanded,) = (
        found[1]
        for wanted in project["dependencies"]
        if (found := re.fullmatch(r"protobuf>=([\d.]+)", wanted))
    )
    written = re.search(
        r"Protobuf Python Version: ([\d.]+)", (HERE / "ext_proc_pb2.py").read_text()
    )
    assert written is not None
    assert _version(demanded) >= _version(written[1])


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split("."))
