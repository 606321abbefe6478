"""The ext_proc protocol, sans-IO: messages in, commands out."""

from extproc.stream.events import (
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
    Request,
    Send,
)
from extproc.stream.machine import Stream, StreamSettings
from extproc.stream.messages import parse_request

__all__ = [
    "AnswerBody",
    "Answered",
    "Ask",
    "BodyMode",
    "BodyRewriter",
    "Command",
    "Finish",
    "Pick",
    "Refusal",
    "Reply",
    "Request",
    "Send",
    "Stream",
    "StreamSettings",
    "parse_request",
]
