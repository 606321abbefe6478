"""The configuration as frozen, typed values. The docstrings below are its reference manual:
`docs/configuration.md` and the JSON schema are made from them."""

import re
from pathlib import Path
from typing import Annotated, Literal, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
)

from extproc.config.addresses import parse_endpoint, parse_listen, parse_peer, parse_service
from extproc.terms import Endpoint, InstanceId

KIB = 1024
MIB = 1024 * KIB


class Section(BaseModel):
    """A mapping of the file: immutable, no unknown keys, no silent conversions of types."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


def _relative_to_file(value: object, info: ValidationInfo) -> object:
    """Paths are relative to the file that names them: its folder is the validation context."""
    if not isinstance(value, str):
        return value
    folder: Path = info.context["folder"] if info.context else Path()
    return folder / value


def _checked_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", value):
        raise ValueError(f'"{value}" must be 1 to 63 letters, digits, ".", "_" and "-"')
    return value


def _checked_zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        raise ValueError(f'"{value}" is no time zone; write one such as Europe/Berlin') from None
    return value


def _checked_metrics_url(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", value):
        raise ValueError(f'"{value}" must be a URL, such as http://10.0.0.7:8000/metrics')
    return value


def _checked_url(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/]+", value):
        raise ValueError(f'"{value}" must be http://host:port, or https:// for TLS')
    return value


def _checked_prefix(value: str) -> str:
    if not re.fullmatch(r"(/[A-Za-z0-9._-]{1,63}){1,8}", value):
        raise ValueError(f'"{value}" must be plain words with a slash before each, as /homing')
    return value


Name: TypeAlias = Annotated[str, AfterValidator(_checked_name)]
"""Safe as a metric label, an etcd path segment and a cluster name."""

BodyModeName: TypeAlias = Literal[
    "NONE", "STREAMED", "BUFFERED", "BUFFERED_PARTIAL", "FULL_DUPLEX_STREAMED"
]

HeaderName: TypeAlias = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$", max_length=100)
]
PathPrefix: TypeAlias = Annotated[str, Field(pattern=r"^/.*[^/]$")]
TimeZone: TypeAlias = Annotated[str, AfterValidator(_checked_zone)]
ModelName: TypeAlias = Annotated[str, Field(min_length=1)]
EndpointAddress: TypeAlias = Annotated[Endpoint, AfterValidator(parse_endpoint)]
ListenAddress: TypeAlias = Annotated[str, AfterValidator(parse_listen)]
PeerAddress: TypeAlias = Annotated[str, AfterValidator(parse_peer)]
ServiceAddress: TypeAlias = Annotated[str, AfterValidator(parse_service)]
MetricsUrl: TypeAlias = Annotated[str, AfterValidator(_checked_metrics_url)]
FilePath: TypeAlias = Annotated[Path, BeforeValidator(_relative_to_file)]
Count: TypeAlias = Annotated[int, Field(ge=1)]
Port: TypeAlias = Annotated[int, Field(ge=1, le=65_535)]
ByteCount: TypeAlias = Annotated[int, Field(ge=1, le=1024 * MIB)]
"""gRPC and Envoy count sizes in 32 bits."""
Seconds: TypeAlias = Annotated[int, Field(ge=1, le=86_400)]
Milliseconds: TypeAlias = Annotated[int, Field(ge=1, le=600_000)]
Patience: TypeAlias = Annotated[float, Field(ge=0, le=86_400)]
"""Seconds; 0 is none."""


class HubFiles(Section):
    """The files of a model's tokenizer on a hub."""

    hub: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")]
    """The model's name there, such as `Qwen/Qwen3-8B`. Needs `homing[hub]`. The hub is that of
    `HF_ENDPOINT` in the environment, Hugging Face's if not set; `HF_TOKEN` opens gated models."""

    revision: Annotated[str, Field(pattern=r"^[\w./-]+$")] = "main"
    """A branch, a tag, or best a commit, which is the same tomorrow: the engines'."""

    cache: FilePath | None = None
    """Folder that keeps what was fetched; `HF_HUB_CACHE`, else `~/.cache/huggingface/hub`, if not
    given."""


