"""What `homing check` says: the configuration as it would run, with every model tried."""

from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Literal

from extproc.config import Config, HubFiles, Model, Pool, TlsFiles
from extproc.errors import ConfigError, ModelNotReady, Unroutable
from extproc.loading import load_model
from extproc.prompt import Chat, Prompt
from extproc.terms import TOKEN_BYTES

_TRIAL = Prompt(
    Chat.of([{"role": "user", "content": "Hello"}], options={"add_generation_prompt": True})
)


def describe(config: Config, path: Path) -> str:
    """A readable summary, ending in a line feed. Loads each model, about a second each.

    path: of the configuration, to name in errors. Raises ConfigError with one line for each model
    that cannot be loaded.
    """
    lines = [f"{path} is right. It runs:", ""]
    lines += [f"  {name:<9}{value}" for name, value in _globals(config)]
    wrong = []
    for p, pool in enumerate(config.pools):
        lines += ["", f"  {_pool_title(pool)}"]
        for m, model in enumerate(pool.models):
            try:
                lines += [f"    {line}" for line in _try_model(model)]
            except (ConfigError, ModelNotReady) as error:
                wrong.append(f"{path}: pools[{p}].models[{m}]: {error}")
        lines += [f"    {line}" for line in _instances(pool)]
    if wrong:
        raise ConfigError("\n".join(wrong))
    if notes := list(_notes(config)):
        lines += ["", "  To know:", *(f"    {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def _notes(config: Config) -> Iterator[str]:
    """What is configured and does not work, or not everywhere."""
    proxy = config.proxy
    duplex = config.envoy.request_body_mode == "FULL_DUPLEX_STREAMED"
    if proxy.mode_override or duplex or proxy.response_body_mode != "NONE":
        return
    yield "proxy.mode_override is off. Where Envoy has allow_mode_override, which `envoy-config`"
    yield "writes, set it to true. Without it"
    yield "- requests with a previous_response_id are placed by load"
    for model in (model for pool in config.pools for model in pool.models):
        if model.rewrite_aliases and model.aliases:
            yield f"- answers to aliases of {model.name} keep its own name"
    yield "- upgrades (WebSocket) hang where Envoy buffers bodies"


def _globals(config: Config) -> Iterator[tuple[str, str]]:
    limits, tracing = config.limits, config.tracing
    yield "ext_proc", f"{config.listen}, {_tls(config.tls)}"
    yield "admin", config.admin or "off"
    yield "log", config.log.kind
    yield "tracing", f"{tracing.otlp_endpoint}, {tracing.sample_ratio:.0%}" if tracing else "off"
    yield "limits", f"bodies {limits.max_body_bytes:,} bytes, picks {limits.pick_timeout_ms} ms"


def _tls(tls: Literal["off", "self-signed"] | TlsFiles | None) -> str:
    match tls:
        case TlsFiles():
            return f"TLS with {tls.cert}" + (", clients' too" if tls.client_ca else "")
        case "self-signed":
            return "TLS, self-signed"
        case _:
            return "no TLS"


def _pool_title(pool: Pool) -> str:
    found = pool.discovery
    who = f"instances by {found.kind}" if found else _count(pool.instances, "instance")
    return (
        f"pool {pool.name}: {_count(pool.models, 'model')}, {who},"
        f" blocks of {pool.block_size} tokens"
    )


def _count(things: Sized, word: str) -> str:
    return f"{len(things)} {word}" if len(things) == 1 else f"{len(things)} {word}s"


def _try_model(model: Model) -> Iterator[str]:
    served = load_model(model)
    yield " = ".join((f"model {model.name}", *model.aliases))
    files = model.tokenizer
    named = f"{files.hub} at {files.revision}" if isinstance(files, HubFiles) else files
    yield f"  tokenizer {named}"
    if model.adapters:
        yield f"  adapters {', '.join(model.adapters)}"
    if model.chat_template is not None:
        yield f"  chat template {model.chat_template}"
    try:
        (ids,) = served.token_ids(_TRIAL)
    except Unroutable as error:
        yield f"  chats are routed by load: {error}"
    else:
        yield f'  a chat that says "Hello" is {len(ids) // TOKEN_BYTES} tokens'


def _instances(pool: Pool) -> Iterator[str]:
    for instance in pool.instances:
        named = f"{instance.name} at {instance.endpoint}" if instance.name else instance.endpoint
        yield f"instance {named}: {pool.capacity_of(instance):,} blocks"
