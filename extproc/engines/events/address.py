"""Where an engine publishes its KV-cache events."""

from dataclasses import dataclass

from extproc.terms import Endpoint


@dataclass(frozen=True, slots=True)
class Address:
    """ZeroMQ endpoints. replay: None where the engine keeps no history. topic: what it begins with.

    rank: of the data-parallel group; None for whichever speaks there.
    """

    events: str
    replay: str | None = None
    topic: str = ""
    rank: int | None = None

    @classmethod
    def beside(
        cls,
        endpoint: Endpoint,
        port: int,
        replay_port: int | None,
        topic: str = "",
        rank: int | None = None,
    ) -> "Address":
        """On the machine of an engine; each rank of a data-parallel group adds itself to the ports
        (vLLM's and SGLang's `offset_endpoint_port`)."""
        host = endpoint.rpartition(":")[0]
        add = rank or 0
        replay = None if replay_port is None else f"tcp://{host}:{replay_port + add}"
        return cls(f"tcp://{host}:{port + add}", replay, topic, rank)
