"""An external processor that only answers: what the protocol costs without a pick.

    python benchmarks/_constant_picker.py ENDPOINT

Served as Homing serves, by the same gRPC on the same event loop, with one answer for all requests.
Prints the port that it listens on.
"""

import sys
from pathlib import Path
from typing import Any

import grpc
import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))

from extproc.serve.server import EXT_PROC
from extproc.stream import Pick, parse_request
from extproc.stream.messages import CONTINUE, PARTS, Part, build_picked, build_streamed
from extproc.terms import Endpoint

FULL_DUPLEX = 4
END = b"\x10\x01"


class Constant:
    """Every request goes to the same endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._pick = Pick((endpoint,))

    async def process(self, _: object, context: Any) -> None:
        """One stream, message by message; in full duplex the body is sent back at its end."""
        duplex = False
        chunks: list[bytes] = []
        while (message := await context.read()) is not grpc.aio.EOF:
            duplex = duplex or message.protocol_config.request_body_mode == FULL_DUPLEX
            part = PARTS[message.WhichOneof("request")]
            if part is not Part.REQUEST_BODY:
                if not (duplex and part is Part.REQUEST_HEADERS):
                    await context.write(CONTINUE[part])
            elif not duplex:
                await context.write(build_picked(part, self._pick, (), None))
            else:
                chunks.append(message.request_body.body)
                if message.request_body.end_of_stream:
                    await context.write(build_picked(Part.REQUEST_HEADERS, self._pick, (), None))
                    for chunk in chunks[:-1]:
                        await context.write(build_streamed(part, chunk, b""))
                    await context.write(build_streamed(part, chunks[-1], END))


async def serve(endpoint: Endpoint) -> None:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 << 20)])
    method = grpc.stream_stream_rpc_method_handler(
        Constant(endpoint).process, request_deserializer=parse_request
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(EXT_PROC, {"Process": method}),)
    )
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(Endpoint(sys.argv[1])))
