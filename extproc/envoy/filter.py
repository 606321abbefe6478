"""The ext_proc filter: what Envoy shows to Homing, and what it does when Homing is not there."""

from datetime import timedelta

from envoy_data_plane.envoy.config.core.v3 import (
    BackoffStrategy,
    GrpcService,
    GrpcServiceEnvoyGrpc,
    HeaderValue,
    RetryPolicy,
    RetryPolicyRetryHostPredicate,
)
from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import (
    ExternalProcessor,
    MetadataOptions,
    MetadataOptionsMetadataNamespaces,
    ProcessingMode,
    ProcessingModeBodySendMode,
    ProcessingModeHeaderSendMode,
)
from envoy_data_plane.envoy.extensions.retry.host.previous_hosts.v3 import PreviousHostsPredicate
from envoy_data_plane.google.protobuf import Any

from extproc.config import EnvoyOptions
from extproc.envoy.names import PICKERS_CLUSTER
from extproc.stream.headers import (
    METADATA_NAMESPACE,
    PATIENCE,
    POOL_NAMESPACE,
    RESPONSE_FLAGS,
    ROUTE_METADATA,
    SUBSET_NAMESPACE,
    UPSTREAM_ADDRESS,
    UPSTREAM_ATTEMPTS,
)

_MOST_MESSAGE_TIME = timedelta(seconds=10)
"""How far a message may stretch its own time-out."""


def ext_proc(options: EnvoyOptions, *, shows_answers: bool = False) -> ExternalProcessor:
    """The filter for a picker that reads request bodies and sees of answers the headers only.

    shows_answers: whether it also reads the bodies of some answers, or changes them, for which it
        asks where Envoy lets it. In FULL_DUPLEX_STREAMED Envoy does not, so it is shown all.

    Fails open: an error or a time-out of the picker lets the request go on, load-balanced, except
    in FULL_DUPLEX_STREAMED once a body chunk was sent (envoy/README.md has the table).
    """
    message_timeout = timedelta(milliseconds=options.message_timeout_ms)
    most_message_time = max(message_timeout, _MOST_MESSAGE_TIME)
    return ExternalProcessor(
        grpc_service=GrpcService(
            envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=PICKERS_CLUSTER),
            # A picker that died between two health checks: the next one is asked instead.
            retry_policy=RetryPolicy(
                retry_on="connect-failure,reset,unavailable",
                num_retries=2,
                # 1 s if unset: as long as the whole message may take.
                retry_back_off=BackoffStrategy(base_interval=timedelta(milliseconds=10)),
                retry_host_predicate=[
                    RetryPolicyRetryHostPredicate(
                        name="envoy.retry_host_predicates.previous_hosts",
                        typed_config=Any.pack(PreviousHostsPredicate()),
                    )
                ],
            ),
            # Says that it waits, so that requests may wait for their turn at the picker.
            initial_metadata=[
                HeaderValue(key=PATIENCE, value=f"{most_message_time.total_seconds():g}")
            ],
        ),
        failure_mode_allow=True,
        processing_mode=_processing_mode(options, shows_answers),
        # A route can name the pool: metadata `homing: {pool: NAME}`.
        request_attributes=[ROUTE_METADATA],
        # Which engine really answered, and which could not be reached; told in no other way.
        response_attributes=[UPSTREAM_ADDRESS, UPSTREAM_ATTEMPTS, RESPONSE_FLAGS],
        message_timeout=message_timeout,
        max_message_timeout=most_message_time,
        # Homing asks for an answer's body where it wants to watch it.
        allow_mode_override=True,
        metadata_options=MetadataOptions(
            forwarding_namespaces=MetadataOptionsMetadataNamespaces(
                untyped=[METADATA_NAMESPACE, SUBSET_NAMESPACE, POOL_NAMESPACE]
            ),
            # Without this Envoy ignores the pick's metadata, silently.
            receiving_namespaces=MetadataOptionsMetadataNamespaces(untyped=[METADATA_NAMESPACE]),
        ),
    )


def _processing_mode(options: EnvoyOptions, shows_answers: bool) -> ProcessingMode:
    send, skip = ProcessingModeHeaderSendMode.SEND, ProcessingModeHeaderSendMode.SKIP
    streamed = options.request_body_mode == "FULL_DUPLEX_STREAMED"
    answer = options.request_body_mode if streamed and shows_answers else "NONE"
    return ProcessingMode(
        request_header_mode=send,
        request_body_mode=ProcessingModeBodySendMode.from_string(options.request_body_mode),
        # Trailers end a streamed body, so Envoy demands that the picker sees them.
        request_trailer_mode=send if streamed else skip,
        response_header_mode=send,
        response_body_mode=ProcessingModeBodySendMode.from_string(answer),
        # Envoy would end a stream that waits for nothing more at the answer's headers, where it
        # is in flight still; in BUFFERED it does not.
        response_trailer_mode=send if streamed else skip,
    )
