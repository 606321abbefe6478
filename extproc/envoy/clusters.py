"""The two clusters: Homing's processes, and the engines that they pick from."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from betterproto2 import Message
from envoy_data_plane.envoy.config.cluster.v3 import (
    CircuitBreakers,
    CircuitBreakersThresholds,
    Cluster,
    ClusterCommonLbConfig,
    ClusterCustomClusterType,
    ClusterDiscoveryType,
    ClusterEdsClusterConfig,
    LoadBalancingPolicy,
    LoadBalancingPolicyPolicy,
)
from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    ApiVersion,
    ConfigSource,
    DataSource,
    HealthCheck,
    HealthCheckGrpcHealthCheck,
    Http1ProtocolOptions,
    Http2ProtocolOptions,
    HttpProtocolOptions,
    PathConfigSource,
    Pipe,
    SocketAddress,
    TransportSocket,
    TypedExtensionConfig,
)
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.extensions.clusters.common.dns.v3 import DnsLookupFamily
from envoy_data_plane.envoy.extensions.clusters.dns.v3 import DnsCluster
from envoy_data_plane.envoy.extensions.load_balancing_policies.least_request.v3 import LeastRequest
from envoy_data_plane.envoy.extensions.load_balancing_policies.override_host.v3 import (
    OverrideHost,
    OverrideHostOverrideHostSource,
)
from envoy_data_plane.envoy.extensions.network.dns_resolver.cares.v3 import CaresDnsResolverConfig
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CertificateValidationContext,
    CommonTlsContext,
    SubjectAltNameMatcher,
    SubjectAltNameMatcherSanType,
    TlsCertificate,
    UpstreamTlsContext,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions as UpstreamHttpOptions,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptionsExplicitHttpConfig as ExplicitHttpConfig,
)
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher
from envoy_data_plane.envoy.type.metadata.v3 import MetadataKey, MetadataKeyPathSegment
from envoy_data_plane.envoy.type.v3 import Percent
from envoy_data_plane.google.protobuf import Any

from extproc.config import DnsDiscovery, EnvoyTls
from extproc.config.addresses import UNIX_PREFIX, split_endpoint
from extproc.envoy.names import ENGINES_CLUSTER, PICKERS_CLUSTER
from extproc.stream.headers import DESTINATION, METADATA_NAMESPACE

_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_EXT_PROC_SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"

_CONNECT_TIME = timedelta(seconds=1)
_HEALTH_INTERVAL = timedelta(milliseconds=500)
_ENGINE_IDLE_TIME = timedelta(seconds=3)
"""uvicorn, under vLLM and SGLang, closes a connection after 5 s without a request; a request that
Envoy sends into that moment is lost, so Envoy closes first."""

_MOST_REQUESTS = 1_000_000
"""In place of 1,024, which long answers reach: limiting concurrency is the policy's work."""


def pickers_cluster(addresses: list[str], tls: EnvoyTls | None) -> Cluster:
    """Homing's processes, HTTP/2, an endpoint each, dropped within a second when one is down.

    With none left its requests fail at once (panic threshold 0), and the filter lets them pass.
    tls: None for plaintext.
    """
    return Cluster(
        name=PICKERS_CLUSTER,
        type=ClusterDiscoveryType.STATIC,
        connect_timeout=_CONNECT_TIME,
        load_assignment=_assignment(PICKERS_CLUSTER, addresses),
        transport_socket=_tls_socket(tls) if tls else None,
        common_lb_config=ClusterCommonLbConfig(healthy_panic_threshold=Percent()),
        health_checks=[
            HealthCheck(
                timeout=_HEALTH_INTERVAL,
                interval=_HEALTH_INTERVAL,
                # Without traffic Envoy checks every 60 s.
                no_traffic_interval=_HEALTH_INTERVAL,
                unhealthy_threshold=2,
                healthy_threshold=1,
                grpc_health_check=HealthCheckGrpcHealthCheck(service_name=_EXT_PROC_SERVICE),
            )
        ],
        circuit_breakers=_no_circuit_breakers(),
        typed_extension_protocol_options={
            _HTTP_OPTIONS: Any.pack(
                UpstreamHttpOptions(
                    explicit_http_config=ExplicitHttpConfig(
                        http2_protocol_options=Http2ProtocolOptions()
                    )
                )
            )
        },
    )


@dataclass(frozen=True, slots=True)
class Engines:
    """Where Envoy finds the engines: endpoints and names, or else a file that Homing writes."""

    endpoints: tuple[str, ...] = ()
    names: tuple[DnsDiscovery, ...] = ()
    file: Path | None = None


def engines_cluster(engines: Engines) -> Cluster:
    """All engines. The picked one is taken from the metadata, which no client can set.

    Without a pick, or when no picked endpoint is left to try, the least loaded of two.
    """
    cluster = _engines_cluster()
    if engines.file is not None:
        cluster.type = ClusterDiscoveryType.EDS
        cluster.eds_cluster_config = ClusterEdsClusterConfig(
            eds_config=ConfigSource(
                path_config_source=PathConfigSource(path=str(engines.file.absolute())),
                resource_api_version=ApiVersion.V3,
            )
        )
        return cluster
    cluster.load_assignment = _assignment(ENGINES_CLUSTER, engines.endpoints)
    if engines.names:
        _find_by_name(cluster, engines.names)
    return cluster