def _kind_of_tokenizer(value: object) -> str:
    return "hub" if isinstance(value, dict | HubFiles) else "folder"


Tokenizer: TypeAlias = Annotated[
    Annotated[FilePath, Tag("folder")] | Annotated[HubFiles, Tag("hub")],
    Discriminator(_kind_of_tokenizer),
]


class Model(Section):
    """A model that the instances of a pool serve."""

    name: ModelName
    """The name in the request's `model` field; unique over all pools, aliases included."""

    aliases: tuple[ModelName, ...] = ()
    """Further names of the same model."""

    rewrite_aliases: bool = False
    """Whether a request that gives an alias is forwarded with `name` in its place, for engines that
    know no aliases; the answer gives the alias again where its body is shown (docs/rewrite.md)."""

    adapters: tuple[ModelName, ...] = ()
    """LoRA adapters of this model, by the names that requests give as their `model`. Each has
    blocks of its own."""

    tokenizer: Tokenizer
    """Folder with the model's `tokenizer.json` and `tokenizer_config.json`, as the engine uses
    them; or with Mistral's own `tekken.json` or `tokenizer.model.v3`. Or a mapping with `hub`:
    until the files are fetched, the model's requests are routed by load."""

    tokenizer_mode: Literal["auto", "hf", "mistral"] = "auto"
    """As the engine's (vLLM's `--tokenizer-mode`): `hf` reads `tokenizer.json`, `mistral` Mistral's
    own file, with `mistral-common`; `auto` the latter where it is the only one, or weights in
    Mistral's format (`consolidated*.safetensors`) are beside it."""

    chat_template: FilePath | None = None
    """Jinja file to render chats with, where the engine was given one; else the tokenizer's."""

    time_zone: TimeZone | None = None
    """The engine's time zone, such as `Europe/Berlin`, for templates that write the date; this
    process's if not given."""

    trust_request_template: bool = False
    """Whether a template that a request brings is rendered, in the sandbox: only where the engine
    does so too (vLLM's `--trust-request-chat-template`). Such a request is routed by load if not.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that a request may call it."""
        return (self.name, *self.aliases, *self.adapters)


class EventPorts(Section):
    """Where an engine publishes its KV-cache events, on its endpoint's machine."""

    port: Port = 5557
    """Port of its events (vLLM's and SGLang's `--kv-events-config`: `endpoint`)."""

    replay_port: Port | None = None
    """Port of their history (`replay_endpoint` there); without it, what is missed once is lost, and
    an engine that was there first is known only from then on."""


class Events(EventPorts):
    """KV-cache events: what the engines of a pool say of their own caches (docs/events.md)."""

    topic: str = ""
    """What the topics of the events begin with."""

    expire_s: Patience = 30.0
    """Seconds after an answer's end when what was expected of its instance, and not confirmed by
    events, is forgotten; only while the instance's events are complete."""

    cpu_price: Annotated[float, Field(ge=0, le=1)] = 0.25
    """What a token costs that an engine reads back from its CPU memory, where it offloads to that,
    in tokens that it computes: 0 is as good as on the GPU, 1 as if it had to be computed."""

    keep_report_mode: bool = False
    """Whether requests may have `vllm_xargs.kv_cache_report_mode`. With `full` an engine reports
    blocks as stored that are merely read, and their copies cannot be counted any more, so it is
    taken out of the bodies that are forwarded."""


class Instance(Section):
    """One engine replica: one KV cache."""

    endpoint: EndpointAddress
    """Where it listens: `ip:port` or `[ipv6]:port`."""

    name: Annotated[InstanceId, Field(min_length=1, max_length=256)] | None = None
    """What to call it in metrics, traces and tables; the endpoint if not given."""

    rank: Annotated[int, Field(ge=0)] | None = None
    """Which of the data-parallel ranks behind the endpoint it is: chosen by the request header
    `x-data-parallel-rank`. For engines that give one port to several ranks."""

    capacity_blocks: Count | None = None
    """Blocks that its KV cache holds, where its metrics do not say; the pool's number if not
    given."""

    metrics: MetricsUrl | None = None
    """Where its metrics are; `http://ENDPOINT/metrics` if not given."""

    events: EventPorts | None = None
    """Where its KV-cache events are, for engines that share a machine; the pool's ports if not
    given. Only where the pool has `events`."""

    @property
    def id(self) -> InstanceId:
        """Unique within the pool."""
        return self.name or InstanceId(self.place)

    @property
    def place(self) -> str:
        """The endpoint, and the rank behind it: `10.0.0.7:8000/1`."""
        return self.endpoint if self.rank is None else f"{self.endpoint}/{self.rank}"


