# mypy: disable-error-code=type-arg
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Record(_message.Message):
    __slots__ = ("checksum", "batch")
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    checksum: bytes
    batch: bytes
    def __init__(self, checksum: _Optional[bytes] = ..., batch: _Optional[bytes] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("version", "instances", "tenants", "facts")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    version: int
    instances: _containers.RepeatedScalarFieldContainer[str]
    tenants: _containers.RepeatedScalarFieldContainer[str]
    facts: _containers.RepeatedCompositeFieldContainer[Fact]
    def __init__(self, version: _Optional[int] = ..., instances: _Optional[_Iterable[str]] = ..., tenants: _Optional[_Iterable[str]] = ..., facts: _Optional[_Iterable[_Union[Fact, _Mapping]]] = ...) -> None: ...

class Fact(_message.Message):
    __slots__ = ("instance", "held", "dropped", "cleared", "expired", "capacity", "joined", "left")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    CLEARED_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    instance: int
    held: Held
    dropped: Dropped
    cleared: Cleared
    expired: Expired
    capacity: Capacity
    joined: Joined
    left: Left
    def __init__(self, instance: _Optional[int] = ..., held: _Optional[_Union[Held, _Mapping]] = ..., dropped: _Optional[_Union[Dropped, _Mapping]] = ..., cleared: _Optional[_Union[Cleared, _Mapping]] = ..., expired: _Optional[_Union[Expired, _Mapping]] = ..., capacity: _Optional[_Union[Capacity, _Mapping]] = ..., joined: _Optional[_Union[Joined, _Mapping]] = ..., left: _Optional[_Union[Left, _Mapping]] = ...) -> None: ...

class Held(_message.Message):
    __slots__ = ("tier", "source", "parent", "keys", "tenant")
    TIER_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    tier: int
    source: int
    parent: int
    keys: bytes
    tenant: int
    def __init__(self, tier: _Optional[int] = ..., source: _Optional[int] = ..., parent: _Optional[int] = ..., keys: _Optional[bytes] = ..., tenant: _Optional[int] = ...) -> None: ...

class Dropped(_message.Message):
    __slots__ = ("tier", "source", "keys")
    TIER_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    tier: int
    source: int
    keys: bytes
    def __init__(self, tier: _Optional[int] = ..., source: _Optional[int] = ..., keys: _Optional[bytes] = ...) -> None: ...

class Cleared(_message.Message):
    __slots__ = ("source",)
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    source: int
    def __init__(self, source: _Optional[int] = ...) -> None: ...

class Expired(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: bytes
    def __init__(self, keys: _Optional[bytes] = ...) -> None: ...

class Capacity(_message.Message):
    __slots__ = ("tier", "blocks")
    TIER_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    tier: int
    blocks: int
    def __init__(self, tier: _Optional[int] = ..., blocks: _Optional[int] = ...) -> None: ...

class Joined(_message.Message):
    __slots__ = ("block_size", "endpoint")
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    block_size: int
    endpoint: str
    def __init__(self, block_size: _Optional[int] = ..., endpoint: _Optional[str] = ...) -> None: ...

class Left(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Pointer(_message.Message):
    __slots__ = ("checksum", "snapshot")
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    checksum: bytes
    snapshot: bytes
    def __init__(self, checksum: _Optional[bytes] = ..., snapshot: _Optional[bytes] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("version", "revision", "writer", "pieces", "total_bytes", "pieces_checksum", "writers")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    WRITER_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    PIECES_CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    WRITERS_FIELD_NUMBER: _ClassVar[int]
    version: int
    revision: int
    writer: int
    pieces: int
    total_bytes: int
    pieces_checksum: bytes
    writers: _containers.RepeatedCompositeFieldContainer[Writer]
    def __init__(self, version: _Optional[int] = ..., revision: _Optional[int] = ..., writer: _Optional[int] = ..., pieces: _Optional[int] = ..., total_bytes: _Optional[int] = ..., pieces_checksum: _Optional[bytes] = ..., writers: _Optional[_Iterable[_Union[Writer, _Mapping]]] = ...) -> None: ...

class Writer(_message.Message):
    __slots__ = ("id", "seq")
    ID_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    id: int
    seq: int
    def __init__(self, id: _Optional[int] = ..., seq: _Optional[int] = ...) -> None: ...

class Replica(_message.Message):
    __slots__ = ("version", "instances", "seen", "picks", "prefill_ms", "listing")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    PICKS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_MS_FIELD_NUMBER: _ClassVar[int]
    LISTING_FIELD_NUMBER: _ClassVar[int]
    version: int
    instances: _containers.RepeatedCompositeFieldContainer[InFlight]
    seen: _containers.RepeatedCompositeFieldContainer[Seen]
    picks: int
    prefill_ms: int
    listing: Listing
    def __init__(self, version: _Optional[int] = ..., instances: _Optional[_Iterable[_Union[InFlight, _Mapping]]] = ..., seen: _Optional[_Iterable[_Union[Seen, _Mapping]]] = ..., picks: _Optional[int] = ..., prefill_ms: _Optional[int] = ..., listing: _Optional[_Union[Listing, _Mapping]] = ...) -> None: ...

class Listing(_message.Message):
    __slots__ = ("instances",)
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    instances: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, instances: _Optional[_Iterable[str]] = ...) -> None: ...

class Seen(_message.Message):
    __slots__ = ("instance", "answers", "running", "waiting", "asleep", "started", "prompt_tokens", "cached_tokens", "requests", "block_size", "blocks", "prefills", "prefill_ms", "computed_tokens")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    ASLEEP_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PREFILLS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_MS_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    instance: str
    answers: bool
    running: int
    waiting: int
    asleep: bool
    started: float
    prompt_tokens: int
    cached_tokens: int
    requests: int
    block_size: int
    blocks: int
    prefills: int
    prefill_ms: int
    computed_tokens: int
    def __init__(self, instance: _Optional[str] = ..., answers: _Optional[bool] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., asleep: _Optional[bool] = ..., started: _Optional[float] = ..., prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., requests: _Optional[int] = ..., block_size: _Optional[int] = ..., blocks: _Optional[int] = ..., prefills: _Optional[int] = ..., prefill_ms: _Optional[int] = ..., computed_tokens: _Optional[int] = ...) -> None: ...

class InFlight(_message.Message):
    __slots__ = ("instance", "requests", "waiting_tokens")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    WAITING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    instance: str
    requests: int
    waiting_tokens: int
    def __init__(self, instance: _Optional[str] = ..., requests: _Optional[int] = ..., waiting_tokens: _Optional[int] = ...) -> None: ...
