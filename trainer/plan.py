"""What a training will take, told before it starts: memory at its peak, minutes, the size of its file; and what it gives up to fit."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from trainer.config import RECOMPUTE, TrainConfig
from trainer.errors import ConfigError
from trainer.memory import Need, Shape, adapter_bytes, caching_bytes, drawing_bytes, file_bytes, held, step_bytes, step_flops
from trainer.run import write_atomically
from trainer.sdxl.weights import PARTS

GB = 10**9
STRIP = 5  # pictures drawn at once: one prompt at every strength
VERSION = 1  # of how things are counted
# Of a matrix product's speed, what a whole training step reaches (benchmarks/NOTES.md).
EFFICIENCY = 0.35
# CUDA's context and kernels, and what its allocator holds without using it.
CONTEXT_BYTES, SLACK = int(0.6 * GB), 1.05


@dataclass(frozen=True, kw_only=True)
class Plan:
    need: Need
    level: str  # of recomputation, one of RECOMPUTE
    own: int  # bytes that the process holds before any model is loaded
    budget: int  # bytes that there are for the whole process
    seconds: float  # of the steps alone
    file_bytes: int

    @property
    def peak(self) -> int:
        return int(self.own + self.need.peak)

    def line(self) -> str:
        """One sentence for the terminal and the page."""
        how = "" if self.level == "none" else f", computing {_AGAIN[self.level]} again to fit"
        return f"about {duration(self.seconds)}, {self.peak / GB:.1f} of {self.budget / GB:.1f} GB of memory{how}, a file of {self.file_bytes / 1e6:.1f} MB"


_AGAIN = {"feed-forward": "feed-forward layers", "deep": "feed-forward layers and the widest blocks", "all": "all blocks"}


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def plan(config: TrainConfig, shape: Shape, device: torch.device, kept: Path | None = None) -> Plan:
    """The cheapest way to fit. Raises ConfigError, with what to change, when even the most frugal one does not.

    Args:
        kept: a folder for what was counted, so that the same settings are counted once.
    """
    own, budget = own_bytes(device), memory_budget(config, device)
    counted = Counted(config, shape, kept)
    slack = SLACK if device.type == "cuda" else 1.0

    def need(level: str) -> Need:
        return Need(
            base=counted.number("base"), adapter=counted.number("adapter"), step=int(counted.number(level) * slack),
            before=counted.number("before"), drawing=counted.number("drawing"),
        )  # fmt: skip

    levels = RECOMPUTE if config.gradient_checkpointing == "auto" else (config.gradient_checkpointing,)
    level, needed = levels[0], need(levels[0])
    for level in levels:
        needed = need(level)
        if own + needed.peak <= budget:
            break
    else:
        raise ConfigError([_too_large(config, own + needed.peak, budget, level, needed)])
    flops = counted.number("flops") * config.accumulation * config.steps
    return Plan(
        need=needed, level=level, own=own, budget=budget, file_bytes=counted.number("file"),
        seconds=flops / (EFFICIENCY * matmul_rate(device, shape.dtype)),
    )  # fmt: skip


class Counted:
    """Numbers of one combination of settings and shapes, each counted when it is first asked for and kept on disk."""

    # What changes none of them.
    _ELSEWHERE = frozenset(
        {"name", "trigger", "base", "preset", "seed", "steps", "learning_rate", "memory_budget", "gradient_checkpointing", "title"}
    )

    def __init__(self, config: TrainConfig, shape: Shape, folder: Path | None) -> None:
        self.config, self.shape = config, shape
        facts = {name: value for name, value in dataclasses.asdict(config).items() if name not in self._ELSEWHERE}
        base = "".join((shape.configs / part / "config.json").read_text(encoding="utf-8") for part in PARTS)
        key = hashlib.sha256(repr((VERSION, facts, dataclasses.replace(shape, configs=Path()), base)).encode()).hexdigest()
        self.path = folder / "plans" / f"{key}.json" if folder else None
        self.known: dict[str, int] = {}
        with contextlib.suppress(OSError, ValueError, TypeError):
            if self.path:
                self.known = {str(name): int(value) for name, value in json.loads(self.path.read_text()).items()}

    def number(self, name: str) -> int:
        """Bytes of `base`, `adapter`, `before`, `drawing`, `file`, or of a step at a level of RECOMPUTE; `flops` of a step."""
        if name not in self.known:
            self.known.update(self._count(name))
            if self.path:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self.path, json.dumps(self.known).encode())
        return self.known[name]

    def _count(self, name: str) -> dict[str, int]:
        config, shape = self.config, self.shape
        if name in RECOMPUTE:
            return {name: step_bytes(config, shape, name)}
        if name == "before":
            return {name: caching_bytes(shape)}
        if name == "drawing":
            return {name: drawing_bytes(shape, rows=STRIP)}
        if name == "flops":
            return {name: step_flops(config, shape)}
        frozen, adapter = held(config, shape)
        return {"base": frozen, "adapter": adapter_bytes(config, adapter), "file": file_bytes(adapter)}


def _too_large(config: TrainConfig, peak: int, budget: int, level: str, need: Need) -> str:
    advice = []
    if config.batch > 1 and need.step > need.before:
        advice.append(f"batch {max(1, config.batch // 2)} with accumulation {2 * config.accumulation}")
    if config.gradient_checkpointing not in ("auto", "all"):
        advice.append("gradient_checkpointing auto")
    if config.precision in ("auto", "fp32"):
        advice.append("precision bf16")
    advice.append("a smaller resolution")
    return f"this training needs {peak / GB:.1f} GB (with gradient_checkpointing {level}) and {budget / GB:.1f} are there; try {', or '.join(advice)}"


def own_bytes(device: torch.device) -> int:
    """What the process takes of the device's memory before any model is there."""
    return CONTEXT_BYTES if device.type == "cuda" else psutil.Process().memory_info().rss


