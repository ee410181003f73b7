"""What a training will take, told before it starts: memory at its peak, minutes, the size of its file; and what it gives up to fit."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import hashlib
import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from trainer.atomic_files import write_atomically
from trainer.config import RECOMPUTE, TrainConfig
from trainer.errors import MemoryShortError
from trainer.planning import memory
from trainer.planning.memory import MemoryEstimate, WorkloadShape
from trainer.runs import events
from trainer.runs.run import Run
from trainer.sampling_config import NO_LIMITS, PROMPTS, STRENGTHS, SamplingLimits, parse_prompt_line
from trainer.sdxl.weights import PARTS

GB = 10**9
VERSION = 6  # of how things are counted
# Of a matrix product's speed, what the operations of a training step reach; and what calling one of them takes, which a
# card's host does while the card computes (benchmarks/NOTES.md).
EFFICIENCY = 0.4
_BF16_SPEED = 0.65  # times that on a CPU: products of bf16 are faster there, what is between them is not
_CALL_SECONDS = {"cuda": 8e-6, "cpu": 30e-6}
# Times the work of a step, with what is computed again.
_WORK = {"none": 1.0, "feed-forward": 1.2, "deep": 1.45, "all": 1.5}
# CUDA's context and kernels; on a CPU the code, tables and vocabularies that a training reads in (benchmarks/NOTES.md).
CONTEXT_BYTES, LIBRARY_BYTES = int(0.6 * GB), 45_000_000
_BF16_BYTES = 70_000_000  # on a CPU: programs that are made for the products, and weights laid out for them
# What an allocator holds beside what is asked of it.
_SLACK = {"cuda": 1.05, "cpu": 1.15}


@dataclass(frozen=True, kw_only=True)
class MemoryOptions:
    """What a training gives up to fit."""

    level: str = "none"  # of recomputation, one of RECOMPUTE
    optimizer: str = "adamw"
    quantised: str = "none"  # how the frozen base is kept, one of QUANTISED
    room: SamplingLimits = NO_LIMITS  # for drawing
    encoding_tile: int = 0  # px, of the tiles that pictures are cached in; 0 takes them whole

    def chosen(self, config: TrainConfig) -> TrainConfig:
        """The settings with every choice made."""
        return dataclasses.replace(
            config, gradient_checkpointing=self.level, optimizer=self.optimizer, quantised_base=self.quantised
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    estimate: MemoryEstimate
    options: MemoryOptions
    own: int  # bytes that the process holds before any model is loaded
    budget: int  # bytes that there are for the whole process
    seconds: float  # of the steps, and of the pictures that are drawn on the way and at the end
    file_bytes: int
    eight_bits: bool  # whether the optimizer was exchanged for its 8-bit form

    @property
    def level(self) -> str:
        return self.options.level

    @property
    def peak(self) -> int:
        return int(self.own + self.estimate.peak)

    def facts(self) -> dict[str, Any]:
        """For the run's `planned` event."""
        return {
            "peak": self.peak,
            "seconds": round(self.seconds),
            "file": self.file_bytes,
            "level": self.level,
            "optimizer": self.options.optimizer,
            "quantised": self.options.quantised,
            "tile": self.options.encoding_tile,
        }

    def line(self) -> str:
        """One sentence for the terminal and the page."""
        gave = [f"computing {_AGAIN[self.level]} again"] if self.level != "none" else []
        gave += ["the optimizer in 8 bits"] if self.eight_bits else []
        gave += [f"the frozen base as {self.options.quantised}"] if self.options.quantised != "none" else []
        gave += ["pictures encoded in tiles"] if self.options.encoding_tile else []
        gave += ["pictures drawn in several passes"] if self.options.room.pixels else []
        gave += ["pictures decoded in tiles"] if self.options.room.tile else []
        how = f", {', '.join(gave)} to fit" if gave else ""
        return f"about {duration(self.seconds)}, {self.peak / GB:.1f} of {self.budget / GB:.1f} GB of memory{how}, a file of {self.file_bytes / 1e6:.1f} MB"


