"""Sampling parameters, declared once for the command line, the page, training and the sampling worker."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trainer.config import Bounds, coerced_values, declaration, problems_in
from trainer.errors import ConfigError
from trainer.prompt_syntax import read_prompt

MAX_STRENGTHS, MAX_PROMPT_LENGTH = 32, 4000
MAX_FILES = 4  # LoRA files in one mix
PROMPTS = 4  # captions that are sampled if no prompts are set
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)

setting = partial(declaration.setting, group="sampling")


@dataclass(frozen=True)
class SamplerSpec:
    """A sampler: one of diffusers' schedulers with its options."""

    label: str  # A1111's name
    schedule: str  # A1111's name of the noise schedule; "" for the base model's own
    scheduler: str  # class of diffusers
    options: dict[str, Any]
    draws_noise: bool = False  # adds random noise in each step
    most_steps: int = 200


SAMPLERS: dict[str, SamplerSpec] = {
    "euler": SamplerSpec("Euler", "", "EulerDiscreteScheduler", {}),
    "euler_a": SamplerSpec("Euler a", "", "EulerAncestralDiscreteScheduler", {}, draws_noise=True),
    "dpmpp_2m": SamplerSpec("DPM++ 2M", "", "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmpp_2m_karras": SamplerSpec(
        "DPM++ 2M",
        "Karras",
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True},
    ),
    "dpmpp_2m_sde_karras": SamplerSpec(
        "DPM++ 2M SDE",
        "Karras",
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
        draws_noise=True,
    ),
    "ddim": SamplerSpec("DDIM", "", "DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "unipc": SamplerSpec("UniPC", "", "UniPCMultistepScheduler", {}),
    # For models distilled to few steps, which start at the last timestep: trailing spacing, A1111's SGM Uniform.
    "euler_sgm_uniform": SamplerSpec(
        "Euler", "SGM Uniform", "EulerDiscreteScheduler", {"timestep_spacing": "trailing"}
    ),
    "euler_a_sgm_uniform": SamplerSpec(
        "Euler a",
        "SGM Uniform",
        "EulerAncestralDiscreteScheduler",
        {"timestep_spacing": "trailing"},
        draws_noise=True,
    ),
    # Consistency models (Luo et al. 2023; Zheng et al. 2024) are distilled with 50 timesteps.
    "lcm": SamplerSpec("LCM", "", "LCMScheduler", {}, draws_noise=True, most_steps=50),
    "tcd": SamplerSpec("TCD", "", "TCDScheduler", {}, draws_noise=True, most_steps=50),
}


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Parameters of a grid of pictures: every prompt at every strength."""

    prompts: tuple[str, ...] = setting(
        (), "Prompts", help="Each prompt gives one picture for every strength."
    )
    negative: str = setting("", "Negative prompt", help="What the pictures should not show.")
    strengths: tuple[float, ...] = setting(
        STRENGTHS,
        "Strengths",
        bounds=Bounds(-1.0, 2.0),
        help="Strengths of the LoRA, each from -1 to 2; 0 is the base model without it.",
    )
    seed: int = setting(
        0,
        "Seed",
        bounds=Bounds(0, 2**31 - 1),
        help="Seed of the first prompt; each further prompt uses the next number.",
    )
    steps: int = setting(16, "Sampling steps", bounds=Bounds(1, 200), help="Number of denoising steps.")
    guidance: float = setting(
        5.0,
        "CFG scale",
        bounds=Bounds(0.0, 50.0),
        help="Guidance scale: higher values follow the prompt more closely; 1 is without guidance, in half the "
        "time.",
    )
    sampler: str = setting(
        "euler", "Sampler", choices=tuple(SAMPLERS), help="Sampling method, as A1111 names it."
    )
    width: int = setting(
        0, "Width", bounds=Bounds(0, 4096, "px"), help="Width; 0 takes the base model's native size."
    )
    height: int = setting(
        0, "Height", bounds=Bounds(0, 4096, "px"), help="Height; 0 takes the base model's native size."
    )
    clip_skip: int = setting(
        2,
        "Clip skip",
        bounds=Bounds(2, 12),
        help="Layer of the text encoders that is used, counted from the end; SDXL is made for 2.",
    )
    fast: bool = setting(
        False,
        "Fast preview",
        help="Approximates the picture with a third of the work (DeepCache) and marks it as a preview. "
        "Judge a LoRA by normal samples.",
    )


def sampling_config_from(values: Mapping[str, Any]) -> SamplingConfig:
    """Creates a SamplingConfig from values of form, command or command line.

    Raises:
        ConfigError: with an unknown name, or with every problem found.
    """
    names = {declared.name for declared in dataclasses.fields(SamplingConfig)}
    unknown = [f"unknown sampling parameter {name!r}" for name in values if name not in names]
    if unknown:
        raise ConfigError(unknown)
    config = _without_foreign_syntax(SamplingConfig(**coerced_values(SamplingConfig, values)))
    problems = problems_in(config) or [*_contradictions(config)]
    if problems:
        raise ConfigError(problems)
    return config


def _without_foreign_syntax(config: SamplingConfig) -> SamplingConfig:
    """Returns the config with prompts as `read_prompt` reads them; `prompt_notes` has sentences on what it omits.

    The negative prompt of a pasted `parameters` text is used where no other is given.
    """
    prompts = config.prompts if isinstance(config.prompts, tuple) else (None,)
    if not all(isinstance(text, str) for text in (*prompts, config.negative)):
        return config  # reported by `problems_in`
    read = [read_prompt(prompt) for prompt in config.prompts]
    negative = config.negative or next((prompt.negative for prompt in read if prompt.negative), "")
    return dataclasses.replace(
        config, prompts=tuple(prompt.prompt for prompt in read), negative=read_prompt(negative).prompt
    )


def _contradictions(config: SamplingConfig) -> Iterator[str]:
    lengths_fit = all(0 < len(prompt.strip()) <= MAX_PROMPT_LENGTH for prompt in config.prompts)
    if not config.prompts or not lengths_fit:
        yield f"write at least one prompt, and at most {MAX_PROMPT_LENGTH} characters in each"
    if not 1 <= len(config.strengths) <= MAX_STRENGTHS:
        yield f"strengths must be 1 to {MAX_STRENGTHS} numbers"
    most_steps = SAMPLERS[config.sampler].most_steps
    if config.steps > most_steps:
        yield f"the sampler {config.sampler} takes at most {most_steps} steps"
    if any(0 < side < 64 for side in (config.width, config.height)):
        yield "width and height must be 0 or at least 64"


def picture_name(prompt: int, strength: float) -> str:
    """File name of a picture: `p00_s0.25.png` for the first prompt at strength 0.25.

    A strength that two digits can't represent keeps all its digits, so that no two strengths share a name.
    """
    short = f"{strength:.2f}"
    return f"p{prompt:02d}_s{short if float(short) == strength else repr(strength)}.png"


def parse_weighted_file(text: str) -> tuple[Path, float]:
    """Splits `FILE=WEIGHT`; the weight of a plain `FILE` is 1. Raises ConfigError.

    The text is split at the last `=`, since a file name may contain one.
    """
    name, equals, number = text.rpartition("=")
    try:
        return (Path(name), checked_weight(float(number))) if equals and name else (Path(text), 1.0)
    except ValueError:
        return Path(text), 1.0


def checked_weight(weight: Any) -> float:
    """Returns the weight of one LoRA in a mix if it is a number from -2 to 2. Raises ConfigError."""
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not -2 <= weight <= 2:
        raise ConfigError([f"the weight of a LoRA must be from -2 to 2, not {weight}"])
    return float(weight)


def sampler_description(sampler: str) -> str:
    """Sampler and schedule in the format of A1111's `parameters` text."""
    spec = SAMPLERS[sampler]
    return f"Sampler: {spec.label}" + (f", Schedule type: {spec.schedule}" if spec.schedule else "")


@dataclass(frozen=True, kw_only=True)
class SamplingLimits:
    """Memory limits of sampling; 0 is unlimited."""

    pixels: int = 0  # of all pictures in one pass
    tile: int = 0  # side in px of the tiles that the VAE decodes


NO_LIMITS = SamplingLimits()

# kohya's flags of a sample prompt line: parameter, type, smallest and largest value.
_FLAG = re.compile(r"\s--(\w+)(?:\s+|$)")
_NUMBERS: dict[str, tuple[str, type, float, float]] = {
    "w": ("width", int, 64, 4096),
    "h": ("height", int, 64, 4096),
    "d": ("seed", int, 0, 2**31 - 1),
    "l": ("guidance", float, 0, 50),
    "s": ("steps", int, 1, 200),
}


def parse_prompt_line(line: str) -> tuple[str, dict[str, Any]]:
    """Splits a sample prompt line into its prompt and the parameters of its flags. Raises ConfigError."""
    text, *rest = _FLAG.split(f" {line}")
    parameters: dict[str, Any] = {}
    for flag, value in zip(rest[::2], rest[1::2], strict=True):
        if flag == "n":
            parameters["negative"] = value.strip()
            continue
        name, kind, low, high = _NUMBERS.get(flag, ("", str, 0, 0))
        try:
            number = kind(value.strip())
        except ValueError:
            number = None
        if not name or number is None or not low <= number <= high:
            known = ", ".join(f"--{key}" for key in ("n", *_NUMBERS))
            raise ConfigError(
                [f"sample prompt {line!r}: --{flag} {value.strip()} is not valid; the flags are {known}"]
            )
        parameters[name] = number
    if negative := parameters.get("negative"):
        parameters["negative"] = read_prompt(negative).prompt
    return read_prompt(text).prompt.strip(), parameters