class Scraping(Section):
    """How often the metrics of engines are read (docs/engines.md)."""

    busy_ms: Milliseconds = 200
    """Time between two looks at an instance where requests are in flight. Unknown after ten."""

    idle_ms: Milliseconds = 2_000
    """The same where none are. Unknown after three."""


class FileDiscovery(Section):
    """Instances from a file that something else writes."""

    kind: Literal["file"]
    """Where instances come from: `file`, `dns`, `kubernetes`, `etcd`."""

    path: FilePath
    """`file`: YAML or JSON with a list `instances`, as in this file, each with a `state` besides
    (`starting`, `ready` or `draining`). Looked at every second."""


class DnsDiscovery(Section):
    """Instances from the addresses of a name."""

    kind: Literal["dns"]
    """Where instances come from: `file`, `dns`, `kubernetes`, `etcd`."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """`dns`: the name to ask for, such as `engines.llm.svc.cluster.local`."""

    records: Literal["A", "AAAA", "SRV"] = "A"
    """`dns`: which records. `SRV` brings the ports with it."""

    port: Port | None = None
    """`dns`: the engines' port; needed where the records have none."""

    every_s: Annotated[float, Field(gt=0, le=3600)] = 5.0
    """`dns`: time between two questions."""

    linger_s: Patience = 30.0
    """`dns`: how long an address that is not in the answers any more is kept, without requests,
    before what it holds is forgotten."""

    nameservers: tuple[EndpointAddress, ...] = ()
    """`dns`: whom to ask, as `ip:port`; those of /etc/resolv.conf if not given."""


class KubernetesDiscovery(Section):
    """Instances from the pods of a cluster; needs the extra `homing[kubernetes]`."""

    kind: Literal["kubernetes"]
    """Where instances come from: `file`, `dns`, `kubernetes`, `etcd`."""

    namespace: Name | None = None
    """`kubernetes`: where the pods are; Homing's own if not given."""

    pool: Name | None = None
    """`kubernetes`: the InferencePool (Gateway API Inference Extension, v1) whose pods these are,
    and which has their ports; or else `labels` and `ports` say it."""

    labels: dict[Annotated[str, Field(min_length=1)], str] = {}
    """`kubernetes`: labels that a pod must have."""

    ports: Annotated[tuple[Port, ...], Field(max_length=8)] = ()
    """`kubernetes`: ports of a pod's engines, one or up to eight."""

    ranks: Annotated[int, Field(ge=1, le=256)] | None = None
    """`kubernetes`: how many data-parallel ranks are behind each port, chosen by the request header
    `x-data-parallel-rank`; none if not given."""

    kubeconfig: FilePath | None = None
    """`kubernetes`: how to reach the API server from outside; as the pod's account if not given."""


class EtcdDiscovery(Section):
    """Instances that sidecars of engines register in the log's etcd (`homing register`)."""

    kind: Literal["etcd"]
    """Where instances come from: `file`, `dns`, `kubernetes`, `etcd`."""


Discovery: TypeAlias = Annotated[
    FileDiscovery | DnsDiscovery | KubernetesDiscovery | EtcdDiscovery,
    Field(discriminator="kind"),
]


def _word_or_section(value: object) -> str:
    return "section" if isinstance(value, dict | Section) else "word"


class Priority(Section):
    """Which header says how urgent a request is, and what it may say."""

    header: HeaderName
    """The request header; the gateway sets it, or takes a client's away."""

    weights: Annotated[
        dict[str, Annotated[float, Field(gt=0, le=1)]], Field(min_length=1, max_length=64)
    ]
    """What a second of a request's own wait counts, by the header's value: `{batch: 0.1}`. One
    without the header, or with another value, counts in full."""