_AGAIN = {
    "feed-forward": "feed-forward layers",
    "deep": "feed-forward layers and the widest blocks",
    "all": "all blocks",
}


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def plan(
    config: TrainConfig,
    shape: WorkloadShape,
    device: torch.device,
    kept: Path | None = None,
    *,
    cached: int = 0,
) -> Plan:
    """The way to fit that costs least. Raises MemoryShortError, with what to change, when even the most frugal one does not.

    First more is computed again, from feed-forward layers to all blocks; then the optimizer keeps 8 bits; then the frozen
    base is quantised.

    Args:
        kept: a folder for what was counted, so that the same settings are counted once.
        cached: bytes that the device remembers of what the frozen parts said.
    """
    in_bf16_on_cpu = device.type == "cpu" and shape.dtype == torch.bfloat16
    own, budget = (
        process_bytes(device) + (_BF16_BYTES if in_bf16_on_cpu else 0),
        memory_budget(config, device),
    )
    counted = Measurements(config, shape, kept)
    least: tuple[MemoryOptions, MemoryEstimate] | None = None
    for way in _ways(config, device):
        way, need = _fitted(counted, shape, way, budget - own, device, cached)
        if own + need.peak <= budget:
            rate = matmul_rate(device, shape.dtype) * (_BF16_SPEED if in_bf16_on_cpu else 1)
            seconds = _batch_seconds(counted, way.level, device, rate) * config.accumulation * config.steps
            return Plan(
                estimate=need,
                options=way,
                own=own,
                budget=budget,
                file_bytes=counted.number("file"),
                seconds=seconds + _drawing_seconds(counted, device, rate),
                eight_bits=way.optimizer != config.optimizer,
            )
        least = (way, need) if least is None or need.peak < least[1].peak else least
    assert least is not None
    raise MemoryShortError([_too_large(config, own + least[1].peak, budget, *least)])


def config_of_earlier_run(run: Run) -> TrainConfig:
    """The run's settings, with what an earlier process of it has chosen and a resumed one can't choose anew."""
    said = [
        event for event in events.read(run.events)[0] if event["kind"] == "planned" and "quantised" in event
    ]
    if not said:
        return run.config
    return dataclasses.replace(
        run.config, optimizer=said[-1]["optimizer"], quantised_base=said[-1]["quantised"]
    )


def encoding_tile_of_earlier_run(run: Run) -> int:
    """Side in px of the tiles that the run's first process encoded its pictures in; 0 when it took them whole."""
    said = [event for event in events.read(run.events)[0] if event["kind"] == "planned"]
    return said[0].get("tile", 0) if said else 0


def _ways(config: TrainConfig, device: torch.device) -> Iterator[MemoryOptions]:
    """From the one that gives up least; a setting that is no `auto` is kept."""
    levels = RECOMPUTE if config.gradient_checkpointing == "auto" else (config.gradient_checkpointing,)
    smaller = "adamw8bit" if _has_8bit(config, device) else config.optimizer
    chosen = config.quantised_base
    kinds = [(config.optimizer, "none"), (smaller, "none"), (smaller, "int8"), (smaller, "nf4")]
    if chosen != "auto":
        kinds = [(config.optimizer, chosen), (smaller, chosen)]
    for optimizer, quantised in dict.fromkeys(kinds):
        for level in levels:
            yield MemoryOptions(level=level, optimizer=optimizer, quantised=quantised)


def _has_8bit(config: TrainConfig, device: torch.device) -> bool:
    """Whether AdamW, left as it is by default, can be exchanged for its form of 8 bits."""
    is_default = config.optimizer == "adamw" and not config.optimizer_args
    return is_default and device.type == "cuda" and importlib.util.find_spec("bitsandbytes") is not None


def _fitted(
    counted: Measurements,
    shape: WorkloadShape,
    way: MemoryOptions,
    there: int,
    device: torch.device,
    cached: int,
) -> tuple[MemoryOptions, MemoryEstimate]:
    """A way that encodes and draws with as few limits as `there` bytes allow, and what it takes.

    A quantised base makes one layer's weight again at a time; all else that a step passes through stays as it is. A checkpoint
    is written from main memory beside the next steps: a copy, and the bytes of its file.
    """
    slack = _SLACK.get(device.type, 1.0)
    base = counted.number(f"base, {way.quantised}")
    adapter = counted.number(f"adapter, {way.optimizer}") + counted.number(f"stays, {way.level}")
    layer = counted.number("layer") if way.quantised != "none" else 0
    room, drawing = _room(counted, shape, there - base - cached - adapter - layer, slack)
    copies = 2 * counted.number(f"adapter, {way.optimizer}") if device.type == "cpu" else 0
    step = int(counted.number(way.level) * slack) + layer + copies
    kept = cached if device.type == "cpu" else 0  # beside the VAE too; a card remembers what is read later
    tile, before = _encoding(counted, shape, there - kept, slack)
    need = MemoryEstimate(
        base=base, cached=cached, adapter=adapter, step=step, before=before + kept, drawing=drawing + layer
    )
    return dataclasses.replace(way, room=room, encoding_tile=tile), need


