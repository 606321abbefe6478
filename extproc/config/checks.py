"""Relations between fields, and between the file and the disk: what types cannot say."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from importlib.util import find_spec

from extproc.config.addresses import is_local, is_loopback
from extproc.config.model import (
    Config,
    DnsDiscovery,
    EnvoyTls,
    EtcdDiscovery,
    EtcdLog,
    HubFiles,
    Instance,
    KubernetesDiscovery,
    Pool,
    Proxy,
    TlsFiles,
)
from extproc.config.source import FieldPath, Finding, spell_field

_OF_MISTRAL = ("tekken.json", "tokenizer.model*")
_TOKENIZER_FILES = {
    "auto": ("tokenizer.json", *_OF_MISTRAL),
    "hf": ("tokenizer.json",),
    "mistral": _OF_MISTRAL,
}
"""Of which a tokenizer's folder has one, by `tokenizer_mode`."""


def check(config: Config) -> Iterator[Finding]:
    """Everything that is wrong with a configuration whose fields are right by themselves."""
    pool_names = ((("pools", p, "name"), pool.name) for p, pool in enumerate(config.pools))
    yield from _duplicates(pool_names, "pool")
    yield from _duplicates(_model_names(config), "model name")
    for p, pool in enumerate(config.pools):
        if bool(pool.instances) == (pool.discovery is not None):
            what = "goes with no discovery" if pool.instances else "is missing, and so is discovery"
            yield Finding(("pools", p, "instances"), what)
        match pool.discovery:
            case DnsDiscovery() as found:
                yield from _check_dns(("pools", p, "discovery"), found)
            case KubernetesDiscovery() as found:
                yield from _check_kubernetes(("pools", p, "discovery"), found)
            case EtcdDiscovery() if not isinstance(config.log, EtcdLog):
                yield Finding(
                    ("pools", p, "discovery", "kind"), "etcd is the log's: needs log.kind: etcd"
                )
        yield from check_instances(("pools", p, "instances"), pool.instances)
        yield from _check_files(("pools", p), pool)
        yield from _check_events(("pools", p), pool)
        yield from _check_hints(("pools", p, "hints", "tool_calls"), pool, config.proxy)
    if config.endpoints_file is not None and not config.endpoints_file.parent.is_dir():
        yield Finding(("endpoints_file",), f"{config.endpoints_file.parent} is not a folder")
    yield from _check_limits(config)
    yield from _check_tls(config)
    yield from _check_envoy_tls(config.envoy.tls)
    if isinstance(config.log, EtcdLog):
        yield from _check_etcd(config.log)
    elif config.log.snapshot is not None and not config.log.snapshot.parent.is_dir():
        yield Finding(("log", "snapshot"), f"{config.log.snapshot.parent} is not a folder")


def _model_names(config: Config) -> Iterator[tuple[FieldPath, str]]:
    for p, pool in enumerate(config.pools):
        for m, model in enumerate(pool.models):
            at = ("pools", p, "models", m)
            yield (*at, "name"), model.name
            yield from (((*at, "aliases", a), alias) for a, alias in enumerate(model.aliases))
            yield from (((*at, "adapters", a), name) for a, name in enumerate(model.adapters))


def _check_dns(at: FieldPath, settings: DnsDiscovery) -> Iterator[Finding]:
    if settings.records == "SRV" and settings.port is not None:
        yield Finding((*at, "port"), "comes with each SRV record")
    if settings.records != "SRV" and settings.port is None:
        yield Finding((*at, "port"), f"is missing; {settings.records} records have none")


def _check_kubernetes(at: FieldPath, settings: KubernetesDiscovery) -> Iterator[Finding]:
    if find_spec("kubernetes_asyncio") is None:
        yield Finding((*at, "kind"), "kubernetes needs pip install 'homing[kubernetes]'")
    for key in ("labels", "ports"):
        given = bool(getattr(settings, key))
        if given and settings.pool is not None:
            yield Finding((*at, key), "is for the InferencePool to say")
        elif not given and settings.pool is None:
            yield Finding((*at, key), "is missing, and so is pool")
    if settings.kubeconfig is not None and not settings.kubeconfig.is_file():
        yield Finding((*at, "kubeconfig"), f"{settings.kubeconfig} is not a file")


def check_instances(at: FieldPath, instances: Sequence[Instance]) -> Iterator[Finding]:
    """What is wrong with a list of instances at this place of a file."""
    endpoints = []
    names = []
    for i, instance in enumerate(instances):
        field = (*at, i)
        endpoints.append(((*field, "endpoint"), instance.place))
        names.append(((*field, "name" if instance.name else "endpoint"), instance.id))
    twice = list(_duplicates(endpoints, "endpoint"))
    yield from twice
    named = {finding.field for finding in twice}
    yield from (f for f in _duplicates(names, "instance") if f.field not in named)


