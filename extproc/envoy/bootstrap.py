"""A complete Envoy bootstrap: listener, route, filter, clusters."""

from datetime import timedelta

from betterproto2 import Message
from envoy_data_plane.envoy.config.bootstrap.v3 import (
    Admin,
    Bootstrap,
    BootstrapStaticResources,
)
from envoy_data_plane.envoy.config.common.mutation_rules.v3 import HeaderMutation as Mutation
from envoy_data_plane.envoy.config.common.mutation_rules.v3 import HeaderMutationRemoveOnMatch
from envoy_data_plane.envoy.config.core.v3 import (
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
    Http1ProtocolOptions,
    Node,
    TypedExtensionConfig,
)
from envoy_data_plane.envoy.config.listener.v3 import Filter, FilterChain, Listener
from envoy_data_plane.envoy.config.route.v3 import (
    HeaderMatcher,
    RetryPolicy,
    RetryPolicyRetryHostPredicate,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpFilter,
)
from envoy_data_plane.envoy.extensions.http.early_header_mutation.header_mutation.v3 import (
    HeaderMutation,
)
from envoy_data_plane.envoy.extensions.retry.host.previous_hosts.v3 import PreviousHostsPredicate
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher
from envoy_data_plane.google.protobuf import Any

from extproc.config import Config, DnsDiscovery, EnvoyOptions, EnvoyTls
from extproc.config.addresses import UNIX_PREFIX, join_endpoint, split_endpoint
from extproc.envoy.clusters import Engines, engines_cluster, pickers_cluster, socket_address
from extproc.envoy.filter import ext_proc
from extproc.envoy.names import ENGINES_CLUSTER
from extproc.envoy.text import to_yaml
from extproc.errors import ConfigError
from extproc.stream.headers import CONFORMANCE_SELECTION, CONTROL_HEADERS, OWN_PREFIX

_RETRY_ON = "connect-failure,refused-stream,reset-before-request"
"""Only what no engine has seen: plain `reset` would run a generation twice."""

_PROTOCOL = "x-downstream-protocol"
"""Request header that Envoy sets for its own routes, whatever the client sent, and removes."""

_HEADER = """\
Written by `homing envoy-config`: change the configuration that it was written from instead.
To put Homing into an Envoy that runs already, see envoy/README.md."""


def bootstrap_yaml(config: Config) -> str:
    """What `homing envoy-config` prints."""
    return to_yaml(bootstrap(config), _HEADER)


def bootstrap(config: Config) -> Bootstrap:
    """The bootstrap for one Envoy in front of all pools.

    One cluster holds the engines of all pools: the pick, which knows the model, names one of them.
    ConfigError where the configuration does not say how Envoy can reach Homing.
    """
    options = config.envoy
    return Bootstrap(
        # Envoy demands a name where it reads endpoints from a file.
        node=Node(id="envoy", cluster="homing") if config.endpoints_file else None,
        admin=Admin(address=socket_address(options.admin)) if options.admin else None,
        static_resources=BootstrapStaticResources(
            listeners=[_listener(config)],
            clusters=[
                pickers_cluster(_picker_addresses(config), _picker_tls(config)),
                engines_cluster(_engines(config)),
            ],
        ),
    )


def _picker_addresses(config: Config) -> list[str]:
    """Where Envoy reaches Homing; a wildcard address is reached over loopback."""
    if config.envoy.pickers:
        return list(config.envoy.pickers)
    if config.listen.startswith(UNIX_PREFIX):
        return [config.listen]
    ip, port = split_endpoint(config.listen)
    if port == 0:
        raise ConfigError("listen: port 0 is any free one; name the real one in envoy.pickers")
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - recognised, not bound
    return [join_endpoint(loopback.get(ip, ip), port)]


def _picker_tls(config: Config) -> EnvoyTls | None:
    return None if config.tls in (None, "off") else config.envoy.tls


def _engines(config: Config) -> Engines:
    """Every endpoint and name once: an engine can serve models of two pools.

    ConfigError where Envoy cannot find them by itself.
    """
    if config.endpoints_file is not None:
        return Engines(file=config.endpoints_file)
    listed = (i.endpoint for pool in config.pools for i in pool.instances)
    names: dict[DnsDiscovery, None] = {}
    for p, pool in enumerate(config.pools):
        match pool.discovery:
            case None:
                pass
            case DnsDiscovery(records="A" | "AAAA") as found:
                names[found] = None
            case found:
                raise ConfigError(
                    f"pools[{p}].discovery: Envoy cannot follow it by itself ({found.kind}); name"
                    " an endpoints_file that both reach, or see docs/discovery.md"
                )
    return Engines(tuple(dict.fromkeys(listed)), tuple(names))