class Admission(Section):
    """New conversations are refused with 429 while the live ones fill the pool's caches."""

    horizon_s: Seconds = 120
    """A conversation that is silent for longer is over."""


class Shed(Section):
    """When a request is refused with 429 and `retry-after`."""

    max_wait_s: Seconds
    """Refuse where a request would wait longer than this at the instance that is best for it; where
    `priority` gives it less weight, so much sooner."""


class WarmUp(Section):
    """The hottest shared prefixes are computed at a new instance before requests need them."""

    prefixes: Annotated[int, Field(ge=1, le=64)] = 8
    """How many prefixes; the token ids of so many are kept in memory."""

    max_tokens: Count = 32_768
    """A longer prefix is left out."""

    tokens_per_s: Annotated[float, Field(gt=0)] = 10_000
    """Tokens a second, over all new instances together."""

    max_utilisation: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Only while the pool spends no more of its time on prefills."""

    api_key_file: FilePath | None = None
    """File with the engines' API key, for those that ask for one."""


class Hints(Section):
    """What tells when a conversation comes back."""

    header: HeaderName | None = None
    """Request header with the seconds from the answer's end to the next turn: `1.5`, taken to be a
    tenth off at most, or `30;error=0.5`. One that is more than a second off is not used."""

    metadata: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """Key in the request body's `metadata` with the same, for clients that set no headers; the
    header counts where both are given."""

    learn: bool = True
    """Whether it is learnt, per session of `session_header`, from how regularly its turns came."""

    tool_calls: bool = False
    """Whether answers are read for calls of tools, and what follows those is learnt by itself.
    Needs `session_header`, `learn`, and a proxy that shows answers (`proxy.mode_override`, or
    a `proxy.response_body_mode`)."""


class FlowControl(Section):
    """Requests wait at Homing, the shortest prefill first, while every instance is busy."""

    max_wait_s: Annotated[float, Field(gt=0, le=9)] = 2
    """No request waits here for longer; the proxy must wait for so long and half a second more."""


class Pool(Section):
    """Instances that serve the same models."""

    name: Name
    """Unique; letters, digits, `.`, `_` and `-`."""

    models: Annotated[tuple[Model, ...], Field(min_length=1)]
    """The models that every instance of the pool serves."""

    instances: Annotated[tuple[Instance, ...], Field(min_length=1)] = ()
    """The engines; or else `discovery` finds them."""

    discovery: Discovery | None = None
    """Finds the engines, and notices when they come and go (docs/discovery.md)."""

    metrics: Annotated[
        Annotated[Literal["off"], Tag("word")] | Annotated[Scraping, Tag("section")],
        Discriminator(_word_or_section),
    ] = Scraping()
    """How often the engines' metrics are read; `off` for engines that have none."""

    tenant_header: HeaderName | None = None
    """Request header that names the tenant: prompts of two tenants share no block. For engines that
    keep them apart, by a `cache_salt` that the gateway adds; the gateway sets the header too."""

    block_size: Count = 16
    """Tokens a block: the engine's, or a multiple of it, 16 or more for a small index."""

    capacity_blocks: Count = 32_768
    """Blocks that the KV cache of each instance holds, where neither its metrics nor its own
    `capacity_blocks` say: beyond it a predicted hit is none."""

    index_bytes: Count = 4096 * MIB
    """Bound of the pool's index, at 24 bytes for each block that an instance holds; beyond it what
    was used longest ago is forgotten. Read when the pool is opened."""

    tenant_bytes: Count | None = None
    """The same for each tenant, where `tenant_header` names them; none if not given."""

    events: Events | None = None
    """KV-cache events of the engines, `{}` for all defaults; not used if not given."""

    policy: Literal["priced", "least-tokens", "round-robin"] = "priced"
    """How an instance is chosen: `priced` weighs what is cached against what waits, and what others
    then wait for (docs/policy.md); the others are for comparison and ignore what is cached."""

    override_header: HeaderName | None = None
    """Request header by which an operator overrides the choice (docs/routing.md); none if not
    given. The gateway must take a client's own away."""

    flow_control: Annotated[
        Annotated[Literal["off"], Tag("word")] | Annotated[FlowControl, Tag("section")],
        Discriminator(_word_or_section),
    ] = FlowControl()
    """Which requests wait at Homing instead of at a busy engine (docs/routing.md): where the proxy
    says that it waits, and engines tell how long prefills take. `off`: none."""

    session_header: HeaderName | None = None
    """Request header that names the conversation. It counts only where a prompt's tokens are
    unknown: such a turn goes where the one before went, unless waiting there costs more."""

    hints: Hints | None = None
    """When conversations come back (docs/routing.md); not used if not given."""

    priority: Priority | None = None
    """How urgent requests are, by a header (docs/routing.md); all alike if not given."""

    admission: Admission | None = None
    """When new conversations are refused so that those that are going on stay cached
    (docs/routing.md); never if not given."""

    shed: Shed | None = None
    """When requests are refused instead of queued (docs/routing.md); never if not given."""

    warm_up: WarmUp | None = None
    """What is computed at new instances beforehand (docs/routing.md); nothing if not given."""

    prefill_rate: Annotated[float, Field(gt=0)] = 16_000.0
    """Tokens a second that an instance prefills, until its engine tells (docs/engines.md)."""

    def capacity_of(self, instance: Instance) -> int:
        """Blocks that the instance holds, as configured."""
        return instance.capacity_blocks or self.capacity_blocks