def memory_budget(config: TrainConfig, device: torch.device) -> int:
    """Bytes for the whole process: the set budget, or what it holds already and what is free beside it."""
    if config.memory_budget:
        return int(config.memory_budget * GB)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + CONTEXT_BYTES
    return psutil.virtual_memory().available + psutil.Process().memory_info().rss


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations a second of a matrix product, measured for a moment."""
    side = 4096 if device.type == "cuda" else 1024
    left = torch.randn(side, side, device=device, dtype=dtype)
    seconds = []
    for _ in range(4):
        begun = time.perf_counter()
        product = left @ left
        float(product[0, 0])  # waits for the device
        seconds.append(time.perf_counter() - begun)
    return 2 * side**3 / min(seconds)


def peak_bytes(device: torch.device) -> int:
    """The most that this process has held of the device's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) + CONTEXT_BYTES
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class SpillWatch:
    """Notices when a step suddenly takes many times longer while memory is full: the system has begun to move it elsewhere.

    Peers' users lose days to this: 30 to 150 times slower, without a word.
    """

    TIMES = 6.0

    def __init__(self, device: torch.device) -> None:
        self.device, self.usual, self.slow, self.told = device, [], 0, False

    def look(self, seconds: float) -> str | None:
        """A sentence, once, when steps have become slow for want of memory."""
        if len(self.usual) < 5:
            self.usual.append(seconds)
            return None
        self.slow = self.slow + 1 if seconds > self.TIMES * sorted(self.usual)[2] else 0
        if self.told or self.slow < 3 or not memory_is_full(self.device):
            return None
        self.told = True
        return (
            f"steps have become {seconds / sorted(self.usual)[2]:.0f} times slower because memory is full; "
            "stop, close other programs, and go on with a smaller batch or resolution"
        )


def memory_is_full(device: torch.device) -> bool:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free < 0.03 * total
    return psutil.virtual_memory().available < 0.05 * psutil.virtual_memory().total