def _listener(config: Config) -> Listener:
    options = config.envoy
    return Listener(
        name="clients",
        address=socket_address(options.listen),
        # What BUFFERED may hold, and what a retry can repeat; 1 MiB if unset.
        per_connection_buffer_limit_bytes=options.buffer_limit_bytes,
        filter_chains=[
            FilterChain(
                filters=[
                    Filter(
                        name="envoy.filters.network.http_connection_manager",
                        typed_config=Any.pack(_connection_manager(config)),
                    )
                ]
            )
        ],
    )


def _connection_manager(config: Config) -> HttpConnectionManager:
    options = config.envoy
    renames = any(m.rewrite_aliases and m.aliases for pool in config.pools for m in pool.models)
    reads = any(pool.hints is not None and pool.hints.tool_calls for pool in config.pools)
    return HttpConnectionManager(
        stat_prefix="clients",
        # The engine is told who asks (x-forwarded-for), and no client can tell it otherwise.
        use_remote_address=True,
        # HTTP/1 trailers reach no filter without it.
        http_protocol_options=Http1ProtocolOptions(enable_trailers=not _may_double(options)),
        early_header_mutation_extensions=[
            TypedExtensionConfig(
                name="envoy.http.early_header_mutation.header_mutation",
                typed_config=Any.pack(_client_headers(config)),
            )
        ],
        route_config=_routes(options),
        http_filters=[
            _http_filter("ext_proc", ext_proc(options, shows_answers=renames or reads)),
            _http_filter("router", Router()),
        ],
    )


def _client_headers(config: Config) -> HeaderMutation:
    """What is done to a client's headers: it must steer no request, the less without a picker.

    A conformance suite may name endpoints: that header is left for Homing to read and remove.
    """
    left = {CONFORMANCE_SELECTION} if config.conformance else set()
    ours = HeaderMutationRemoveOnMatch(key_matcher=StringMatcher(prefix=OWN_PREFIX))
    mutations = [
        *(Mutation(remove=name) for name in sorted(CONTROL_HEADERS - left)),
        Mutation(remove_on_match=ours),
    ]
    if _may_double(config.envoy):
        protocol = HeaderValueOption(
            header=HeaderValue(key=_PROTOCOL, value="%PROTOCOL%"),
            append_action=HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
        )
        mutations.append(Mutation(append=protocol))
    return HeaderMutation(mutations=mutations)


def _may_double(options: EnvoyOptions) -> bool:
    """Whether Envoy 1.40 sends a body twice that ends in trailers, where the route retries.

    See envoyproxy/envoy issue 45470. So no trailers are read of HTTP/1, and nothing is retried of
    HTTP/2, which has no such switch.
    """
    return options.request_body_mode == "FULL_DUPLEX_STREAMED"


def _routes(options: EnvoyOptions) -> RouteConfiguration:
    if _may_double(options):
        version_1 = HeaderMatcher(name=_PROTOCOL, string_match=StringMatcher(prefix="HTTP/1"))
        routes = [_route(options, retries=True), _route(options, retries=False)]
        routes[0].match = RouteMatch(prefix="/", headers=[version_1])
        for route in routes:
            route.request_headers_to_remove = [_PROTOCOL]
    else:
        routes = [_route(options, retries=True)]
    return RouteConfiguration(
        name="engines", virtual_hosts=[VirtualHost(name="all", domains=["*"], routes=routes)]
    )


def _route(options: EnvoyOptions, retries: bool) -> Route:
    action = RouteAction(
        cluster=ENGINES_CLUSTER,
        # The length of an answer is not known; silence ends it, not its age.
        timeout=timedelta(0),
        idle_timeout=timedelta(seconds=options.idle_timeout_s),
        retry_policy=_retry_policy() if retries else None,
    )
    return Route(match=RouteMatch(prefix="/"), route=action)


def _retry_policy() -> RetryPolicy:
    return RetryPolicy(
        retry_on=_RETRY_ON,
        num_retries=2,
        retry_host_predicate=[
            RetryPolicyRetryHostPredicate(
                name="envoy.retry_host_predicates.previous_hosts",
                typed_config=Any.pack(PreviousHostsPredicate()),
            )
        ],
        # One that is down has the fewest requests, so it is chosen again and again.
        host_selection_retry_max_attempts=50,
    )


def _http_filter(name: str, message: Message) -> HttpFilter:
    return HttpFilter(name=f"envoy.filters.http.{name}", typed_config=Any.pack(message))
