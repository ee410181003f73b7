"""Named settings: what a style, a character or a concept wants, from the number of pictures and the kind of base.

Steps are exposures of each picture divided by the batch. Peers' users agree on roughly 80 exposures a picture for a
character and more for a style with few pictures. On the bundled base, which is small and learns from nothing, the
figures were chosen by measurement (benchmarks/NOTES.md); on SDXL they are those that peers' guides agree on (learning
rate 1e-4, as in sd-scripts' guide to SDXL), not yet measured here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Preset:
    exposures: int  # how often each picture is seen
    steps_low: int
    steps_high: int
    settings: dict[str, Any]
    small: dict[str, Any]  # laid over `settings` on a base narrower than SDXL
    small_exposures: int
    reason: str


PRESETS = {
    "style": Preset(
        exposures=60,
        steps_low=200,
        steps_high=3000,
        settings={
            "rank": 16,
            "alpha": 16.0,
            "learning_rate": 1e-4,
            "batch": 2,
            "caption_dropout": 0.1,
            "min_snr_gamma": 5.0,
            "train_feed_forward": True,
        },
        small={"learning_rate": 3e-3, "batch": 4, "min_snr_gamma": 0.0, "network": "locon"},
        small_exposures=40,
        reason="A look in every picture: some captions dropped, so that it comes without being named; feed-forward layers too, "
        "since attention alone leaves colour behind. On a small base convolutions too, and all noise levels alike: it has no attention "
        "where it decides on colour, and does so at the high ones.",
    ),
    "character": Preset(
        exposures=80,
        steps_low=200,
        steps_high=2500,
        settings={
            "rank": 16,
            "alpha": 8.0,
            "learning_rate": 2e-4,
            "batch": 2,
            "caption_dropout": 0.05,
            "min_snr_gamma": 5.0,
        },
        small={"learning_rate": 1e-3, "batch": 4},
        small_exposures=80,
        reason="One being in many poses: half the scale, so that the base's other knowledge stays.",
    ),
    "concept": Preset(
        exposures=70,
        steps_low=200,
        steps_high=2500,
        settings={
            "rank": 8,
            "alpha": 8.0,
            "learning_rate": 1e-4,
            "batch": 2,
            "caption_dropout": 0.05,
            "min_snr_gamma": 5.0,
        },
        small={"learning_rate": 8e-4, "batch": 4},
        small_exposures=70,
        reason="A thing, a pose, a garment: a small rank is enough and mixes well.",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Pace:
    exposures: float  # times a preset's, and so its steps and their bounds
    rate: float  # times a preset's learning rate
    large: dict[str, Any]  # laid over a preset's settings on a base as wide as SDXL
    reason: str


PACES = {
    "quick": Pace(
        exposures=0.5,
        rate=1.0,
        large={"resolution": 768},
        reason="A first look, to see whether pictures and captions say what you mean: half the steps, and on SDXL three quarters of its side, "
        "where a step costs about half.",
    ),
    "balanced": Pace(
        exposures=1.0, rate=1.0, large={}, reason="The preset as it was measured, or as peers' guides agree."
    ),
    "thorough": Pace(
        exposures=2.0,
        rate=0.7,
        large={},
        reason="Twice the steps at 0.7 of the rate: what is learnt grows with rate times the square root of steps (the noise of batches), "
        "so it goes about as far, with less noise of single batches. Reckoned, not yet measured.",
    ),
}


def preset_values(
    name: str, pictures: int, said: dict[str, Any] | None = None, *, small: bool = True
) -> dict[str, Any]:
    """Loose settings for `config_from`: the preset's, what follows from `said` (the user's own), and `said` over all.

    Args:
        small: whether the base is narrower than SDXL, as the bundled one is.
    """
    preset, said = PRESETS[name], said or {}
    pace = PACES[said.get("pace", "balanced")]
    values = {**preset.settings, **(preset.small if small else pace.large), "preset": name}
    values["learning_rate"] *= pace.rate
    values |= said
    if "steps" not in said:
        seen = pictures * 2 if said.get("prior_folder") else pictures  # every second one is then of the class
        exposures = pace.exposures * (preset.small_exposures if small else preset.exposures)
        low, high = (round(pace.exposures * bound) for bound in (preset.steps_low, preset.steps_high))
        values["steps"] = max(low, min(high, round(seen * exposures / values["batch"])))
    values.setdefault("warmup_steps", max(1, values["steps"] // 20))
    values.setdefault("checkpoint_every", max(25, values["steps"] // 4))
    if values.get("optimizer") == "schedulefree":
        values.setdefault("schedule", "constant")
    if values.get("optimizer") == "prodigy":  # finds the rate itself and wants to be told 1
        for rate in ("learning_rate", "text_encoder_1_learning_rate", "text_encoder_2_learning_rate"):
            values[rate] = said.get(rate, 1.0)
    return values
