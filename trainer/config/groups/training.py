"""Settings of the training loop and of its memory: steps, batch, precision, gradient checkpointing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from trainer.config import declaration
from trainer.config.declaration import Bounds

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
RECOMPUTE = ("none", "feed-forward", "deep", "all")  # from the fastest to the one that needs least memory
QUANTISED = ("none", "int8", "fp8", "nf4")

setting = partial(declaration.setting, group="training")


def _resolution_problem(name: str, side: int) -> str | None:
    return f"{name} must be 0 or at least 64, not {side}" if 0 < side < 64 else None


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Settings of steps, speed and memory."""

    steps: int = setting(
        300,
        "Steps",
        bounds=Bounds(1, 1_000_000),
        help="Number of optimizer steps (max train steps). Too few learn little, too many overfit.",
    )
    batch: int = setting(
        4,
        "Batch size",
        bounds=Bounds(1, 256, "pictures"),
        help="Pictures in one batch. Larger batches give smoother gradients and need more memory.",
    )
    accumulation: int = setting(
        1,
        "Gradient accumulation",
        bounds=Bounds(1, 256, "batches"),
        help="Batches whose gradients are averaged for one step: the effect of a larger batch without its "
        "memory, but each step takes that many times longer.",
    )
    resolution: int = setting(
        0,
        "Resolution",
        bounds=Bounds(0, 4096, "px"),
        check=_resolution_problem,
        help="Training resolution: buckets have about the area of a square with this side. 0 takes the "
        "native resolution of the base model (1024 for SDXL).",
    )
    precision: str = setting(
        "auto",
        "Precision",
        choices=PRECISIONS,
        help="Mixed precision of the frozen base model; the LoRA itself is always trained in fp32. auto "
        "takes bf16 on CUDA, and on a CPU whichever of bf16 and fp32 is faster.",
    )
    gradient_checkpointing: str = setting(
        "auto",
        "Gradient checkpointing",
        choices=("auto", *RECOMPUTE),
        help="Recomputes activations in the backward pass instead of storing them: needs less memory, and "
        "makes steps up to a third slower. auto recomputes only as much as the memory requires.",
    )
    quantised_base: str = setting(
        "auto",
        "Quantised base model",
        choices=("auto", *QUANTISED),
        help="Stores the linear layers of the frozen UNet in 8 or 4 bits. int8 and fp8 need half of the "
        "memory of bf16 (int8 is more exact), nf4 a quarter; steps are slower and the base model is less "
        "exact. auto quantises only if the training does not fit otherwise, first with int8, then with nf4.",
    )
    memory_budget: float = setting(
        0.0,
        "Memory budget",
        bounds=Bounds(0.0, 10_000.0, "GB"),
        help="Memory that the automatic settings may use, for example 12 to plan for a 12 GB card. 0 takes "
        "the free memory of the device.",
    )
    compile: str = setting(
        "auto",
        "Compile (torch.compile)",
        choices=("auto", "on", "off"),
        help="Compiles the UNet's transformer blocks: the first step takes about a minute longer, later "
        "steps are faster; the result is cached for later trainings. auto compiles on CUDA with Triton, for "
        "models of SDXL's size and at least 300 steps. On a CPU it needs a C++ compiler.",
    )
    max_grad_norm: float = setting(
        1.0,
        "Gradient clipping",
        bounds=Bounds(0.0, 1000.0),
        help="Max grad norm: larger gradients are scaled down to this norm, which protects against "
        "outliers. 0 disables clipping.",
    )