def _find_by_name(cluster: Cluster, names: Sequence[DnsDiscovery]) -> None:
    """Ask for the same records as Homing does, as often."""
    kinds = {one.records for one in names}
    v4, v6 = DnsLookupFamily.V4_ONLY, DnsLookupFamily.V6_ONLY
    dns = DnsCluster(
        dns_refresh_rate=timedelta(seconds=min(one.every_s for one in names)),
        dns_lookup_family=DnsLookupFamily.ALL if len(kinds) > 1 else v4 if kinds == {"A"} else v6,
        typed_dns_resolver_config=_resolver([one for name in names for one in name.nameservers]),
    )
    cluster.type = None
    cluster.cluster_type = ClusterCustomClusterType(
        name="envoy.clusters.dns", typed_config=Any.pack(dns)
    )
    assert cluster.load_assignment is not None
    cluster.load_assignment.endpoints[0].lb_endpoints += [
        LbEndpoint(
            endpoint=Endpoint(
                address=Address(
                    socket_address=SocketAddress(address=one.name, port_value=one.port or 0)
                )
            )
        )
        for one in names
    ]


def _resolver(servers: Sequence[str]) -> TypedExtensionConfig | None:
    """None for those of /etc/resolv.conf."""
    if not servers:
        return None
    return TypedExtensionConfig(
        name="envoy.network.dns_resolver.cares",
        typed_config=Any.pack(
            CaresDnsResolverConfig(
                resolvers=[socket_address(server) for server in dict.fromkeys(servers)]
            )
        ),
    )


def _engines_cluster() -> Cluster:
    return Cluster(
        name=ENGINES_CLUSTER,
        type=ClusterDiscoveryType.STATIC,
        connect_timeout=_CONNECT_TIME,
        load_balancing_policy=_policy(
            "override_host",
            OverrideHost(
                override_host_sources=[
                    OverrideHostOverrideHostSource(
                        metadata=MetadataKey(
                            key=METADATA_NAMESPACE, path=[MetadataKeyPathSegment(key=DESTINATION)]
                        )
                    ),
                ],
                fallback_policy=_policy("least_request", LeastRequest()),
            ),
        ),
        circuit_breakers=_no_circuit_breakers(),
        typed_extension_protocol_options={
            _HTTP_OPTIONS: Any.pack(
                UpstreamHttpOptions(
                    common_http_protocol_options=HttpProtocolOptions(
                        idle_timeout=_ENGINE_IDLE_TIME
                    ),
                    explicit_http_config=ExplicitHttpConfig(
                        http_protocol_options=Http1ProtocolOptions(enable_trailers=True)
                    ),
                )
            )
        },
    )


def socket_address(address: str) -> Address:
    """`ip:port`, `[ipv6]:port` or `unix:/path` as Envoy's type."""
    if address.startswith(UNIX_PREFIX):
        return Address(pipe=Pipe(path=address.removeprefix(UNIX_PREFIX)))
    ip, port = split_endpoint(address)
    return Address(socket_address=SocketAddress(address=ip, port_value=port))


def _tls_socket(tls: EnvoyTls) -> TransportSocket:
    """Towards Homing, verified as far as there is something to verify it with."""
    context = CommonTlsContext(alpn_protocols=["h2"])  # gRPC refuses who does not ask for it
    if tls.cert and tls.key:
        context.tls_certificates = [
            TlsCertificate(certificate_chain=_file(tls.cert), private_key=_file(tls.key))
        ]
    if tls.ca:
        context.validation_context = CertificateValidationContext(
            trusted_ca=_file(tls.ca),
            match_typed_subject_alt_names=[
                SubjectAltNameMatcher(
                    san_type=SubjectAltNameMatcherSanType.DNS,
                    matcher=StringMatcher(exact=tls.name),
                )
            ]
            if tls.name
            else [],
        )
    return TransportSocket(
        name="envoy.transport_sockets.tls",
        typed_config=Any.pack(UpstreamTlsContext(common_tls_context=context, sni=tls.name or "")),
    )


def _file(path: Path) -> DataSource:
    return DataSource(filename=str(path.absolute()))


def _assignment(cluster: str, addresses: Sequence[str]) -> ClusterLoadAssignment:
    return ClusterLoadAssignment(
        cluster_name=cluster,
        endpoints=[
            LocalityLbEndpoints(
                lb_endpoints=[
                    LbEndpoint(endpoint=Endpoint(address=socket_address(address)))
                    for address in addresses
                ]
            )
        ],
    )


def _policy(name: str, policy: Message) -> LoadBalancingPolicy:
    return LoadBalancingPolicy(
        policies=[
            LoadBalancingPolicyPolicy(
                typed_extension_config=TypedExtensionConfig(
                    name=f"envoy.load_balancing_policies.{name}", typed_config=Any.pack(policy)
                )
            )
        ]
    )


def _no_circuit_breakers() -> CircuitBreakers:
    return CircuitBreakers(
        thresholds=[
            CircuitBreakersThresholds(
                max_connections=_MOST_REQUESTS,
                max_pending_requests=_MOST_REQUESTS,
                max_requests=_MOST_REQUESTS,
                max_retries=_MOST_REQUESTS,
            )
        ]
    )
