"""Time of a strip in one pass and in one run for each strength, and of a change of strength or LoRA."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import BUNDLED
from benchmarks.report import Figure
from trainer.adapter.lora import Adapter
from trainer.adapter.targets import layer_specs
from trainer.config import TrainConfig
from trainer.lora_file.writer import save_lora
from trainer.sampling.pipeline import WarmBase
from trainer.sampling_config import SamplingConfig
from trainer.sdxl.base import open_base

GROUP = "preview"
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def figures(folder: Path, *, base: Path = BUNDLED, quick: bool = False, repeat: int = 3) -> list[Figure]:
    """Returns the figures of the preview group."""
    warm = WarmBase(open_base(base.name, base.parent))
    files = [
        random_lora(warm, folder / f"{name}.safetensors", seed) for seed, name in enumerate(("one", "other"))
    ]
    steps, repeat = (2, 1) if quick else (16, repeat)
    request = SamplingConfig(prompts=("a cat",), strengths=STRENGTHS, steps=steps)
    warm.generate(files[0], request)  # reads the prompt

    def one_by_one() -> None:
        for strength in STRENGTHS:
            warm.generate(files[0], dataclasses.replace(request, strengths=(strength,)))

    strip, single, fast = timed(
        [
            lambda: warm.generate(files[0], request),
            one_by_one,
            lambda: warm.generate(files[0], dataclasses.replace(request, fast=True)),
        ],
        repeat,
    )
    words = f"{base.name}, strip of {len(STRENGTHS)}, {steps} steps"
    return [
        Figure(group=GROUP, what=f"{words}: one run for each strength", value=single, unit="s"),
        Figure(group=GROUP, what=f"{words}: one pass", value=strip, unit="s", floor=single),
        Figure(group=GROUP, what=f"{words}: fast preview", value=fast, unit="s", floor=strip),
        Figure(
            group=GROUP, what="another strength", value=1000 * strength_seconds(warm, files[0]), unit="ms"
        ),
        Figure(
            group=GROUP,
            what="another LoRA of the same shape",
            value=1000 * swap_seconds(warm, files),
            unit="ms",
        ),
    ]


def random_lora(warm: WarmBase, path: Path, seed: int) -> Path:
    """Writes a LoRA with random weights for the UNet and returns its path."""
    adapter = Adapter()
    adapter.attach("unet", warm.unet, layer_specs(TrainConfig(), {"unet": warm.unet})["unet"])
    adapter.init_weights(seed)
    with torch.no_grad():
        for vector in adapter.vectors():
            vector.add_(
                torch.randn(vector.shape, generator=torch.Generator().manual_seed(seed)).to(vector.device),
                alpha=0.01,
            )
    save_lora(path, adapter, {})
    adapter.detach("unet", warm.unet)
    return path


def timed(ways: list[Callable[[], object]], repeat: int) -> list[float]:
    """Returns the median seconds of each function; the functions are called in turn, `repeat` times."""
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(repeat):
        for way, taken in zip(ways, times, strict=True):
            begun = time.perf_counter()
            way()
            taken.append(time.perf_counter() - begun)
    return [statistics.median(taken) for taken in times]


def strength_seconds(warm: WarmBase, file: Path) -> float:
    """Measures a change of strength between two images of one file, without generating them."""
    adapter = warm.adapter_of([(file, 1.0)])

    def change() -> None:
        adapter.strength.value = torch.tensor(STRENGTHS, device=warm.device)

    return timed([change], 20)[0]


def swap_seconds(warm: WarmBase, files: list[Path]) -> float:
    """Measures the change to another file of the same shape: reading it and copying its matrices."""
    warm.adapter_of([(files[0], 1.0)])
    return statistics.mean(
        timed([lambda: warm.adapter_of([(files[1], 1.0)]), lambda: warm.adapter_of([(files[0], 1.0)])], 3)
    )