def _encoding(counted: Measurements, shape: WorkloadShape, there: int, slack: float) -> tuple[int, int]:
    """(side of the tiles that pictures are cached in, the bytes that caching takes): pictures first, then captions."""
    vae = counted.number("vae")
    whole, in_tiles = (vae + int(counted.number(name) * slack) for name in ("encoding", "encoding in tiles"))
    tile = (
        memory.encoding_tile(memory.build("vae", shape.configs)) if in_tiles < whole and whole > there else 0
    )
    return tile, max(in_tiles if tile else whole, counted.number("reading"))


def _batch_seconds(counted: Measurements, level: str, device: torch.device, rate: float) -> float:
    """Of one forward and backward pass.

    Args:
        rate: floating point operations a second of a matrix product.
    """
    return _seconds(counted.number("flops") * _WORK[level], counted.number(f"calls, {level}"), device, rate)


def _drawing_seconds(counted: Measurements, device: torch.device, rate: float) -> float:
    """Of all pictures: samples at each of their steps, the strip, and the one that is drawn from memory and from the file.

    A picture is denoised with its prompt and without; of a step's calls, two in five are the forward pass's.
    """
    config = counted.config
    steps = [
        parse_prompt_line(line)[1].get("steps", config.sample_steps) for line in config.sample_prompts
    ] or [config.sample_steps] * PROMPTS
    times = config.sample_at_start + ((config.steps - 1) // config.sample_every if config.sample_every else 0)
    rows = 2 * (sum(steps) * (times + len(STRENGTHS)) + 2 * steps[0])  # denoised once
    calls = 0.4 * counted.number("calls, none") * max(steps) * (times + 3)
    return _seconds(counted.number("drawing flops") * rows, calls, device, rate)


def _seconds(flops: float, calls: float, device: torch.device, rate: float) -> float:
    computing, calling = flops / (EFFICIENCY * rate), calls * _CALL_SECONDS.get(device.type, 30e-6)
    return max(computing, calling) if device.type == "cuda" else computing + calling


def _room(
    counted: Measurements, shape: WorkloadShape, there: int, slack: float
) -> tuple[SamplingLimits, int]:
    """(limits of a drawing that takes at most `there` bytes if any does, the bytes it takes)."""
    vae, rows = counted.number("vae"), shape.drawn_rows
    whole, one, all_rows = (
        int(counted.number(name) * slack) for name in ("decoding", "denoising, 1", f"denoising, {rows}")
    )
    in_tiles = vae + whole > there
    decoding = int(counted.number("decoding in tiles") * slack) if in_tiles else whole
    fitting = rows
    if vae + all_rows > there:
        fitting = max(
            1, min(rows - 1, 1 + int((there - vae - one) / max(1, (all_rows - one) / max(1, rows - 1))))
        )
    denoising = one + (all_rows - one) * (fitting - 1) // max(1, rows - 1)
    area = shape.drawing.width * shape.drawing.height
    tile = memory.decoding_tile(memory.build("vae", shape.configs)) if in_tiles else 0
    return SamplingLimits(pixels=fitting * area if fitting < rows else 0, tile=tile), vae + max(
        decoding, denoising
    )


# More bytes than SDXL takes, for each px of a picture: decoded, and of each one that is denoised beside it.
_DECODING, _DENOISING = 4096, 1024


def room_beside(
    configs: Path, dtype: torch.dtype, size: tuple[int, int], rows: int, device: torch.device
) -> SamplingLimits:
    """What the device's free memory allows a drawing of `rows` pictures, with UNet and VAE there already."""
    free = free_bytes(device)
    if free > size[0] * size[1] * (_DECODING + _DENOISING * rows):
        return NO_LIMITS
    shape = WorkloadShape(configs=configs, dtype=dtype, width=size[0], height=size[1], drawn_rows=rows)
    counted = Measurements(TrainConfig(), shape, None)
    return _room(counted, shape, free + counted.number("vae"), _SLACK.get(device.type, 1.0))[0]


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return psutil.virtual_memory().available


class Measurements:
    """Numbers of one combination of settings and shapes, each counted when it is first asked for and kept on disk."""

    # What changes them, but for what is part of a number's name.
    _GROUPS = ("training", "adapter", "optimizer")
    _ELSEWHERE = (
        "steps",
        "learning_rate",
        "memory_budget",
        "gradient_checkpointing",
        "quantised_base",
        "optimizer",
        "text_encoder_stop",
    )

    def __init__(self, config: TrainConfig, shape: WorkloadShape, folder: Path | None) -> None:
        self.config, self.shape = config, shape
        counting = [
            field.name for field in dataclasses.fields(config) if field.metadata["group"] in self._GROUPS
        ]
        facts = {name: getattr(config, name) for name in counting if name not in self._ELSEWHERE}
        base = "".join((shape.configs / part / "config.json").read_text(encoding="utf-8") for part in PARTS)
        key = hashlib.sha256(
            repr((VERSION, facts, dataclasses.replace(shape, configs=Path(), drawn_rows=0), base))
            .replace("WorkloadShape(", "Shape(")
            .encode()
        ).hexdigest()
        self.path = folder / "plans" / f"{key}.json" if folder else None
        self.known: dict[str, int] = {}
        with contextlib.suppress(OSError, ValueError, TypeError):
            if self.path:
                self.known = {
                    str(name): int(value) for name, value in json.loads(self.path.read_text()).items()
                }

    def number(self, name: str) -> int:
        """Bytes of what `_count` knows; `flops` of a step."""
        if name not in self.known:
            self.known.update(self._count(*name.split(", ")))
            if self.path:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self.path, json.dumps(self.known).encode())
        return self.known[name]

    def _count(self, what: str, kind: str = "") -> dict[str, int]:
        config, shape = self.config, self.shape
        match what:
            case "base":
                return {f"base, {kind}": memory.build_frozen(config, shape, kind)[0]}
            case "adapter" | "file":
                adapter = memory.build_frozen(config, shape)[1]
                optimizer = kind or config.optimizer
                return {
                    f"adapter, {optimizer}": memory.adapter_bytes(config, adapter, optimizer),
                    "file": memory.file_bytes(adapter),
                }
            case "stays" | "calls" | "none" | "feed-forward" | "deep" | "all":
                level = kind or what
                step = memory.trace_step(config, shape, level)
                return {level: step.passing, f"stays, {level}": step.staying, f"calls, {level}": step.calls}
            case "layer":
                return {what: memory.layer_bytes(shape)}
            case "encoding" | "encoding in tiles":
                return {what: memory.encoding_bytes(shape, in_tiles=what != "encoding")}
            case "reading":
                return {what: memory.text_encoding_bytes(shape)}
            case "vae":
                return {what: memory.weight_bytes(memory.build("vae", shape.configs))}
            case "denoising":
                return {f"denoising, {kind}": memory.denoising_bytes(shape, int(kind))}
            case "decoding" | "decoding in tiles":
                return {what: memory.decoding_bytes(shape, in_tiles=what != "decoding")}
            case "flops":
                return {what: memory.step_flops(shape, config.batch)}
            case "drawing flops":
                return {what: memory.step_flops(shape.drawing, 1) // 2}
        raise KeyError(what)


def _too_large(config: TrainConfig, peak: int, budget: int, way: MemoryOptions, need: MemoryEstimate) -> str:
    advice = [_smaller_batch(config)] if config.batch > 1 and need.step > need.before else []
    if config.gradient_checkpointing not in ("auto", "all"):
        advice.append("gradient_checkpointing auto")
    if config.quantised_base not in ("auto", "nf4"):
        advice.append("quantised_base auto")
    if config.precision in ("auto", "fp32"):
        advice.append("precision bf16")
    advice.append("a smaller resolution")
    frugal = f"gradient_checkpointing {way.level}{'' if way.quantised == 'none' else f' and the base as {way.quantised}'}"
    return f"this training needs {peak / GB:.1f} GB (with {frugal}) and {budget / GB:.1f} are there; try {', or '.join(advice)}"


def _smaller_batch(config: TrainConfig) -> str:
    return f"batch {max(1, config.batch // 2)} with accumulation {2 * config.accumulation}"


def process_bytes(device: torch.device) -> int:
    """What the process takes of the device's memory before any model is there."""
    return CONTEXT_BYTES if device.type == "cuda" else psutil.Process().memory_info().rss + LIBRARY_BYTES


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


def give_back_memory() -> None:
    """What was freed goes back to the system, so that the next thing that is made finds room: glibc would keep it in pieces."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def peak_bytes(device: torch.device) -> int:
    """The most that this process has held of the device's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) + CONTEXT_BYTES
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
