"""Conversations between a proxy, a `Stream` and its shell, as text.

A file has the theme in `#` lines, then lines of five kinds. What is said to the stream:

    settings NAME=VALUE...                 of `StreamSettings`
    modes REQUEST RESPONSE [early]         announced on the first message; without: an old proxy
    > PART ARGUMENTS...                    a message of the proxy
    = ANSWER ARGUMENTS...                  what the shell calls

and what comes of it, in order:

    < PART ...                             an answer to the proxy
    ? METHOD PATH body subset pool         `Ask`
    ! ...                                  any other command

Words are quoted as in a shell. `x repeat=1000` is a body of 1,000 x. A body line that has `cut`
stands for a body that may come in chunks: the conversation is replayed with that body cut at every
place, into bytes, and with its end mark on an empty chunk of its own; what comes of its chunks is
joined before it is compared. Run with REWRITE=1 in the environment to write the outcome into the
files.
"""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from google.protobuf.json_format import MessageToDict

from extproc.prompt import answer_renamer
from extproc.stream import (
    AnswerBody,
    Answered,
    Ask,
    BodyMode,
    BodyRewriter,
    Command,
    Finish,
    Pick,
    Refusal,
    Reply,
    Send,
    Stream,
    StreamSettings,
    parse_request,
)
from extproc.terms import Endpoint
from proto_gen.base_pb2 import HeaderValueOption
from proto_gen.ext_proc_pb2 import (
    CommonResponse,
    HeaderMutation,
    HttpHeaders,
    ProcessingRequest,
    ProcessingResponse,
)

Chunking = Callable[[bytes], list[bytes]]


def whole(body: bytes) -> list[bytes]:
    """Not cut."""
    return [body]


def chunkings(longest: int) -> Iterator[Chunking]:
    """Every cut in two, then bytes, then with an empty chunk at the end."""
    for at in range(1, longest):
        yield lambda body, at=at: [body[:at], body[at:]] if at < len(body) else [body]
    yield lambda body: [body[at : at + 1] for at in range(len(body))] or [b""]
    yield lambda body: [body, b""]


@dataclass
class _Words:
    """A line's words: flags and positions in order, options by name."""

    plain: list[str]
    options: dict[str, str]

    @classmethod
    def of(cls, line: str) -> "_Words":
        plain: list[str] = []
        options: dict[str, str] = {}
        for word in shlex.split(line):
            name, sign, value = word.partition("=")
            if sign and name.replace("-", "").replace("_", "").replace(":", "").isalnum():
                options[name] = value
            else:
                plain.append(word)
        return cls(plain, options)

    def flag(self, name: str) -> bool:
        if name in self.plain:
            self.plain.remove(name)
            return True
        return False


class Conversation:
    """A conversation from a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = path.read_text().splitlines()
        self.inputs = [line for line in self.lines if line[:1] not in ("<", "?", "!")]

    def longest_cut(self) -> int:
        """Bytes of the longest body that may be cut; 0 if there is none."""
        cuts = [
            len(_body(words))
            for line in self.inputs
            if line.startswith("> ") and (words := _Words.of(line[2:])).flag("cut")
        ]
        return max(cuts, default=0)

    def play(self, chunking: Chunking) -> list[str]:
        """The file's lines as they would be if what happened had been expected."""
        return _Player(chunking).play(self.inputs)


class _Player:
    def __init__(self, chunking: Chunking) -> None:
        self._chunking = chunking
        self._settings = StreamSettings()
        self._modes: tuple[BodyMode, BodyMode, bool] | None = None
        self._stream: Stream | None = None

    def play(self, inputs: list[str]) -> list[str]:
        lines: list[str] = []
        for line in inputs:
            lines.append(line)
            verb, _, rest = line.partition(" ")
            words = _Words.of(rest) if verb in ("settings", "modes", ">", "=") else None
            match verb:
                case "settings":
                    assert words
                    self._settings = StreamSettings(**_settings(words.options))
                case "modes":
                    assert words
                    early = words.flag("early")
                    request, response = words.plain
                    self._modes = (BodyMode[request], BodyMode[response], early)
                case ">":
                    assert words
                    lines += _joined(
                        command
                        for message in self._messages(words)
                        for command in self._open().receive(message)
                    )
                case "=":
                    assert words
                    lines += _joined(_say(self._open(), words))
        return lines

    def _open(self) -> Stream:
        if self._stream is None:
            self._stream = Stream(self._settings)
        return self._stream

    def _messages(self, words: _Words) -> Iterator[ProcessingRequest]:
        part = words.plain.pop(0)
        bodies = [b""]
        if part.endswith("_body"):
            cut = words.flag("cut")
            bodies = self._chunking(_body(words)) if cut else [_body(words)]
        end = words.flag("end")
        for place, body in enumerate(bodies):
            message = ProcessingRequest()
            if self._stream is None and self._modes is not None:
                request, response, early = self._modes
                message.protocol_config.request_body_mode = request.value
                message.protocol_config.response_body_mode = response.value
                message.protocol_config.send_body_without_waiting_for_header_response = early
            last = end and place == len(bodies) - 1
            _fill(message, part, words, body, last)
            # As bytes, and back: what goes in has been on the wire.
            yield parse_request(message.SerializeToString())


