"""Errors, named by who is at fault.

HomingError
├── ConfigError     the operator: file, line, field and what would be right
├── BadRequest      the client: answered with a status and an OpenAI-style body
├── Unroutable      nobody: this prompt cannot be looked up; routed by load, counted
├── ModelNotReady   nobody: a model's files cannot be had now; tried again
├── NoEndpoint      nobody: no endpoint is eligible; answered with 503
└── PeerViolation   Envoy, an engine or etcd broke its protocol
"""


class HomingError(Exception):
    """Base of all errors that Homing raises on purpose."""


class ConfigError(HomingError):
    """The configuration is wrong. The message has one line a finding: `file:line: field: what`."""


class BadRequest(HomingError):
    """A body that no engine would accept (PROTOCOLS: 400 rule).

    path: where in the JSON body, such as `messages[2].content`, or "" for the body itself.
    """

    status = 400
    code = "invalid_request"

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


class Unroutable(HomingError):
    """The prompt's tokens cannot be known, so the request is routed by load.

    reason: a short snake_case word for the counter's label, such as `unknown_model`.
    detail: for the log, never any text of the body.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class PreviousResponse(Unroutable):
    """The conversation is in the engine that answered `response_id`."""

    def __init__(self, response_id: str) -> None:
        super().__init__("previous_response")
        self.response_id = response_id


class ModelNotReady(HomingError):
    """A model's files cannot be had now. Until they can, its requests are routed by load."""


class NoEndpoint(HomingError):
    """No endpoint is eligible: none is listed, or the subset hint leaves none; a 503."""

    status = 503
    code = "no_endpoint"


class Saturated(HomingError):
    """A request would wait for too long at the best instance there is; a 429.

    retry_after_s: whole seconds after which the wait should have passed.
    """

    status = 429
    code = "saturated"

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NoRoom(Saturated):
    """A new conversation would push those that are going on out of the caches; a 429."""

    code = "no_room"


class PeerViolation(HomingError):
    """The other side of a protocol sent what the protocol forbids."""
