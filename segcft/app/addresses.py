"""Addresses of computers."""

import ipaddress


def is_local(host: str) -> bool:
    """Whether an address is this computer's own.

    >>> is_local("127.0.0.1"), is_local("localhost"), is_local("::1"), is_local("0.0.0.0")
    (True, True, True, False)
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def network(client: tuple[str, int] | None) -> str:
    """What counts as one address: one of IPv4, or 64 bits of IPv6, which one computer can have to itself.

    >>> network(("192.0.2.7", 80)), network(("2001:db8::1:2:3:4", 80)), network(None)
    ('192.0.2.7', '2001:db8::/64', '')
    """
    host = client[0] if client else ""
    return str(ipaddress.ip_network((host.partition("%")[0], 64), strict=False)) if ":" in host else host


def without_port(host: str) -> str:
    """Address or name in a header ``Host``.

    >>> without_port("127.0.0.1:80"), without_port("[::1]:80"), without_port("localhost")
    ('127.0.0.1', '::1', 'localhost')
    """
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
