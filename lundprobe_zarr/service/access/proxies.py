"""Which reverse proxies are trusted, and the client's address as they state it."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from functools import lru_cache

from lundprobe_zarr.errors import UsageError

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
#: Hops of `X-Forwarded-For` that are looked at, from the nearest.
_MOST_HOPS = 20
_EXPECTED = "an IP address or a network, such as 10.0.0.7 or 10.0.0.0/24"


class Proxies:
    """The reverse proxies that are trusted.

    Parameters
    ----------
    addresses : sequence of str
        IP addresses and networks, such as 127.0.0.1 or 10.0.0.0/8. Raises `UsageError` for others.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self._networks = tuple(map(_network, addresses))
        self.trusts = lru_cache(maxsize=4096)(self._trusts)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def _trusts(self, address: str) -> bool:
        found = _address(address)
        return found is not None and any(found in network for network in self._networks)

    def client(self, peer: str, headers: Mapping[bytes, bytes]) -> str:
        """Return the address of the client of a request that came from `peer`.

        A trusted proxy states it in `X-Forwarded-For`, behind what its client stated: the last
        address that is not a trusted proxy's. From everybody else the header is ignored.
        """
        if not self._networks or not self.trusts(peer):
            return peer
        stated = headers.get(b"x-forwarded-for", b"").decode("latin-1").split(",")
        for hop in reversed(stated[-_MOST_HOPS:]):
            found = _address(hop.strip())
            if found is None:  # what a proxy of ours would not write
                break
            if not self.trusts(str(found)):
                return str(found)
        return peer


def _network(text: str) -> _Network:
    try:
        found = ipaddress.ip_network(text.strip())
    except ValueError as error:
        raise UsageError(f"--trusted-proxy {text}: {error}", expected=_EXPECTED) from None
    if not found.prefixlen:
        raise UsageError(f"--trusted-proxy {text}: this is everybody", expected=_EXPECTED)
    return found


def _address(text: str) -> _Address | None:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = getattr(found, "ipv4_mapped", None)  # as IPv6 sockets show IPv4
    return found if mapped is None else mapped


def is_loopback(host: str) -> bool:
    """Return whether nobody outside this machine reaches an address."""
    found = _address(host)
    return host == "localhost" if found is None else found.is_loopback
