"""Plan of a training: peak memory, duration, size of the file, and the options that make it fit."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.config import RECOMPUTE, TrainConfig
from trainer.errors import MemoryShortError
from trainer.planning import memory
from trainer.planning.budget import GB, free_bytes, matmul_rate, memory_budget, process_bytes
from trainer.planning.measurements import Measurements
from trainer.planning.memory import MemoryEstimate, WorkloadShape
from trainer.runs import events
from trainer.runs.run import Run
from trainer.sampling_config import NO_LIMITS, PROMPTS, STRENGTHS, SamplingLimits, parse_prompt_line

# The share of a matrix product's speed that the operations of a training step reach, and the seconds that
# calling one operation takes; on a card, the host calls operations while the card computes
# (benchmarks/NOTES.md).
EFFICIENCY = 0.4
_CALL_SECONDS = {"cuda": 8e-6, "cpu": 30e-6}
# On a CPU the efficiency in bf16 is lower by this factor: matrix products gain from bf16, the other
# operations don't.
_BF16_SPEED = 0.65
_BF16_BYTES = 70_000_000  # on a CPU: oneDNN's compiled kernels, and weights reordered for them
# Work of a step with recomputed activations, relative to one without.
_WORK = {"none": 1.0, "feed-forward": 1.2, "deep": 1.45, "all": 1.5}
_SLACK = {"cuda": 1.05, "cpu": 1.15}  # memory that the allocator holds, relative to what is allocated


@dataclass(frozen=True, kw_only=True)
class MemoryOptions:
    """The options by which a training needs less memory."""

    level: str = "none"  # of activation checkpointing, one of RECOMPUTE
    optimizer: str = "adamw"
    quantised: str = "none"  # precision of the frozen base, one of QUANTISED
    sampling_limits: SamplingLimits = NO_LIMITS
    encoding_tile: int = 0  # px, side of the tiles that images are encoded in; 0 encodes them whole

    def chosen(self, config: TrainConfig) -> TrainConfig:
        """Returns the settings with every `auto` replaced by these options."""
        return dataclasses.replace(
            config, gradient_checkpointing=self.level, optimizer=self.optimizer, quantised_base=self.quantised
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The options of a training and its estimated cost."""

    estimate: MemoryEstimate
    options: MemoryOptions
    process: int  # bytes that the process holds before any model is loaded
    budget: int  # bytes for the whole process
    seconds: float  # of the steps, and of the samples during the training and at its end
    file_bytes: int
    has_8bit_optimizer: bool  # in place of the one that is set

    @property
    def level(self) -> str:
        """The level of activation checkpointing."""
        return self.options.level

    @property
    def peak(self) -> int:
        """Bytes of the whole process at the peak."""
        return int(self.process + self.estimate.peak)

    def event_fields(self) -> dict[str, Any]:
        """Returns the fields of the run's `planned` event."""
        return {
            "peak": self.peak,
            "seconds": round(self.seconds),
            "file": self.file_bytes,
            "level": self.level,
            "optimizer": self.options.optimizer,
            "quantised": self.options.quantised,
            "tile": self.options.encoding_tile,
        }

    def summary(self) -> str:
        """Returns one line for the terminal and the page."""
        options, limits = self.options, self.options.sampling_limits
        savings = {
            f"recomputing {_RECOMPUTED.get(self.level, '')}": self.level != "none",
            "an 8-bit optimizer": self.has_8bit_optimizer,
            f"the base model in {options.quantised}": options.quantised != "none",
            "images encoded in tiles": bool(options.encoding_tile),
            "samples generated in several passes": bool(limits.pixels),
            "samples decoded in tiles": bool(limits.tile),
        }
        used = ", ".join(text for text, is_used in savings.items() if is_used)
        memory_use = f"{self.peak / GB:.1f} of {self.budget / GB:.1f} GB of memory"
        fitting = f" (with {used}, to fit)" if used else ""
        return (
            f"about {duration(self.seconds)}, {memory_use}{fitting}, a file of {self.file_bytes / 1e6:.1f} MB"
        )


_RECOMPUTED = {
    "feed-forward": "feed-forward layers",
    "deep": "feed-forward layers and the widest blocks",
    "all": "all blocks",
}


