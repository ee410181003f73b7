"""Memory and processors that this process may use: the machine's, or less in a container.

Linux limits a container through control groups (cgroups), which psutil and the processor affinity don't show: a
container with 2 GB on a host with 64 GB reads 64 GB, and the kernel kills it as soon as it uses more than 2.
Interface files: https://docs.kernel.org/admin-guide/cgroup-v2.html and .../cgroup-v1/memory.html.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUPS, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_UNLIMITED = 2**60  # version 1 writes a number near 2**63 where there is no limit


@dataclass(frozen=True)
class _Interface:
    """File names of a version of control groups."""

    memory_limit: str
    memory_usage: str
    file_cache: str  # key of memory.stat: file pages that the kernel drops when memory is short
    processor_files: tuple[str, ...]  # one file "QUOTA PERIOD", or a file for each


_V2 = _Interface("memory.max", "memory.current", "inactive_file", ("cpu.max",))
_V1 = _Interface(
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_inactive_file",
    ("cpu.cfs_quota_us", "cpu.cfs_period_us"),
)


@dataclass(frozen=True)
class ContainerLimits:
    """Limits of the control groups that this process belongs to; None where there is no limit.

    Attributes:
        memory: bytes that the processes of the container may use together.
        free_memory: bytes of them that are free, or hold files that the kernel drops when memory is short.
        processors: processors' worth of time, such as 1.5.
    """

    memory: int | None = None
    free_memory: int | None = None
    processors: float | None = None


def container_limits(cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> ContainerLimits:
    """Returns the tightest limits of all control groups above this process; of none outside Linux.

    Args:
        cgroups: folder where the control groups are mounted.
        membership: the file that names the process's groups, a line `ID:CONTROLLERS:PATH` each.
    """
    memory: list[int] = []
    free: list[int] = []
    processors: list[float] = []
    for controllers, root, path in _hierarchies(cgroups, membership):
        interface = _V1 if controllers else _V2
        for folder in _group_and_ancestors(root, path):
            if not controllers or "memory" in controllers:
                limit = _first_number(folder / interface.memory_limit)
                if limit is not None and limit < _UNLIMITED:
                    memory.append(limit)
                    free.append(max(0, limit - _used_memory(folder, interface)))
            if not controllers or "cpu" in controllers:
                words = [word for name in interface.processor_files for word in _words(folder / name)]
                numbers = [int(word) for word in words if word.isdecimal()]  # "max" and -1 are no limit
                if len(numbers) == 2 and all(numbers):
                    processors.append(numbers[0] / numbers[1])
    return ContainerLimits(min(memory, default=None), min(free, default=None), min(processors, default=None))


def available_memory() -> int:
    """Returns the bytes of main memory that can be allocated now without swapping."""
    machine, container = psutil.virtual_memory().available, container_limits().free_memory
    return machine if container is None else min(machine, container)


def total_memory() -> int:
    """Returns the bytes of main memory that all programs can use together."""
    machine, container = psutil.virtual_memory().total, container_limits().memory
    return machine if container is None else min(machine, container)


def processor_count() -> int:
    """Returns the number of processors that this process can keep busy, at least 1.

    A container's quota is rounded down: threads beyond it are stopped in the middle of a parallel loop, and the
    others wait for them.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = container_limits().processors
    return affinity if quota is None else max(1, min(affinity, math.floor(quota)))


def describe_limits(limits: ContainerLimits) -> str:
    """Returns `limits of the container: 2.0 GB of memory, 1.5 processors`; an empty text without limits."""
    parts = []
    if limits.memory is not None:
        parts.append(f"{limits.memory / 10**9:.1f} GB of memory")
    if limits.processors is not None:
        parts.append(f"{limits.processors:g} processor{'s' * (limits.processors != 1)}")
    return f"limits of the container: {', '.join(parts)}" if parts else ""


def _hierarchies(cgroups: Path, membership: Path) -> Iterator[tuple[list[str], Path, str]]:
    """Yields (controllers, mount folder, path of the group); version 2 has no list of controllers."""
    for line in _lines(membership):
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        controllers = names.split(",") if names else []
        if controllers:
            mounts = [cgroups / names, *(cgroups / controller for controller in controllers)]
        else:  # "unified" where both versions are mounted
            mounts = [cgroups / "unified", cgroups] if number == "0" else []
        root = next((mount for mount in mounts if mount.is_dir()), None)
        if root is not None:
            yield controllers, root, path


def _group_and_ancestors(root: Path, path: str) -> Iterator[Path]:
    """Yields the folders of a group and of all groups above it.

    Inside a container, the path can be that of the host while the container's own group is mounted at the root,
    so that the folders between do not exist.
    """
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for length in range(len(parts), -1, -1):
        folder = root.joinpath(*parts[:length])
        if folder.is_dir():
            yield folder


def _used_memory(folder: Path, interface: _Interface) -> int:
    """Returns the bytes that a group uses, without file pages that the kernel drops when memory is short."""
    used = _first_number(folder / interface.memory_usage) or 0
    for line in _lines(folder / "memory.stat"):
        key, _, number = line.partition(" ")
        if key == interface.file_cache and number.isdecimal():
            used -= int(number)
    return max(0, used)


def _first_number(path: Path) -> int | None:
    words = _words(path)
    return int(words[0]) if words and words[0].isdecimal() else None


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
