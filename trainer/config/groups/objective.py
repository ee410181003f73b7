"""Settings of the loss: prediction type, timesteps, noise, masks and prior preservation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from trainer.config import declaration
from trainer.config.declaration import Bounds

SNR_WEIGHTINGS = ("min_snr", "soft_min_snr", "debiased", "none")
TIMESTEP_DISTRIBUTIONS = ("uniform", "logit_normal", "cubic_low", "cubic_high")

setting = partial(declaration.setting, group="objective")


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """Settings of noise and loss."""

    prediction_type: str = setting(
        "auto",
        "Prediction type",
        choices=("auto", "epsilon", "v_prediction"),
        help="What the UNet predicts: the noise (epsilon) or the velocity (v_prediction). auto takes it "
        "from the base model; a wrong type ruins the LoRA.",
    )
    zero_terminal_snr: str = setting(
        "auto",
        "Zero terminal SNR",
        choices=("auto", "on", "off"),
        help="Makes the last timestep pure noise (Lin et al. 2023), for v_prediction models. auto takes it "
        "from the base model.",
    )
    snr_weighting: str = setting(
        "min_snr",
        "SNR weighting",
        choices=SNR_WEIGHTINGS,
        help="Weight of each timestep in the loss: min_snr (Hang et al. 2023), soft_min_snr, its smooth "
        "form (Crowson et al. 2024), debiased (debiased estimation, Yu et al. 2023), or none, the same for "
        "all.",
    )
    min_snr_gamma: float = setting(
        5.0,
        "Min-SNR gamma",
        bounds=Bounds(0.0, 100.0),
        help="Gamma of min_snr and soft_min_snr: lower values weigh high noise levels more. 5 is usual, 0 "
        "disables the weighting.",
    )
    loss: str = setting(
        "mse",
        "Loss type",
        choices=("mse", "huber", "smooth_l1"),
        help="mse is the usual L2 loss. huber and smooth_l1 are less sensitive to pictures that differ from "
        "the rest.",
    )
    huber_delta: float = setting(
        0.1,
        "Huber delta",
        bounds=Bounds(1e-4, 100.0),
        help="Error above which huber and smooth_l1 grow linearly (huber_c); with a schedule, its smallest "
        "value.",
    )
    huber_schedule: str = setting(
        "snr",
        "Huber schedule",
        choices=("constant", "exponential", "snr"),
        help="Delta at each timestep: constant, exponential (falls from 1 to huber_delta), or by the "
        "signal-to-noise ratio.",
    )
    noise_offset: float = setting(
        0.0,
        "Noise offset",
        bounds=Bounds(0.0, 1.0),
        help="Shifts the noise of each channel, so that the model learns darker and brighter pictures. 0.03 "
        "to 0.1 is usual, 0 is off.",
    )
    noise_offset_random: bool = setting(
        False,
        "Random noise offset",
        help="Uses a random noise offset between 0 and noise_offset for each picture.",
    )
    multires_noise_iterations: int = setting(
        0,
        "Multires noise iterations",
        bounds=Bounds(0, 12, "levels"),
        help="Adds noise of lower resolutions (pyramid noise), for stronger light and dark. 6 is usual, 0 "
        "is off.",
    )
    multires_noise_discount: float = setting(
        0.3,
        "Multires noise discount",
        bounds=Bounds(0.0, 1.0),
        help="Strength of each lower resolution of multires noise, relative to the previous one.",
    )
    input_perturbation: float = setting(
        0.0,
        "Input perturbation",
        bounds=Bounds(0.0, 1.0),
        help="Adds noise to the UNet's input that is not in its target, against exposure bias (Ning et al. "
        "2023). 0.1 is usual, 0 is off.",
    )
    timestep_min: int = setting(
        0,
        "Min timestep",
        bounds=Bounds(0, 999),
        help="Lowest timestep that is trained; 0 is almost without noise.",
    )
    timestep_max: int = setting(
        999,
        "Max timestep",
        bounds=Bounds(0, 999),
        help="Highest timestep that is trained; 999 is almost pure noise.",
    )
    timestep_distribution: str = setting(
        "uniform",
        "Timestep sampling",
        choices=TIMESTEP_DISTRIBUTIONS,
        help="Which timesteps are trained more often: uniform, all the same; logit_normal (sigmoid), the "
        "middle; cubic_low, low noise, for detail; cubic_high, high noise, for composition.",
    )
    timestep_location: float = setting(
        0.0,
        "Logit mean",
        bounds=Bounds(-5.0, 5.0),
        help="Location of logit_normal: below 0 prefers low noise levels, above 0 high ones.",
    )
    timestep_scale: float = setting(
        1.0,
        "Logit std",
        bounds=Bounds(0.05, 10.0),
        help="Scale of logit_normal: smaller values stay closer to the location.",
    )
    mask: str = setting(
        "none",
        "Masked loss",
        choices=("none", "file", "alpha"),
        help="Area that is trained: none, the whole picture; file, where a mask is white (art.mask.png "
        "beside art.png, or masks/art.png); alpha, where the picture is not transparent.",
    )
    mask_outside: float = setting(
        0.0,
        "Loss weight outside the mask",
        bounds=Bounds(0.0, 1.0),
        help="Weight of the loss outside the mask; 0 ignores that area.",
    )
    mask_normalisation: str = setting(
        "area",
        "Normalise the masked loss",
        choices=("area", "none"),
        help="area: the masked loss is the mean over the mask's area, so that a picture with a small mask "
        "counts as much as others. none: the mean over the whole picture, so that a picture counts in "
        "proportion to its mask.",
    )
    prior_folder: str = setting(
        "",
        "Regularisation pictures",
        help="Folder of pictures of the class (for example other cats), trained as often as your own, so "
        "that the class keeps its look.",
    )
    prior_caption: str = setting(
        "",
        "Class prompt",
        help="Caption of regularisation pictures without one, and of base preservation; empty takes each "
        "caption without the trigger word.",
    )
    prior_weight: float = setting(
        1.0,
        "Prior loss weight",
        bounds=Bounds(0.0, 100.0),
        help="Weight of regularisation pictures and of base preservation in the loss.",
    )
    base_prior_share: float = setting(
        0.0,
        "Base preservation",
        bounds=Bounds(0.0, 0.9),
        help="Fraction of the pictures that train the LoRA to predict the same as the base model for the "
        "class prompt, so that the class keeps its look without regularisation pictures. 0 is off.",
    )
