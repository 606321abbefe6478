"""What goes into a `Stream` and what comes out: plain data, no protobuf, no sockets."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, unique
from typing import Protocol, TypeAlias

from extproc.terms import Endpoint


@unique
class BodyMode(IntEnum):
    """Envoy's `ProcessingMode.BodySendMode`, by its numbers."""

    NONE = 0
    STREAMED = 1
    BUFFERED = 2
    BUFFERED_PARTIAL = 3
    FULL_DUPLEX_STREAMED = 4
    GRPC = 5


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request as far as it is known when it must be picked for.

    headers: names lower-case, pseudo headers included; a repeated name is joined by ",".
    body: the whole body; None where it was not (wholly) seen, b"" where it is empty.
    subset: the proxy's subset hint, entries as sent (`ip:port`, or an ip for all its ports);
        None where there is no hint, () where it is empty.
    pool: the pool that the operator's metadata names, None where it names none.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes | None
    subset: tuple[str, ...] | None = None
    pool: str | None = None


class BodyRewriter(Protocol):
    """Changes a body that passes in chunks."""

    @property
    def midway(self) -> bool:
        """Whether the next chunk must not go on as it is: it may begin inside what is replaced."""

    def feed(self, data: bytes) -> bytes:
        """What the next chunk becomes; never raises."""


@dataclass(frozen=True, slots=True)
class Pick:
    """The answer to `Ask`: endpoints in order of preference, at least one.

    body: the rewritten body, or None to forward the bytes that came.
    headers: further request headers to set (a model rewrite, the trace context).
    metadata: further dynamic metadata under `envoy.lb` (scores).
    answer_headers: response headers to set (how the request was placed).
    watch_answer: whether the response body is wanted.
    rewrite_answer: what changes the body of a successful answer, given its headers; None to leave
        it. Called only where the proxy shows that body.
    """

    endpoints: tuple[Endpoint, ...]
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    answer_headers: Mapping[str, str] = field(default_factory=dict)
    watch_answer: bool = False
    rewrite_answer: Callable[[Mapping[str, str]], BodyRewriter | None] | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """The other answer to `Ask`: an ImmediateResponse with an OpenAI-style JSON body."""

    status: int
    code: str
    message: str
    reason: str = ""
    """Sent as the header `x-homing-reason` on 429 and 503."""
    retry_after_s: int | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A third answer to `Ask`: an ImmediateResponse 200 with this JSON, in an engine's stead.

    name: what it is, in a word, for the proxy's log.
    """

    name: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Ask:
    """The shell must answer with `Stream.picked`, `refused`, `replied` or `pass_on`."""

    request: Request


@dataclass(frozen=True, slots=True)
class Send:
    """Write this serialised `ProcessingResponse`, in order."""

    message: bytes


@dataclass(frozen=True, slots=True)
class Answered:
    """Response headers were seen. status: of the engine, 0 where there is none.

    served: the endpoint that really answered, where the proxy tells, else None.
    attempts: endpoints that the proxy tried, 0 where it does not tell.
    flags: what it has to say of the answer itself (`headers.RESPONSE_FLAGS`), None where it does
        not tell; 0: an engine gave it.
    """

    status: int
    headers: Mapping[str, str]
    served: str | None
    attempts: int = 0
    flags: int | None = None


@dataclass(frozen=True, slots=True)
class AnswerBody:
    """A piece of a watched response body; `last` ends it (a cut body ends with last=False)."""

    data: bytes
    last: bool


@dataclass(frozen=True, slots=True)
class Finish:
    """The shell ends the stream now: cleanly, or with a gRPC error where a clean close costs more.

    abort: end with a gRPC error (FULL_DUPLEX_STREAMED, where a clean close sends an empty body on).
    reason: for the counter and the log.
    """

    abort: bool
    reason: str


Command: TypeAlias = Ask | Send | Answered | AnswerBody | Finish
