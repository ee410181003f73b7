"""Settings of the validation loss: which pictures are held out, and how often it is measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from trainer.config import declaration
from trainer.config.declaration import Bounds

setting = partial(declaration.setting, group="validation")


@dataclass(frozen=True, kw_only=True)
class ValidationSettings:
    """Settings of validation."""

    validation_share: float = setting(
        0.0,
        "Validation split",
        bounds=Bounds(0.0, 0.5),
        help="Fraction of the pictures that are held out from training and used to measure the validation "
        "loss, which rises when the LoRA overfits. 0 is off.",
    )
    validation_folder: str = setting(
        "",
        "Validation folder",
        help="Folder of validation pictures, instead of a fraction of the training pictures.",
    )
    validation_every: int = setting(
        50,
        "Validate every",
        bounds=Bounds(1, 1_000_000, "steps"),
        help="Interval of validation. The weights of the step with the lowest validation loss are kept.",
    )
