"""The names that the studio answers to. Another name that leads here may be another site's (DNS rebinding)."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a studio that is bound to `host`."""
    if host.lower() == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@dataclass(frozen=True)
class Hosts:
    names: frozenset[str]
    any_address: (
        bool  # bound to every address: each number of this machine is a name; numbers can't be rebound
    )

    @classmethod
    def of(cls, host: str, allowed: tuple[str, ...] = ()) -> Hosts:
        names = {host.lower(), *(name.lower() for name in allowed)}
        if is_loopback(host):
            names |= _LOOPBACK
        everywhere = host in ("", "0.0.0.0", "::")
        if everywhere:
            name = socket.gethostname().lower()
            names |= _LOOPBACK | {name, f"{name}.local"}
        return cls(frozenset(names), everywhere)

    def knows(self, host_header: str) -> bool:
        try:
            parts = urlsplit(f"//{host_header}")
            name, _ = parts.hostname or "", parts.port
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
