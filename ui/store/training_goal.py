"""The form settings of a project (`.impasto/settings.json`) that decide crops, checks and the trigger word."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import PRESET_NAMES, TrainConfig
from trainer.dataset.buckets import BucketPlan
from trainer.headers.base_model import bucket_geometry
from ui.store.project_settings import read_settings

_MAX_SIDE = 16_384  # px


@dataclass(frozen=True)
class TrainingGoal:
    """The preset, trigger word and buckets of a project's next training."""

    preset: str
    trigger: str
    plan: BucketPlan


def training_goal(folder: Path, models: Path) -> TrainingGoal:
    """Reads the goal of a project folder; missing and invalid fields have their default."""
    settings = read_settings(folder)
    settings = {**settings, **settings.get("advanced", {})}
    preset, base, trigger = (settings.get(name) for name in ("preset", "base", "trigger"))
    native_side, latent_factor = bucket_geometry(
        base if isinstance(base, str) and base else TrainConfig.base, models
    )
    plan = BucketPlan(
        side=_side(settings.get("resolution")) or native_side,
        latent_factor=latent_factor,
        bucket_step=_side(settings.get("bucket_step")) or TrainConfig.bucket_step,
        bucket_min=_side(settings.get("bucket_min")),
        bucket_max=_side(settings.get("bucket_max")),
        no_upscale=settings.get("no_upscale") in (True, "yes"),
    )
    return TrainingGoal(
        preset if preset in PRESET_NAMES else "style",
        trigger.strip() if isinstance(trigger, str) else "",
        plan,
    )


def _side(value: Any) -> int:
    """Returns a form field as px, 0 if it is empty or not a number."""
    try:
        return max(0, min(_MAX_SIDE, int(value)))
    except (TypeError, ValueError, OverflowError):
        return 0
