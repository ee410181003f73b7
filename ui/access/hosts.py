"""Allowed host names, allowed origins, and the sub-path of a reverse proxy.

Any other name that resolves to this machine may belong to an attacker (DNS rebinding).
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_DEFAULT_PORTS = {"http": 80, "https": 443}
_DISPLAYABLE_NAME = re.compile(
    r"[A-Za-z0-9_.:-]{1,253}"
)  # without characters that HTML or a shell interprets
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9_.~-]+)*")


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


def root_path_from(text: str) -> str:
    """Returns the sub-path in the form `/impasto`, or "" for the top of a host.

    Raises:
        ValueError: the text is not a path.
    """
    stripped = text.strip().strip("/")
    path = f"/{stripped}" if stripped else ""
    if not _ROOT_PATH.fullmatch(path) or any(set(part) == {"."} for part in path.split("/")[1:]):
        raise ValueError(f"{text} is not a path such as /impasto")
    return path


def displayable_name(host_header: str) -> str:
    """Returns the host name in a Host header or an origin, "" if it is missing or unsafe to display."""
    name, _ = _name_and_port(host_header)
    return name if _DISPLAYABLE_NAME.fullmatch(name) else ""


def _declared_name(text: str) -> str:
    """Returns the name in a value of `--allow-host`, which may be a name, a name with a port or an address."""
    text = text.strip().rstrip("/").lower()
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(text))  # an IPv6 address has colons, but no port
    return _name_and_port(text)[0] or text


def _name_and_port(netloc: str) -> tuple[str, int | None]:
    """Returns (name in lower case, port) of `name:port`; ("", None) if it is not valid."""
    try:
        parts = urlsplit(netloc if "://" in netloc else f"//{netloc}")
        name, port = parts.hostname or "", parts.port  # raises ValueError for a port that is not a number
    except ValueError:
        return "", None
    if parts.username is not None or parts.path or parts.query or parts.fragment:
        return "", None
    return name, port


@dataclass(frozen=True)
class Hosts:
    """The values that a request's Host and Origin headers may have."""

    names: frozenset[str]
    # Bound to every address: each IP address of this machine is allowed. DNS rebinding needs a name, so numbers are safe.
    any_address: bool
    # Names of `--allow-host`, which the artist declared to be this studio's.
    declared: frozenset[str] = frozenset()

    @classmethod
    def of(cls, host: str, allowed: tuple[str, ...] = ()) -> Hosts:
        """Returns the names of a server bound to `host`, and `allowed` besides: names, `name:port` or addresses."""
        declared = {_declared_name(name) for name in allowed}
        names = {host.lower(), *declared}
        if is_loopback(host):
            names |= _LOOPBACK
        any_address = host in ("", "0.0.0.0", "::")
        if any_address:
            machine = socket.gethostname().lower()
            names |= _LOOPBACK | {machine, f"{machine}.local"}
        return cls(frozenset(names), any_address, frozenset(declared))

    def allows(self, host_header: str) -> bool:
        """Returns True for an allowed Host header, with or without a port."""
        name, _ = _name_and_port(host_header)
        if not name or "://" in host_header:
            return False
        if name in self.names:
            return True
        if self.any_address:
            with contextlib.suppress(ValueError):
                return bool(ipaddress.ip_address(name))
        return False

    def is_own_origin(self, origin: str, host_header: str, forwarded_host: str = "") -> bool:
        """Returns True if the page that sent a request is one of this studio's.

        Browsers send the same name and port in Origin and Host. A reverse proxy may drop the port from Host, replace
        it by its own, or send an internal name. That is accepted for names of `--allow-host` only, and not if Host has
        another port: another program on the same machine could then send requests.

        Args:
            host_header: an allowed one.
            forwarded_host: the X-Forwarded-Host header. The page of another site can't set it without the
                permission of this server, which never gives it.
        """
        name, port = _name_and_port(origin)
        if not name or "://" not in origin:
            return False
        default_port = _DEFAULT_PORTS.get(urlsplit(origin).scheme)
        forwarded = forwarded_host.partition(",")[0].strip()
        known = [_name_and_port(host_header)]
        if forwarded and self.allows(forwarded):
            known.append(_name_and_port(forwarded))
        if any(name == other and (port or default_port) == (at or default_port) for other, at in known):
            return True
        dropped = {None, *_DEFAULT_PORTS.values()}
        return name in self.declared and all(at in dropped for other, at in known if other == name)