def _settings(options: dict[str, str]) -> dict[str, object]:
    kinds = {field.name: field.type for field in fields(StreamSettings)}
    return {
        name: BodyMode[value] if kinds[name] is BodyMode else json.loads(value)
        for name, value in options.items()
    }


def _body(words: _Words) -> bytes:
    text = next(word for word in words.plain if word not in ("end", "cut", "observed"))
    if text.endswith("_body"):
        text = words.plain[1]
    return (text * int(words.options.get("repeat", 1))).encode()


def _fill(message: ProcessingRequest, part: str, words: _Words, body: bytes, end: bool) -> None:
    options = dict(words.options)
    _fill_metadata(message, options)
    message.observability_mode = "observed" in words.plain
    match part:
        case "request_headers":
            method, path = words.plain[:2]
            options = {":method": method, ":path": path} | options
            _fill_headers(message.request_headers, options)
            message.request_headers.end_of_stream = end
        case "response_headers":
            options = {":status": words.plain[0]} | options if words.plain else options
            _fill_headers(message.response_headers, options)
            message.response_headers.end_of_stream = end
        case "request_body":
            message.request_body.body = body
            message.request_body.end_of_stream = end
        case "response_body":
            message.response_body.body = body
            message.response_body.end_of_stream = end
        case "request_trailers":
            message.request_trailers.SetInParent()
        case "response_trailers":
            message.response_trailers.SetInParent()
        case _:
            assert part == "nothing", part


def _fill_headers(target: HttpHeaders, headers: dict[str, str]) -> None:
    for name, value in headers.items():
        target.headers.headers.add(key=name, raw_value=value.encode())


def _fill_metadata(message: ProcessingRequest, options: dict[str, str]) -> None:
    namespaces = message.metadata_context.filter_metadata
    if (subset := options.pop("subset", None)) is not None:
        kind, _, text = subset.partition(":")
        hint = namespaces["envoy.lb.subset_hint"].fields["x-gateway-destination-endpoint-subset"]
        if kind == "list":
            hint.list_value.SetInParent()
            hint.list_value.extend(text.split(",") if text else [])
        elif kind == "string":
            hint.string_value = text
        else:
            hint.number_value = float(text)
    if (served := options.pop("served", None)) is not None:
        fields_ = namespaces["envoy.lb"].fields
        fields_["x-gateway-destination-endpoint-served"].string_value = served
    if (pool := options.pop("pool", None)) is not None:
        namespaces["homing"].fields["pool"].string_value = pool
    for option, attribute in (
        ("route_metadata", "xds.route_metadata"),
        ("upstream", "upstream.address"),
        ("method", "request.method"),
        ("path", "request.path"),
    ):
        if (value := options.pop(option, None)) is not None:
            fields_ = message.attributes["envoy.filters.http.ext_proc"].fields
            fields_[attribute].string_value = value


def _say(stream: Stream, words: _Words) -> list[Command]:
    verb, *plain = words.plain
    options = words.options
    match verb:
        case "pick":
            watch = "watch" in plain

            def named(kind: str) -> dict[str, str]:
                return {
                    name.removeprefix(kind): value
                    for name, value in options.items()
                    if name.startswith(kind)
                }

            pick = Pick(
                endpoints=tuple(Endpoint(word) for word in plain if word != "watch"),
                body=options["body"].encode() if "body" in options else None,
                headers=named("header:"),
                metadata=named("metadata:"),
                answer_headers=named("answer:"),
                watch_answer=watch,
                rewrite_answer=_renaming(options["rename"]) if "rename" in options else None,
            )
            return stream.picked(pick)
        case "refuse":
            retry = options.get("retry")
            status, code, message = plain
            return stream.refused(
                Refusal(
                    int(status),
                    code,
                    message,
                    options.get("reason", ""),
                    int(retry) if retry else None,
                )
            )
        case "reply":
            name, body = plain
            return stream.replied(Reply(name, body.encode()))
        case "pass_on":
            return stream.pass_on()
        case _:
            assert verb == "deadline", verb
            return stream.deadline()


