"""What a project is aimed at, as its form settings say (`.impasto/settings.json`): base, preset, trigger word and buckets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import PRESET_NAMES, TrainConfig
from trainer.dataset.buckets import BucketPlan
from trainer.headers.base_model import bucket_geometry
from ui.store.project_settings import read_settings


@dataclass(frozen=True)
class TrainingGoal:
    preset: str
    trigger: str
    plan: BucketPlan


def training_goal(folder: Path, models: Path) -> TrainingGoal:
    """TrainingGoal of a project folder; what is not said, or can't be, is as usual."""
    kept = read_settings(folder)
    said = {**kept, **kept.get("advanced", {})}
    preset = said.get("preset")
    base = said.get("base")
    side, cell = bucket_geometry(base if isinstance(base, str) and base else TrainConfig.base, models)
    numbers = {
        name: _whole(said.get(name)) for name in ("resolution", "bucket_step", "bucket_min", "bucket_max")
    }
    plan = BucketPlan(
        side=numbers["resolution"] or side,
        latent_factor=cell,
        bucket_step=numbers["bucket_step"] or TrainConfig.bucket_step,
        bucket_min=numbers["bucket_min"],
        bucket_max=numbers["bucket_max"],
        no_upscale=said.get("no_upscale") in (True, "yes"),
    )
    trigger = said.get("trigger")
    return TrainingGoal(
        preset if preset in PRESET_NAMES else "style",
        trigger.strip() if isinstance(trigger, str) else "",
        plan,
    )


def _whole(value: Any) -> int:
    try:
        return max(0, min(16_384, int(value)))
    except (TypeError, ValueError, OverflowError):
        return 0