def duration(seconds: float) -> str:
    """Returns a rounded duration: `45 s`, `12 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def plan(
    config: TrainConfig,
    shape: WorkloadShape,
    device: torch.device,
    cache_folder: Path | None = None,
    *,
    cached: int = 0,
) -> Plan:
    """Returns the plan with the cheapest options that fit into the memory budget.

    First more activations are recomputed, from feed-forward layers to all blocks; then the optimizer's state
    gets 8 bits; then the frozen base is quantised.

    Args:
        cache_folder: keeps traced numbers, so that the same settings are traced once.
        cached: bytes of latents and text embeddings that stay in the device's memory.

    Raises:
        MemoryShortError: if the options that save most don't fit; the message names settings to change.
    """
    in_bf16_on_cpu = device.type == "cpu" and shape.dtype == torch.bfloat16
    process = process_bytes(device) + (_BF16_BYTES if in_bf16_on_cpu else 0)
    budget = memory_budget(config, device)
    measurements = Measurements(config, shape, cache_folder)
    least: tuple[MemoryOptions, MemoryEstimate] | None = None
    for candidate in option_candidates(config, device):
        options, estimate = _estimate(measurements, candidate, budget - process, device, cached)
        if process + estimate.peak <= budget:
            rate = matmul_rate(device, shape.dtype) * (_BF16_SPEED if in_bf16_on_cpu else 1)
            steps = config.accumulation * config.steps
            training = _batch_seconds(measurements, options.level, device, rate) * steps
            return Plan(
                estimate=estimate,
                options=options,
                process=process,
                budget=budget,
                file_bytes=measurements.file_bytes(),
                seconds=training + _sampling_seconds(measurements, device, rate),
                has_8bit_optimizer=options.optimizer != config.optimizer,
            )
        least = (options, estimate) if least is None or estimate.peak < least[1].peak else least
    assert least is not None
    raise MemoryShortError([_too_large(config, process + least[1].peak, budget, *least)])


def config_of_earlier_run(run: Run) -> TrainConfig:
    """Returns the run's settings with the optimizer and precision that its first process chose.

    A resumed run can't choose them again: its checkpoint has that optimizer's state.
    """
    planned = [event for event in _planned_events(run) if "quantised" in event]
    if not planned:
        return run.config
    last = planned[-1]
    return dataclasses.replace(run.config, optimizer=last["optimizer"], quantised_base=last["quantised"])


def encoding_tile_of_earlier_run(run: Run) -> int:
    """Returns the side in px of the tiles in which the run encoded its images; 0 for whole images."""
    planned = _planned_events(run)
    return planned[0].get("tile", 0) if planned else 0


def _planned_events(run: Run) -> list[dict[str, Any]]:
    return [event for event in events.read(run.events)[0] if event["kind"] == "planned"]


def option_candidates(config: TrainConfig, device: torch.device) -> Iterator[MemoryOptions]:
    """Yields options in the order of their cost; a setting that is not `auto` is the same in all of them."""
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
    """Returns whether the default AdamW can be exchanged for bitsandbytes' 8-bit form."""
    is_default = config.optimizer == "adamw" and not config.optimizer_args
    return is_default and device.type == "cuda" and importlib.util.find_spec("bitsandbytes") is not None


def _estimate(
    measurements: Measurements,
    options: MemoryOptions,
    available_bytes: int,
    device: torch.device,
    cached: int,
) -> tuple[MemoryOptions, MemoryEstimate]:
    """Returns options with as few limits on encoding and sampling as memory allows, and their memory.

    A quantised base dequantises one layer's weight at a time; all other numbers of a step are the same. On a
    CPU, a checkpoint is written from main memory beside the next steps: a copy of the adapter, and the bytes
    of its file.
    """
    slack, is_cpu = _SLACK.get(device.type, 1.0), device.type == "cpu"
    master_bytes = measurements.adapter_bytes(options.optimizer)
    base = measurements.base_bytes(options.quantised)
    adapter = master_bytes + measurements.gradient_bytes(options.level)
    layer = measurements.layer_bytes() if options.quantised != "none" else 0
    limits, sampling = _sampling_limits(
        measurements, available_bytes - base - cached - adapter - layer, slack
    )
    checkpoint_copies = 2 * master_bytes if is_cpu else 0
    step = int(measurements.activation_bytes(options.level) * slack) + layer + checkpoint_copies
    # The cache grows beside the VAE on a CPU; a card loads it from main memory only afterwards.
    cached_while_encoding = cached if is_cpu else 0
    tile, encoding = _encoding(measurements, available_bytes - cached_while_encoding, slack)
    estimate = MemoryEstimate(
        base=base,
        cached=cached,
        adapter=adapter,
        step=step,
        before=encoding + cached_while_encoding,
        drawing=sampling + layer,
    )
    return dataclasses.replace(options, sampling_limits=limits, encoding_tile=tile), estimate


def _encoding(measurements: Measurements, available_bytes: int, slack: float) -> tuple[int, int]:
    """Returns (side of the tiles that images are encoded in, the bytes of caching).

    Images are encoded before captions, and the VAE is freed in between.
    """
    vae = measurements.vae_bytes()
    whole, tiled = (
        vae + int(measurements.encoding_bytes(in_tiles=in_tiles) * slack) for in_tiles in (False, True)
    )
    tile = 0
    if tiled < whole and whole > available_bytes:
        tile = memory.encoding_tile(memory.build("vae", measurements.shape.configs))
    return tile, max(tiled if tile else whole, measurements.text_encoding_bytes())