class MemoryLog(Section):
    """The fact log inside the process: nothing to run, forgotten at the end but for `snapshot`."""

    kind: Literal["memory"] = "memory"
    """Where facts are kept: `memory`, inside this process, or `etcd`, shared by all replicas, which
    has the keys below from `endpoints` on."""

    snapshot: FilePath | None = None
    """File that the index is written to, and read from at the start, so that a process that is
    started again is warm (`memory` only); none if not given. It holds what block keys are made
    from, so only its owner can read it."""

    interval_s: Seconds = 60
    """Longest time between two writes of `snapshot` while there are new facts (`memory` only)."""


class EtcdTls(Section):
    """TLS to etcd. The files are read at every connection."""

    ca: FilePath | None = None
    """Roots of etcd's certificates, PEM; the public ones that gRPC has if not given."""

    cert: FilePath | None = None
    """Homing's own certificate, PEM, where etcd asks for one (mutual TLS)."""

    key: FilePath | None = None
    """Its private key, PEM."""

    name: Annotated[str, Field(min_length=1)] | None = None
    """The name that etcd's certificates have; that of the endpoint if not given."""


class EtcdLog(Section):
    """The fact log in etcd (3.5.6 or later), shared by all replicas and kept over restarts
    (docs/replication.md)."""

    kind: Literal["etcd"]
    """Where facts are kept: `etcd`."""

    endpoints: Annotated[tuple[ServiceAddress, ...], Field(min_length=1)]
    """The members of etcd: `host:port`."""

    prefix: Annotated[str, AfterValidator(_checked_prefix)] = "/homing"
    """What all keys begin with; the pool's name follows."""

    tls: (
        Annotated[
            Annotated[Literal["off"], Tag("word")] | Annotated[EtcdTls, Tag("files")],
            Discriminator(lambda value: "word" if isinstance(value, str) else "files"),
        ]
        | None
    ) = None
    """TLS: a mapping, `{}` for public roots, or `off`. Off if not given, where all endpoints
    are loopback addresses; needed everywhere else."""

    user: Annotated[str, Field(min_length=1)] | None = None
    """The user to log in as; none if not given."""

    password_file: FilePath | None = None
    """File with the user's password, read at every connection."""

    warm_timeout_s: Patience = 30.0
    """Longest that a replica waits for the index before it serves without, and says so."""

    snapshot_bytes: ByteCount = 16 * MIB
    """Bytes of log after which a new snapshot is written, and the log up to it deleted. At eight
    times as many replicas write no more until there is one."""

    snapshot_s: Seconds = 300
    """Longest time between two snapshots while there are new facts."""

    backlog_bytes: ByteCount = 32 * MIB
    """Bytes of facts that a replica keeps while etcd takes none; beyond it the oldest go."""

    compact: bool = True
    """Whether etcd's history is deleted up to the snapshot before the last, for all that is in it.
    Turn it off where etcd has other users and compacts by itself."""


