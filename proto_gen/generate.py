"""Regenerate the committed stubs: `python -m proto_gen.generate`.

The schemas import each other as `proto_gen/x.proto`, relative to the repository's root, so that
what protoc writes imports `proto_gen.x_pb2` and needs no patching.
"""

import sys
from importlib.resources import files
from pathlib import Path

HERE = Path(__file__).parent


def generate(into: Path) -> list[Path]:
    """Write `proto_gen/*_pb2.py` and `.pyi` under the directory `into`; return the files, sorted.

    Needs `grpcio-tools` (a development dependency). Raises RuntimeError if protoc refuses a schema.
    """
    from grpc_tools import protoc

    into.joinpath(HERE.name).mkdir(parents=True, exist_ok=True)
    schemas = sorted(f"{HERE.name}/{path.name}" for path in HERE.glob("*.proto"))
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={HERE.parent}",
            f"--proto_path={files('grpc_tools') / '_proto'}",
            f"--python_out={into}",
            f"--pyi_out={into}",
            *schemas,
        ]
    )
    if status != 0:
        raise RuntimeError(f"protoc ended with status {status}")
    written = sorted(into.joinpath(HERE.name).glob("*_pb2.py*"))
    for stub in written:
        if stub.suffix == ".pyi":
            # protoc writes bare `Mapping`, which strict typing refuses.
            stub.write_text(f"# mypy: disable-error-code=type-arg\n{stub.read_text()}")
    return written


if __name__ == "__main__":
    for written in generate(HERE.parent):
        sys.stdout.write(f"{written.relative_to(HERE.parent)}\n")
