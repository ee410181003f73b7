"""Settings of the optimizer, the learning rate schedule and the moving average of weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from trainer.config import declaration
from trainer.config.declaration import Bounds

OPTIMIZERS = ("adamw", "adamw8bit", "prodigy", "adafactor", "lion", "schedulefree", "came", "custom")
SCHEDULES = (
    "constant",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "rex",
    "inverse_sqrt",
    "wsd",
)

setting = partial(declaration.setting, group="optimizer")


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """Settings of optimizer and schedule."""

    optimizer: str = setting(
        "adamw",
        "Optimizer",
        choices=OPTIMIZERS,
        help="adamw is a safe choice; it stores its moments in 8 bits if only that fits (CUDA with "
        "bitsandbytes), adamw8bit always does. prodigy finds the learning rate itself (set it to 1). lion "
        "needs about a third of AdamW's learning rate. schedulefree needs no schedule. custom uses "
        "optimizer_class.",
    )
    optimizer_class: str = setting(
        "",
        "Optimizer class",
        help="For optimizer custom: dotted name of any installed PyTorch optimizer, such as "
        "pytorch_optimizer.Ranger21.",
    )
    optimizer_args: tuple[str, ...] = setting(
        (),
        "Optimizer arguments",
        help="Extra optimizer arguments as name=value, such as betas=(0.9, 0.99) or eps=1e-6.",
    )
    weight_decay: float = setting(
        0.01,
        "Weight decay",
        bounds=Bounds(0.0, 10.0),
        help="Pulls the LoRA's weights towards zero in each step, a mild protection against overfitting.",
    )
    schedule: str = setting(
        "cosine",
        "LR scheduler",
        choices=SCHEDULES,
        help="Course of the learning rate over the training: constant holds it, cosine lowers it slowly at "
        "first, wsd holds it and lowers it at the end.",
    )
    warmup_steps: int = setting(
        10,
        "LR warmup",
        bounds=Bounds(0, 100_000, "steps"),
        help="Steps in which the learning rate rises from 0, for a stable start.",
    )
    restarts: int = setting(
        3,
        "LR scheduler cycles",
        bounds=Bounds(1, 100),
        help="Number of restarts of the cosine_with_restarts scheduler.",
    )
    schedule_power: float = setting(
        2.0,
        "LR scheduler power",
        bounds=Bounds(0.1, 10.0),
        help="Exponent of the polynomial scheduler: 1 falls linearly, higher powers fall sooner.",
    )
    decay_share: float = setting(
        0.2,
        "LR decay fraction",
        bounds=Bounds(0.01, 1.0),
        help="Last fraction of the steps, in which the wsd scheduler lowers the learning rate.",
    )
    min_rate: float = setting(
        0.0,
        "Minimum LR ratio",
        bounds=Bounds(0.0, 1.0),
        help="Fraction of the learning rate that the scheduler ends at; 0 ends at zero.",
    )
    ema_decay: float = setting(
        0.0,
        "EMA decay",
        bounds=Bounds(0.0, 0.99999),
        help="Saves and samples an exponential moving average of the weights (such as 0.99), which is "
        "smoother than the last step. The decay is lower at the start. 0 is off.",
    )
