"""Allowed host names. Any other name that resolves to this machine may belong to an attacker (DNS rebinding)."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def is_loopback(host: str) -> bool:
    """Returns True if a server bound to `host` can be reached only from this machine."""
    if host.lower() == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def url(host: str, port: int) -> str:
    """Returns the address of a server, with brackets around an IPv6 host."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@dataclass(frozen=True)
class Hosts:
    """The values that a request's Host header may have."""

    names: frozenset[str]
    # Bound to every address: each IP address of this machine is allowed. DNS rebinding needs a name, so numbers are safe.
    any_address: bool

    @classmethod
    def of(cls, host: str, allowed: tuple[str, ...] = ()) -> Hosts:
        """Returns the names of a server bound to `host`, and `allowed` besides."""
        names = {host.lower(), *(name.lower() for name in allowed)}
        if is_loopback(host):
            names |= _LOOPBACK
        any_address = host in ("", "0.0.0.0", "::")
        if any_address:
            machine = socket.gethostname().lower()
            names |= _LOOPBACK | {machine, f"{machine}.local"}
        return cls(frozenset(names), any_address)

    def allows(self, host_header: str) -> bool:
        """Returns True for an allowed Host header, with or without a port."""
        try:
            parts = urlsplit(f"//{host_header}")
            name, _ = (
                parts.hostname or "",
                parts.port,
            )  # reading the port raises ValueError if it is not a number
        except ValueError:
            return False
        if not name or parts.username is not None or parts.path:
            return False
        if name in self.names:
            return True
        if self.any_address:
            with contextlib.suppress(ValueError):
                return bool(ipaddress.ip_address(name))
        return False
