"""Addresses as Homing writes them: `ip:port`, `[ipv6]:port` and `unix:/path`."""

import re
from ipaddress import ip_address

from extproc.terms import Endpoint

_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_DOTTED = re.compile(r"[0-9.]+")

UNIX_PREFIX = "unix:"
"""Begins the address of a unix socket; an absolute path follows."""


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """The ip (without brackets) and the port of `ip:port` or `[ipv6]:port`.

    ValueError says what to write instead. Host names are refused: proxy and picker must mean the
    same address, and a name can stand for several.
    """
    if "://" in endpoint:
        raise ValueError(f'"{endpoint}" is a URL; write only its ip:port')
    host, port = _cut_port(endpoint)
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError(f'"{endpoint}" has no usable port; write a number from 1 to 65535')
    return host, int(port)


def parse_endpoint(endpoint: str) -> Endpoint:
    """The endpoint in its shortest spelling, which proxies use too. ValueError as above."""
    host, port = split_endpoint(endpoint)
    if port == 0:
        raise ValueError(f'"{endpoint}" has no usable port; write a number from 1 to 65535')
    return Endpoint(join_endpoint(host, port))


def parse_listen(address: str) -> str:
    """An address to listen on: an endpoint, where port 0 is any free one, or `unix:/path`."""
    if address.startswith(UNIX_PREFIX):
        if not address.startswith(f"{UNIX_PREFIX}/"):
            raise ValueError(f'"{address}" is not absolute; write unix:/path/to/socket')
        return address
    return join_endpoint(*split_endpoint(address))


def is_local(address: str) -> bool:
    """Whether only this machine reaches what listens there: a unix socket, or loopback."""
    return address.startswith(UNIX_PREFIX) or ip_address(split_endpoint(address)[0]).is_loopback


def is_loopback(address: str) -> bool:
    """Whether a service's address is on this machine for sure."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def join_endpoint(host: str, port: int) -> str:
    """`ip:port`, with brackets around IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_peer(address: str) -> str:
    """An address to connect to: an endpoint, or `unix:/path`."""
    return parse_listen(address) if address.startswith(UNIX_PREFIX) else parse_endpoint(address)


def parse_service(address: str) -> str:
    """An address of a service to connect to: `host:port`, where the host may be a name."""
    host, _, port = address.rpartition(":")
    if _NAME.fullmatch(host) and not _DOTTED.fullmatch(host) and "://" not in address:
        if port.isascii() and port.isdigit() and 0 < int(port) <= 65535:
            return f"{host}:{int(port)}"
        raise ValueError(f'"{address}" has no usable port; write a number from 1 to 65535')
    return parse_endpoint(address)


def _cut_port(endpoint: str) -> tuple[str, str]:
    if endpoint.startswith("["):
        host, bracket, rest = endpoint[1:].partition("]")
        if not bracket or rest[:1] != ":":
            raise ValueError(f'"{endpoint}" has no port; write [ipv6]:port, such as [::1]:8000')
        return _checked_ip(endpoint, host, version=6), rest[1:]
    if endpoint.count(":") > 1:
        raise ValueError(f'"{endpoint}" looks like IPv6; write [ipv6]:port, such as [::1]:8000')
    host, colon, port = endpoint.partition(":")
    if not colon:
        raise ValueError(f'"{endpoint}" has no port; write ip:port, such as 10.0.0.7:8000')
    return _checked_ip(endpoint, host, version=4), port


def _checked_ip(endpoint: str, host: str, version: int) -> str:
    try:
        address = ip_address(host)
    except ValueError:
        address = None
    if address is None or address.version != version or "%" in host:
        where = "between the brackets" if version == 6 else "before the port"
        raise ValueError(
            f'"{endpoint}" has no IPv{version} address {where}; host names are not looked up'
        )
    return str(address)
