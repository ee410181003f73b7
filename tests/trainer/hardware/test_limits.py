"""A container's limits of memory and processors count, not the machine's."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from trainer.hardware import limits
from trainer.hardware.limits import ContainerLimits, container_limits, describe_limits

GIB = 2**30


def groups(folder: Path, membership: str, files: dict[str, str]) -> ContainerLimits:
    for name, content in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    (folder / "self").write_text(membership)
    return container_limits(folder / "cgroup", folder / "self")


def test_version_2_limits_memory_and_processors(tmp_path: Path):
    result = groups(
        tmp_path,
        "0::/\n",
        {
            "memory.max": str(2 * GIB),
            "memory.current": str(GIB),
            "memory.stat": f"anon 1\ninactive_file {GIB // 4}",
            "cpu.max": "150000 100000",
        },
    )
    assert result == ContainerLimits(2 * GIB, GIB + GIB // 4, 1.5)


def test_the_tightest_of_nested_groups_counts(tmp_path: Path):
    result = groups(
        tmp_path,
        "0::/pod/box\n",
        {
            "pod/memory.max": str(2 * GIB),
            "pod/memory.current": str(2 * GIB),
            "pod/cpu.max": "100000 100000",
            "pod/box/memory.max": str(4 * GIB),
            "pod/box/memory.current": str(GIB),
            "pod/box/cpu.max": "max 100000",
        },
    )
    assert result == ContainerLimits(2 * GIB, 0, 1.0)


def test_a_group_without_limits_has_none(tmp_path: Path):
    assert groups(tmp_path, "0::/\n", {"memory.max": "max", "cpu.max": "max 100000"}) == ContainerLimits()
    assert container_limits(tmp_path / "absent", tmp_path / "absent") == ContainerLimits()


@pytest.mark.parametrize("path", ["/", "/docker/0a1b"], ids=["own path", "path of the host"])
def test_version_1_limits_memory_and_processors(tmp_path: Path, path: str):
    result = groups(
        tmp_path,
        f"4:memory:{path}\n2:cpu,cpuacct:{path}\n",
        {
            "memory/memory.limit_in_bytes": str(3 * GIB),
            "memory/memory.usage_in_bytes": str(2 * GIB),
            "memory/memory.stat": f"cache 5\ntotal_inactive_file {GIB}",
            "cpu,cpuacct/cpu.cfs_quota_us": "200000",
            "cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
    )
    assert result == ContainerLimits(3 * GIB, 2 * GIB, 2.0)


def test_version_1_without_limits_has_none(tmp_path: Path):
    result = groups(
        tmp_path,
        "4:memory:/\n1:cpu:/\n0::/\n",
        {
            "memory/memory.limit_in_bytes": "9223372036854771712",
            "memory/memory.usage_in_bytes": "1",
            "cpu/cpu.cfs_quota_us": "-1",
            "cpu/cpu.cfs_period_us": "100000",
            "unified/cgroup.procs": "1",
        },
    )
    assert result == ContainerLimits()


def test_memory_and_processors_stay_within_the_container(monkeypatch):
    monkeypatch.setattr(limits, "container_limits", lambda: ContainerLimits(2 * GIB, 100, 1.9))
    assert (limits.total_memory(), limits.available_memory()) == (
        min(2 * GIB, psutil.virtual_memory().total),
        100,
    )
    assert limits.processor_count() == 1
    monkeypatch.setattr(limits, "container_limits", lambda: ContainerLimits(2**70, 2**70, 0.5))
    assert limits.total_memory() == psutil.virtual_memory().total
    assert limits.processor_count() == 1
    monkeypatch.setattr(limits, "container_limits", lambda: ContainerLimits(processors=10_000.0))
    assert limits.processor_count() <= (os.cpu_count() or 1)


def test_the_plan_stays_within_the_container(monkeypatch):
    import torch

    from trainer.config import TrainConfig
    from trainer.planning.budget import free_bytes, memory_budget

    monkeypatch.setattr(limits, "container_limits", lambda: ContainerLimits(2 * GIB, GIB, 2.0))
    cpu = torch.device("cpu")
    assert free_bytes(cpu) == GIB
    assert memory_budget(TrainConfig(), cpu) <= GIB + psutil.Process().memory_info().rss + 10**8


def test_limits_are_described():
    assert describe_limits(ContainerLimits()) == ""
    assert describe_limits(ContainerLimits(2 * 10**9, 0, 1.5)) == (
        "limits of the container: 2.0 GB of memory, 1.5 processors"
    )
    assert describe_limits(ContainerLimits(processors=1.0)) == "limits of the container: 1 processor"
