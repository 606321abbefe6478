from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.config.addresses import (
    join_endpoint,
    parse_endpoint,
    parse_listen,
    parse_peer,
    split_endpoint,
)

PORTS = st.integers(1, 65_535)
ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


@given(ADDRESSES, PORTS)
def test_an_endpoint_joins_what_it_splits_into(ip: IPv4Address | IPv6Address, port: int) -> None:
    endpoint = join_endpoint(str(ip), port)
    assert split_endpoint(endpoint) == (str(ip), port)
    assert parse_endpoint(endpoint) == endpoint


@given(st.ip_addresses(v=6), PORTS)
def test_every_spelling_of_an_ipv6_address_is_one_endpoint(ip: IPv6Address, port: int) -> None:
    assert parse_endpoint(f"[{ip.exploded.upper()}]:{port}") == f"[{ip}]:{port}"


@given(st.text(alphabet="0123456789abcdef.:[]%/xu -", max_size=24))
def test_what_is_accepted_is_an_ip_and_a_port_and_the_rest_is_a_value_error(text: str) -> None:
    try:
        endpoint = parse_endpoint(text)
    except ValueError:
        return
    host, _, port = endpoint.rpartition(":")
    assert 0 < int(port) <= 65_535
    assert ip_address(host.strip("[]"))
    assert parse_endpoint(endpoint) == endpoint


@pytest.mark.parametrize("port", ["٣", "¹", "+1", "1_0", " 1", "1 ", "0x1", ""])
def test_a_port_is_ascii_digits(port: str) -> None:
    with pytest.raises(ValueError, match="no usable port"):
        split_endpoint(f"10.0.0.7:{port}")


def test_port_0_is_for_listening_only() -> None:
    assert parse_listen("127.0.0.1:0") == "127.0.0.1:0"
    for parse in (parse_endpoint, parse_peer):
        with pytest.raises(ValueError, match="no usable port"):
            parse("127.0.0.1:0")


def test_a_unix_socket_is_no_endpoint() -> None:
    assert parse_listen("unix:/run/homing.sock") == "unix:/run/homing.sock"
    assert parse_peer("unix:/run/homing.sock") == "unix:/run/homing.sock"
    with pytest.raises(ValueError, match="no IPv4 address"):
        parse_endpoint("unix:/run/homing.sock")