def _batch_seconds(measurements: Measurements, level: str, device: torch.device, rate: float) -> float:
    """Returns the seconds of one forward and backward pass.

    Args:
        rate: floating point operations per second of a matrix product.
    """
    flops = measurements.step_flops() * _WORK[level]
    return _seconds(flops, measurements.step_calls(level), device, rate)


def _sampling_seconds(measurements: Measurements, device: torch.device, rate: float) -> float:
    """Returns the seconds of all samples: during training, the strip of strengths, the check of the file.

    A sample is denoised with its prompt and without; two in five of a step's calls belong to the forward
    pass.
    """
    config = measurements.config
    steps = [parse_prompt_line(line)[1].get("steps", config.sample_steps) for line in config.sample_prompts]
    steps = steps or [config.sample_steps] * PROMPTS
    times = config.sample_at_start + ((config.steps - 1) // config.sample_every if config.sample_every else 0)
    rows = 2 * (sum(steps) * (times + len(STRENGTHS)) + 2 * steps[0])
    calls = 0.4 * measurements.step_calls("none") * max(steps) * (times + 3)
    return _seconds(measurements.sampling_flops() * rows, calls, device, rate)


def _seconds(flops: float, calls: float, device: torch.device, rate: float) -> float:
    computing, calling = flops / (EFFICIENCY * rate), calls * _CALL_SECONDS.get(device.type, 30e-6)
    return max(computing, calling) if device.type == "cuda" else computing + calling


def _sampling_limits(
    measurements: Measurements, available_bytes: int, slack: float
) -> tuple[SamplingLimits, int]:
    """Returns (limits with which sampling fits if any do, the bytes that it then takes)."""
    shape = measurements.shape
    vae, rows = measurements.vae_bytes(), shape.drawn_rows
    decoding = int(measurements.decoding_bytes(in_tiles=False) * slack)
    one_row = int(measurements.denoising_bytes(1) * slack)
    all_rows = int(measurements.denoising_bytes(rows) * slack)
    tile = 0
    if vae + decoding > available_bytes:
        tile = memory.decoding_tile(memory.build("vae", shape.configs))
        decoding = int(measurements.decoding_bytes(in_tiles=True) * slack)
    fitting = rows
    if vae + all_rows > available_bytes:
        bytes_per_row = max(1, (all_rows - one_row) / max(1, rows - 1))
        fitting = max(1, min(rows - 1, 1 + int((available_bytes - vae - one_row) / bytes_per_row)))
    denoising = one_row + (all_rows - one_row) * (fitting - 1) // max(1, rows - 1)
    pixels = fitting * shape.drawing.width * shape.drawing.height if fitting < rows else 0
    return SamplingLimits(pixels=pixels, tile=tile), vae + max(decoding, denoising)


# Upper bounds for SDXL, in bytes for each px of a sample: of decoding it, and of denoising it.
_DECODING, _DENOISING = 4096, 1024


def sampling_limits_beside_models(
    configs: Path, dtype: torch.dtype, size: tuple[int, int], rows: int, device: torch.device
) -> SamplingLimits:
    """Returns the limits for `rows` samples in the device's free memory, with UNet and VAE already loaded.

    Args:
        size: width and height of a sample in px.
    """
    free = free_bytes(device)
    if free > size[0] * size[1] * (_DECODING + _DENOISING * rows):
        return NO_LIMITS
    shape = WorkloadShape(configs=configs, dtype=dtype, width=size[0], height=size[1], drawn_rows=rows)
    measurements = Measurements(TrainConfig(), shape, None)
    available_bytes = free + measurements.vae_bytes()
    return _sampling_limits(measurements, available_bytes, _SLACK.get(device.type, 1.0))[0]


def _too_large(
    config: TrainConfig, peak: int, budget: int, options: MemoryOptions, estimate: MemoryEstimate
) -> str:
    """Returns the message for a training that fits with no options."""
    advice = []
    if config.batch > 1 and estimate.step > estimate.before:
        advice.append(f"batch {max(1, config.batch // 2)} with accumulation {2 * config.accumulation}")
    if config.gradient_checkpointing not in ("auto", "all"):
        advice.append("gradient_checkpointing auto")
    if config.quantised_base not in ("auto", "nf4"):
        advice.append("quantised_base auto")
    if config.precision in ("auto", "fp32"):
        advice.append("precision bf16")
    advice.append("a smaller resolution")
    precision = "" if options.quantised == "none" else f" and the base model in {options.quantised}"
    saving = f"gradient_checkpointing {options.level}{precision}"
    return (
        f"this training needs {peak / GB:.1f} GB of memory (with {saving}), "
        f"but only {budget / GB:.1f} GB are available; try {', or '.join(advice)}"
    )