def _kind_of_log(value: object) -> str:
    if isinstance(value, dict):
        return str(value.get("kind", "memory"))
    return value.kind if isinstance(value, MemoryLog | EtcdLog) else "memory"


Log: TypeAlias = Annotated[
    Annotated[MemoryLog, Tag("memory")] | Annotated[EtcdLog, Tag("etcd")],
    Discriminator(_kind_of_log),
]


class Tracing(Section):
    """One OpenTelemetry span a pick."""

    otlp_endpoint: Annotated[str, AfterValidator(_checked_url)]
    """The collector's OTLP gRPC address, such as `http://127.0.0.1:4317`."""

    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the requests without a trace context of their own that are traced, 0 to 1; a
    request's own decision is followed."""


class Limits(Section):
    """What Homing does not go beyond; what is over a limit is routed by load, never refused."""

    max_body_bytes: ByteCount = 32 * MIB
    """Largest request body that is read."""

    max_header_bytes: ByteCount = 64 * KIB
    """Most bytes of a request's headers, names and values."""

    max_json_depth: Annotated[int, Field(ge=1)] | None = None
    """Deepest nesting of objects and lists in a body. If not given the reader's own, some hundreds
    of levels, which costs nothing; a number costs a look through bodies with more brackets."""

    max_streams: Count = 4096
    """Most requests under way at a time, each from its headers to its answer's end, whose body is
    still looked up."""

    max_held_bytes: ByteCount = 512 * MIB
    """Most bytes of bodies that all requests together keep from the engines while they come in
    (`FULL_DUPLEX_STREAMED`) or are looked up; above it the largest go on without a pick."""

    pick_timeout_ms: Milliseconds = 150
    """Longest time that a pick may take before the request is routed by load."""

    hold_timeout_ms: Milliseconds = 30_000
    """Longest time that a body may take to come in before its request goes on without a pick: no
    time-out of Envoy's applies in `FULL_DUPLEX_STREAMED`."""


class TlsFiles(Section):
    """A certificate from files, which are read again when they change."""

    cert: FilePath
    """The certificate and those between it and its root, PEM, its own first."""

    key: FilePath
    """Its private key, PEM, without a passphrase."""

    client_ca: FilePath | None = None
    """Roots of the certificates that clients must show (mutual TLS), PEM; none is asked for if not
    given."""


Tls: TypeAlias = Annotated[
    Annotated[Literal["off", "self-signed"], Tag("word")] | Annotated[TlsFiles, Tag("section")],
    Discriminator(_word_or_section),
]


class Drain(Section):
    """How `homing serve` ends after SIGTERM. Together less than what the platform waits before it
    kills (Kubernetes: `terminationGracePeriodSeconds`, 30)."""

    delay_s: Patience = 5.0
    """How long new requests are still taken after readiness was withdrawn: as long as proxies may
    need to notice."""

    timeout_s: Patience = 20.0
    """How long open requests may then still take. At the end those that wait go on without a pick,
    and only an answer whose body passes through Homing (`FULL_DUPLEX_STREAMED`) is cut."""


class Proxy(Section):
    """What the proxy does that it may not say itself."""

    request_body_mode: BodyModeName = "BUFFERED"
    """How it sends request bodies, where it does not announce it (old Envoys)."""

    response_body_mode: BodyModeName = "NONE"
    """How it sends response bodies, where it does not announce it."""

    path_prefix: PathPrefix | None = None
    """What it takes off paths only after Homing has read them, such as `/llm` where clients ask for
    `/llm/v1/chat/completions`."""

    mode_override: bool = False
    """Whether it follows `mode_override` (Envoy's `allow_mode_override`; `envoy-config` sets it).
    Homing then asks for the bodies that it needs, and declines those that nothing reads. A proxy
    that ignores it loses picks in `STREAMED` and `NONE`."""

    @property
    def shows_answers(self) -> bool:
        """Whether Homing can see the bodies of answers."""
        return self.mode_override or self.response_body_mode != "NONE"


