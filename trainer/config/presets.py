"""Presets for a style, a character or a concept, scaled by the number of pictures and the kind of base model.

The number of steps is the number of epochs times the pictures, divided by the batch size, and longer where
buckets do not fill their batches: each picture is seen equally often, whatever the shapes of the others. Guides of other
trainers agree on about 80 epochs for a character, and on more for a style with few pictures. For the bundled
base model, which is small and trained from scratch, the values were measured (benchmarks/NOTES.md). For SDXL
they are those that the guides agree on (learning rate 1e-4, as in the SDXL guide of sd-scripts), not measured
here yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings for one kind of subject."""

    epochs: int  # on SDXL
    min_steps: int
    max_steps: int
    settings: dict[str, Any]
    small_base_settings: dict[str, Any]  # override `settings` on a base model narrower than SDXL
    small_base_epochs: int


PRESETS = {
    # Every picture shows the style: captions are dropped more often, so that it appears without being
    # prompted. Feed-forward layers are trained too, since attention alone misses the colours. The small base
    # has no attention in the layers that decide on colour, and decides on it at high noise levels: there
    # convolutions are trained too, and all noise levels have the same weight.
    "style": Preset(
        epochs=60,
        min_steps=200,
        max_steps=3000,
        settings={
            "rank": 16,
            "alpha": 16.0,
            "learning_rate": 1e-4,
            "batch": 2,
            "caption_dropout": 0.1,
            "min_snr_gamma": 5.0,
            "train_feed_forward": True,
        },
        small_base_settings={"learning_rate": 3e-3, "batch": 4, "min_snr_gamma": 0.0, "network": "locon"},
        small_base_epochs=40,
    ),
    # One character in many poses: alpha is half of the rank, so that the base keeps its other knowledge.
    "character": Preset(
        epochs=80,
        min_steps=200,
        max_steps=2500,
        settings={
            "rank": 16,
            "alpha": 8.0,
            "learning_rate": 2e-4,
            "batch": 2,
            "caption_dropout": 0.05,
            "min_snr_gamma": 5.0,
        },
        small_base_settings={"learning_rate": 1e-3, "batch": 4},
        small_base_epochs=80,
    ),
    # An object, a pose or a garment: a low rank is enough, and combines well with other LoRAs.
    "concept": Preset(
        epochs=70,
        min_steps=200,
        max_steps=2500,
        settings={
            "rank": 8,
            "alpha": 8.0,
            "learning_rate": 1e-4,
            "batch": 2,
            "caption_dropout": 0.05,
            "min_snr_gamma": 5.0,
        },
        small_base_settings={"learning_rate": 8e-4, "batch": 4},
        small_base_epochs=70,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Length of a training relative to its preset."""

    epochs_factor: float  # also of the smallest and largest number of steps
    learning_rate_factor: float
    large_base_settings: dict[str, Any]  # override the preset's on a base model as wide as SDXL


PACES = {
    # A first test of pictures and captions. On SDXL a step at 768 px costs about half of a step at 1024 px.
    "quick": Pace(epochs_factor=0.5, learning_rate_factor=1.0, large_base_settings={"resolution": 768}),
    "balanced": Pace(epochs_factor=1.0, learning_rate_factor=1.0, large_base_settings={}),
    # With noise from small batches, the distance that the weights travel grows with the learning rate times
    # the square root of the steps: twice the steps at 0.7 of the rate go about as far, with less noise.
    # Calculated, not measured yet.
    "thorough": Pace(epochs_factor=2.0, learning_rate_factor=0.7, large_base_settings={}),
}


def preset_values(
    name: str,
    pictures: int,
    own: Mapping[str, Any] | None = None,
    *,
    small: bool = True,
    epoch_length: Callable[[Mapping[str, Any]], float] | None = None,
    processes: int = 1,
) -> dict[str, Any]:
    """Settings for `config_from`: those of the preset, those that depend on `own`, and `own` itself.

    Args:
        name: key of PRESETS.
        pictures: number of pictures, each counted as often as it is repeated.
        own: settings of the user; they override the preset.
        small: True if the base model is narrower than SDXL, as the bundled one is.
        epoch_length: from settings to the batches of an epoch divided by those of full buckets, an EpochLength
            of trainer/dataset/exposures.py; None if all pictures have the same shape.
        processes: processes of the training, each of which computes its own batches.
    """
    own = own or {}
    preset, pace = PRESETS[name], PACES[own.get("pace", "balanced")]
    base_settings = preset.small_base_settings if small else pace.large_base_settings
    values = {**preset.settings, **base_settings, "preset": name}
    values["learning_rate"] *= pace.learning_rate_factor
    values |= own
    if "steps" not in own:
        epochs = pace.epochs_factor * (preset.small_base_epochs if small else preset.epochs)
        # With regularisation pictures, every second picture of a batch is one of them.
        pictures_per_epoch = pictures * 2 if own.get("prior_folder") else pictures
        low, high = (round(pace.epochs_factor * steps) for steps in (preset.min_steps, preset.max_steps))
        full_batches = max(low, min(high, round(pictures_per_epoch * epochs / values["batch"])))
        batches = full_batches * (epoch_length(values) if epoch_length else 1.0)
        values["steps"] = max(1, round(batches / (values.get("accumulation", 1) * processes)))
    values.setdefault("warmup_steps", max(1, values["steps"] // 20))
    values.setdefault("checkpoint_every", max(25, values["steps"] // 4))
    if values.get("optimizer") == "schedulefree":
        values.setdefault("schedule", "constant")
    if (
        values.get("optimizer") == "prodigy"
    ):  # Prodigy estimates the rate itself and multiplies it by this factor
        for rate in ("learning_rate", "text_encoder_1_learning_rate", "text_encoder_2_learning_rate"):
            values[rate] = own.get(rate, 1.0)
    return values