def _renaming(name: str) -> Callable[[Mapping[str, str]], BodyRewriter | None]:
    return lambda headers: answer_renamer(headers["content-type"], name)


# --- what comes of it, as lines ---


@dataclass
class _Outcome:
    """A line: words before a body's data, the data, words after. Chunks of one body are joined."""

    head: str
    data: bytes | None = None
    tail: str = ""

    def joins(self, other: "_Outcome") -> bool:
        return (
            self.head == other.head
            and (self.data is None) == (other.data is None)
            and not self.tail
            and "_body" in self.head
        )

    def __str__(self) -> str:
        data = [] if self.data is None else [_quoted(self.data)]
        return " ".join([self.head, *data, *([self.tail] if self.tail else [])])


def _joined(commands: Iterator[Command] | list[Command]) -> list[str]:
    outcomes: list[_Outcome] = []
    for command in commands:
        new = _outcome(command)
        for earlier in outcomes:
            if earlier.joins(new):
                earlier.data = None if new.data is None else (earlier.data or b"") + new.data
                earlier.tail = new.tail
                break
        else:
            outcomes.append(new)
    return [str(outcome) for outcome in outcomes]


def _outcome(command: Command) -> _Outcome:
    match command:
        case Send():
            return _answer(ProcessingResponse.FromString(command.message))
        case Ask(request):
            body = "unseen" if request.body is None else _quoted(request.body)
            line = f"? {request.method} {request.path} body {body}"
            if request.subset is not None:
                line += f" subset {json.dumps(request.subset)}"
            if request.pool is not None:
                line += f" pool {request.pool}"
            return _Outcome(line)
        case Answered():
            return _Outcome(f"! answered {command.status} served={command.served}")
        case AnswerBody():
            return _Outcome("! answer_body", command.data, "last" if command.last else "")
        case Finish():
            return _Outcome(f"! finish {'abort' if command.abort else 'clean'} {command.reason}")


def _answer(response: ProcessingResponse) -> _Outcome:
    part = response.WhichOneof("response")
    assert part is not None, "an answer must have one part set"
    said: list[str] = []
    data: bytes | None = None
    tail = ""
    if part == "immediate_response":
        immediate = response.immediate_response
        said += [str(immediate.status.code), *_mutation(immediate.headers)]
        said += [immediate.details, immediate.body.decode()]
    elif part.endswith("_trailers"):
        said += _mutation(getattr(response, part).header_mutation)
    else:
        common: CommonResponse = getattr(response, part).response
        assert common.status == CommonResponse.CONTINUE
        said += _mutation(common.header_mutation)
        if common.clear_route_cache:
            said.append("clear_route_cache")
        match common.body_mutation.WhichOneof("mutation"):
            case "body":
                said.append(f"replace {_quoted(common.body_mutation.body)}")
            case "clear_body":
                said.append("replace ''")
            case "streamed_response":
                streamed = common.body_mutation.streamed_response
                data = streamed.body
                tail = "end" if streamed.end_of_stream else ""
    if response.HasField("dynamic_metadata"):
        metadata = MessageToDict(response.dynamic_metadata)
        said.append(f"metadata {json.dumps(metadata, sort_keys=True)}")
    if response.HasField("mode_override"):
        mode = response.mode_override
        said.append(
            f"override {BodyMode(mode.request_body_mode).name}"
            f"/{BodyMode(mode.response_body_mode).name}"
        )
    return _Outcome(" ".join([f"< {part}", *said]), data, tail)


def _mutation(mutation: HeaderMutation) -> list[str]:
    said = []
    for option in mutation.set_headers:
        assert option.append_action == HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
        said.append(f"set {option.header.key}={option.header.raw_value.decode()}")
    return [*said, *(f"remove {name}" for name in mutation.remove_headers)]


def _quoted(data: bytes) -> str:
    if len(data) > 80 and data == data[:1] * len(data):
        return f"{data[:1].decode()} repeat={len(data)}"
    return shlex.quote(data.decode())
