"""Our bytes through `envoy-data-plane` (betterproto2, Envoy's whole API), both ways."""

from envoy_data_plane.envoy.config.core.v3 import HeaderMap, HeaderValue, HeaderValueOption
from envoy_data_plane.envoy.service.ext_proc import v3 as envoy
from hypothesis import given, settings

from proto_gen import base_pb2, ext_proc_pb2, processing_mode_pb2
from tests.proto_gen.strategies import messages


@settings(max_examples=150, deadline=None)
@given(messages(ext_proc_pb2.ProcessingRequest.DESCRIPTOR))
def test_any_request_survives_the_other_implementation(
    ours: ext_proc_pb2.ProcessingRequest,
) -> None:
    theirs = envoy.ProcessingRequest.parse(ours.SerializeToString())
    assert ext_proc_pb2.ProcessingRequest.FromString(bytes(theirs)) == ours


@settings(max_examples=150, deadline=None)
@given(messages(ext_proc_pb2.ProcessingResponse.DESCRIPTOR))
def test_any_response_survives_the_other_implementation(
    ours: ext_proc_pb2.ProcessingResponse,
) -> None:
    theirs = envoy.ProcessingResponse.parse(ours.SerializeToString())
    assert ext_proc_pb2.ProcessingResponse.FromString(bytes(theirs)) == ours


def test_a_request_of_theirs_reads_the_same_with_us() -> None:
    theirs = envoy.ProcessingRequest(
        request_headers=envoy.HttpHeaders(
            headers=HeaderMap(headers=[HeaderValue(key=":path", raw_value=b"/v1/\xff")]),
            end_of_stream=True,
        ),
        protocol_config=envoy.ProtocolConfiguration(request_body_mode=4, response_body_mode=2),
    )
    ours = ext_proc_pb2.ProcessingRequest.FromString(bytes(theirs))
    mode = processing_mode_pb2.ProcessingMode
    assert ours == ext_proc_pb2.ProcessingRequest(
        request_headers=ext_proc_pb2.HttpHeaders(
            headers=base_pb2.HeaderMap(
                headers=[base_pb2.HeaderValue(key=":path", raw_value=b"/v1/\xff")]
            ),
            end_of_stream=True,
        ),
        protocol_config=ext_proc_pb2.ProtocolConfiguration(
            request_body_mode=mode.FULL_DUPLEX_STREAMED, response_body_mode=mode.BUFFERED
        ),
    )


def test_a_response_of_ours_reads_the_same_with_them() -> None:
    ours = ext_proc_pb2.ProcessingResponse()
    common = ours.request_body.response
    common.clear_route_cache = True
    option = common.header_mutation.set_headers.add()
    option.header.key = "x-gateway-destination-endpoint"
    option.header.raw_value = b"10.0.0.1:8000"
    option.append_action = base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
    theirs = envoy.ProcessingResponse.parse(ours.SerializeToString())
    assert theirs == envoy.ProcessingResponse(
        request_body=envoy.BodyResponse(
            response=envoy.CommonResponse(
                clear_route_cache=True,
                header_mutation=envoy.HeaderMutation(
                    set_headers=[
                        HeaderValueOption(
                            header=HeaderValue(
                                key="x-gateway-destination-endpoint", raw_value=b"10.0.0.1:8000"
                            ),
                            append_action=2,
                        )
                    ]
                ),
            )
        )
    )
