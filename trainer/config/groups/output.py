"""Settings of what a training writes: checkpoints, samples, the file's format and logs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from trainer.config import declaration
from trainer.config.declaration import Bounds

FORMATS = ("kohya", "diffusers")

setting = partial(declaration.setting, group="output")


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """Settings of checkpoints, samples and files."""

    checkpoint_every: int = setting(
        100,
        "Save every",
        bounds=Bounds(1, 1_000_000, "steps"),
        help="Interval of checkpoints, from which a training can be resumed.",
    )
    keep_checkpoints: int = setting(
        4,
        "Keep last checkpoints",
        bounds=Bounds(1, 1000),
        help="Number of checkpoints on disk; older ones are deleted. You can compare them after training "
        "and choose one.",
    )
    sample_every: int = setting(
        0,
        "Sample every",
        bounds=Bounds(0, 1_000_000, "steps"),
        help="Interval of sample pictures during training; 0 generates only the final strip.",
    )
    sample_every_epochs: int = setting(
        0,
        "Sample every",
        bounds=Bounds(0, 1_000_000, "epochs"),
        help="Interval of sample pictures in epochs (passes over all pictures); 0 is off.",
    )
    sample_at_start: bool = setting(
        False,
        "Sample at first",
        help="Also generates samples before the first step, with the untrained base model, for comparison.",
    )
    sample_prompts: tuple[str, ...] = setting(
        (),
        "Sample prompts",
        help="Prompts of the samples and the strip, with kohya's flags where needed: --n negative prompt, "
        "--w and --h size, --d seed, --l CFG scale, --s steps. Empty takes captions of the dataset.",
    )
    sample_steps: int = setting(
        16,
        "Sampling steps",
        bounds=Bounds(1, 200),
        help="Denoising steps of each sample. More take longer and are cleaner.",
    )
    format: str = setting(
        "kohya",
        "File format",
        choices=FORMATS,
        help="Names of the weights in the file: kohya works in all tools, diffusers is for "
        "load_lora_weights.",
    )
    log_with: str = setting(
        "none",
        "Log with",
        choices=("none", "tensorboard", "wandb"),
        help="Also logs loss and learning rate to TensorBoard (in the run's folder: tensorboard --logdir) "
        "or to Weights & Biases.",
    )