class EnvoyTls(Section):
    """How Envoy meets Homing's TLS; paths are those of Envoy's machine."""

    ca: FilePath | None = None
    """Roots of Homing's certificate, PEM. The connection is encrypted but not verified if not
    given, as for `self-signed`."""

    name: Annotated[str, Field(min_length=1)] | None = None
    """The DNS name that Homing's certificate must have; needs `ca`. Any name if not given."""

    cert: FilePath | None = None
    """Envoy's own certificate, PEM, where Homing has `client_ca`."""

    key: FilePath | None = None
    """Its private key, PEM."""


class EnvoyOptions(Section):
    """What `homing envoy-config` writes; `homing serve` reads none of it."""

    listen: ListenAddress = "127.0.0.1:10000"
    """Where Envoy accepts the clients' requests."""

    admin: ListenAddress | None = None
    """Envoy's admin port; none if not given."""

    pickers: tuple[PeerAddress, ...] = ()
    """Where Envoy reaches Homing, an entry a process; `listen` if empty."""

    tls: EnvoyTls = EnvoyTls()
    """How Envoy meets Homing's TLS; not used where Homing has none."""

    request_body_mode: Literal["BUFFERED", "FULL_DUPLEX_STREAMED"] = "BUFFERED"
    """How Envoy sends request bodies. With `BUFFERED` a crash of Homing loses no request;
    `FULL_DUPLEX_STREAMED` has no limit of size, and loses those whose body was under way."""

    buffer_limit_bytes: ByteCount = 40 * MIB
    """Largest body that Envoy buffers; above it the client gets a 413 (`BUFFERED` only)."""

    message_timeout_ms: Milliseconds = 1000
    """Longest wait for an answer of Homing before Envoy goes on without it; longer than
    `limits.pick_timeout_ms`."""

    idle_timeout_s: Seconds = 600
    """Longest silence of an engine, or of a client, before Envoy ends a request. There is no limit
    to how long an answer takes while it goes on."""


class Config(Section):
    """One configuration file."""

    listen: ListenAddress = "127.0.0.1:9002"
    """Where Homing serves ext_proc: `ip:port`, `[ipv6]:port` or `unix:/path`; port 0 is any free
    one."""

    tls: Tls | None = None
    """TLS on `listen`: a mapping with `cert` and `key`, `self-signed` (a new certificate at each
    start, for proxies that verify none) or `off`. Off if not given, where `listen` is loopback or a
    unix socket; needed everywhere else."""

    admin: ListenAddress | None = None
    """Where Homing serves metrics, health and its state over HTTP; nowhere if not given."""

    log: Log = MemoryLog()
    """Where facts about the caches are kept."""

    tracing: Tracing | None = None
    """Traces over OTLP; off if not given."""

    explain: bool = False
    """Adds `x-homing-why` to every answer, how the request was placed and what was known of it, and
    `x-homing-instances`, what each instance had cached and would have cost."""

    scores: bool = False
    """Adds metadata `envoy.lb` / `x-gateway-destination-endpoint-scores` to every pick, for access
    logs: each endpoint with its predicted cost in seconds, best first."""

    conformance: bool = False
    """Lets clients choose the endpoint by the header `test-epp-endpoint-selection`, and tells them
    who answered: what a conformance suite needs, and no production does."""

    fallbacks: Count = 3
    """Most endpoints in a pick: the first, and those that a retry of the proxy goes to."""

    pool_header: HeaderName | None = None
    """Request header that names the pool, for a gateway that sets it and removes a client's own.
    Metadata `homing: {pool: NAME}` of the request or its route goes before it, the model after."""

    models_endpoint: bool = False
    """Answers `GET /v1/models` with the models and aliases of all pools; else an engine does, which
    knows its own."""

    pools: Annotated[tuple[Pool, ...], Field(min_length=1)]
    """The engines, by the models that they serve."""

    endpoints_file: FilePath | None = None
    """File that `homing serve` writes the endpoints of all instances to, at each change, for Envoy
    to read (EDS): where Envoy cannot follow a discovery by itself (docs/discovery.md)."""

    proxy: Proxy = Proxy()
    """What the proxy does that it may not say itself."""

    limits: Limits = Limits()
    """What Homing does not go beyond."""

    drain: Drain = Drain()
    """How `homing serve` ends."""

    envoy: EnvoyOptions = EnvoyOptions()
    """What `homing envoy-config` writes."""