def _check_events(at: FieldPath, pool: Pool) -> Iterator[Finding]:
    if pool.events is None:
        for i, instance in enumerate(pool.instances):
            if instance.events is not None:
                yield Finding((*at, "instances", i, "events"), "needs events of the pool too")
        return
    if len(pool.models) > 1:
        yield Finding(
            (*at, "events"),
            "does not say which of the pool's models a block is of; give each model a pool",
        )
    if pool.tenant_header is not None:
        yield Finding(
            (*at, "events"),
            "does not say whose a block is; tenants are kept apart by their cache_salt alone,"
            " so leave out tenant_header",
        )


def _check_hints(at: FieldPath, pool: Pool, proxy: Proxy) -> Iterator[Finding]:
    if pool.hints is None or not pool.hints.tool_calls:
        return
    if pool.session_header is None:
        yield Finding(at, "is learnt per session: needs the pool's session_header")
    if not pool.hints.learn:
        yield Finding(at, "is learnt: needs learn: true")
    if not proxy.shows_answers:
        yield Finding(at, "needs a proxy that shows answers: proxy.mode_override: true")


def _check_files(at: FieldPath, pool: Pool) -> Iterator[Finding]:
    for m, model in enumerate(pool.models):
        field = (*at, "models", m)
        if isinstance(model.tokenizer, HubFiles):
            if find_spec("huggingface_hub") is None:
                yield Finding((*field, "tokenizer"), "a hub needs pip install 'homing[hub]'")
        elif not model.tokenizer.is_dir():
            yield Finding((*field, "tokenizer"), f"{model.tokenizer} is not a folder")
        else:
            names = _TOKENIZER_FILES[model.tokenizer_mode]
            if not any(file for name in names for file in model.tokenizer.glob(name)):
                what = f"{model.tokenizer} has no {' or '.join(names)}"
                yield Finding((*field, "tokenizer"), what)
        if model.chat_template is not None and not model.chat_template.is_file():
            yield Finding((*field, "chat_template"), f"{model.chat_template} is not a file")


def _check_limits(config: Config) -> Iterator[Finding]:
    envoy = config.envoy
    if envoy.request_body_mode == "BUFFERED" and (
        envoy.buffer_limit_bytes < config.limits.max_body_bytes
    ):
        yield Finding(
            ("envoy", "buffer_limit_bytes"),
            f"{envoy.buffer_limit_bytes} is less than limits.max_body_bytes"
            f" ({config.limits.max_body_bytes}); Envoy would refuse bodies that Homing can read",
        )
    if envoy.message_timeout_ms <= config.limits.pick_timeout_ms:
        yield Finding(
            ("envoy", "message_timeout_ms"),
            f"{envoy.message_timeout_ms} leaves no time for limits.pick_timeout_ms"
            f" ({config.limits.pick_timeout_ms}); Envoy would give up first",
        )


def _check_tls(config: Config) -> Iterator[Finding]:
    if config.tls is None and not is_local(config.listen):
        yield Finding(
            ("listen",),
            f'"{config.listen}" can be reached from other machines; add one of'
            " tls: {cert: FILE, key: FILE}, tls: self-signed and tls: off",
        )
    if isinstance(config.tls, TlsFiles):
        # Here, because it takes a tenth of a second, and most commands have no use for it.
        from extproc.config.certificates import CertificateError, read_certificate

        try:
            read_certificate(config.tls)
        except CertificateError as error:
            yield Finding(("tls", error.field), error.what)


def _check_etcd(log: EtcdLog) -> Iterator[Finding]:
    for e, endpoint in enumerate(log.endpoints):
        if log.tls is None and not is_loopback(endpoint):
            yield Finding(
                ("log", "endpoints", e),
                f'"{endpoint}" is another machine; add log.tls: {{ca: FILE}}, or log.tls: off',
            )
    if bool(log.user) != bool(log.password_file):
        given, absent = ("user", "password_file") if log.user else ("password_file", "user")
        yield Finding(("log", given), f"needs log.{absent} too")
    if log.password_file is not None and not log.password_file.is_file():
        yield Finding(("log", "password_file"), f"{log.password_file} is not a file")
    if isinstance(log.tls, str | None):
        return
    if bool(log.tls.cert) != bool(log.tls.key):
        given, absent = ("cert", "key") if log.tls.cert else ("key", "cert")
        yield Finding(("log", "tls", given), f"needs log.tls.{absent} too")
    for key, file in (("ca", log.tls.ca), ("cert", log.tls.cert), ("key", log.tls.key)):
        if file is not None and not file.is_file():
            yield Finding(("log", "tls", key), f"{file} is not a file")


def _check_envoy_tls(tls: EnvoyTls) -> Iterator[Finding]:
    if tls.name and not tls.ca:
        yield Finding(("envoy", "tls", "name"), "is not verified without envoy.tls.ca")
    if bool(tls.cert) != bool(tls.key):
        given, absent = ("cert", "key") if tls.cert else ("key", "cert")
        yield Finding(("envoy", "tls", given), f"needs envoy.tls.{absent} too")


def _duplicates(named: Iterable[tuple[FieldPath, Hashable]], what: str) -> Iterator[Finding]:
    first: dict[Hashable, FieldPath] = {}
    for field, name in named:
        if name in first:
            yield Finding(field, f'{what} "{name}" is taken by {spell_field(first[name])}')
        else:
            first[name] = field
