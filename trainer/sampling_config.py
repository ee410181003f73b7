"""What may be asked to be drawn, declared once: for the command line, the page, a training on its way and the warm process."""

from __future__ import annotations

import dataclasses
import re
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import problem_with, setting
from trainer.errors import ConfigError

MAX_PROMPTS, MAX_STRENGTHS, MAX_LETTERS = 16, 32, 4000
MAX_FILES = 4  # of a mix


@dataclass(frozen=True)
class SamplerSpec:
    """A way from noise to a picture: a scheduler of diffusers."""

    label: str  # as A1111 names it
    schedule: str  # of noise levels, as A1111 names it; "": the base's own
    scheduler: str  # class of diffusers
    options: dict[str, Any]
    draws_noise: bool = False  # in each step


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
}


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Prompts x strengths, at one seed."""

    prompts: tuple[str, ...] = setting(
        (), "Prompts", group="draw", help="One picture each at every strength."
    )
    negative: str = setting(
        "", "Negative prompt", group="draw", help="What the pictures are steered away from."
    )
    strengths: tuple[float, ...] = setting(
        (0.0, 0.25, 0.5, 0.75, 1.0), "Strengths", group="draw", help="0 is the base model's own picture."
    )
    seed: int = setting(
        0, "Seed", group="draw", low=0, high=2**31 - 1, help="Of the first prompt; each further one adds 1."
    )
    steps: int = setting(16, "Steps", group="draw", low=1, high=200, help="Denoising steps.")
    guidance: float = setting(
        5.0, "Guidance", group="draw", low=0.0, high=50.0, help="How closely the prompt is followed."
    )
    sampler: str = setting(
        "euler", "Sampler", group="draw", choices=tuple(SAMPLERS), help="How noise becomes a picture."
    )
    width: int = setting(
        0, "Width", unit="px", group="draw", low=0, high=4096, help="0 is the base's native size."
    )
    height: int = setting(
        0, "Height", unit="px", group="draw", low=0, high=4096, help="0 is the base's native size."
    )
    clip_skip: int = setting(
        2,
        "Clip skip",
        group="draw",
        low=2,
        high=12,
        help="Layer of the text encoders, from the end; 2 is SDXL's own.",
    )
    fast: bool = setting(
        False,
        "Fast preview",
        group="draw",
        help="About the same picture for a third of the work, and marked so: judge a LoRA by true ones.",
    )


_HINTS = typing.get_type_hints(SamplingConfig)


def sampling_config_from(values: dict[str, Any]) -> SamplingConfig:
    """A request from loose values (form, command, command line). Raises ConfigError with every problem found."""
    declared = {field.name: field for field in dataclasses.fields(SamplingConfig)}
    said: dict[str, Any] = {}
    for name, value in values.items():
        if name not in declared:
            raise ConfigError([f"{name!r} is nothing that can be asked of a drawing"])
        if name == "strengths" and isinstance(value, list | tuple):
            value = tuple(
                float(one) if isinstance(one, int) and not isinstance(one, bool) else one for one in value
            )
        elif name == "guidance" and type(value) is int:
            value = float(value)
        said[name] = tuple(value) if isinstance(value, list) else value
    problems = [
        problem for name, value in said.items() if (problem := problem_with(declared[name], value, _HINTS))
    ]
    problems += [] if problems else _contradictions(SamplingConfig(**said))
    if problems:
        raise ConfigError(problems)
    return SamplingConfig(**said)


def _contradictions(request: SamplingConfig) -> list[str]:
    problems = []
    if not 1 <= len(request.prompts) <= MAX_PROMPTS or any(
        not 0 < len(p.strip()) <= MAX_LETTERS for p in request.prompts
    ):
        problems.append(f"write 1 to {MAX_PROMPTS} prompts of at most {MAX_LETTERS} characters")
    if not 1 <= len(request.strengths) <= MAX_STRENGTHS or any(
        not -1 <= value <= 2 for value in request.strengths
    ):
        problems.append(f"strengths must be 1 to {MAX_STRENGTHS} numbers from -1 to 2")
    if any(0 < side < 64 for side in (request.width, request.height)):
        problems.append("width and height must be 0 or at least 64")
    return problems


def picture_name(prompt: int, strength: float) -> str:
    """`p00_s0.25.png` of the first prompt; strengths that two digits can't tell apart keep all of theirs."""
    short = f"{strength:.2f}"
    return f"p{prompt:02d}_s{short if float(short) == strength else repr(strength)}.png"


def parse_weighted_file(text: str) -> tuple[Path, float]:
    """`FILE` or `FILE=WEIGHT`, read from the right since file names may hold `=`. Raises ConfigError."""
    name, equals, number = text.rpartition("=")
    try:
        return (Path(name), checked_weight(float(number))) if equals and name else (Path(text), 1.0)
    except ValueError:
        return Path(text), 1.0


def checked_weight(weight: Any) -> float:
    """How much of one file goes into a mix. Raises ConfigError."""
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not -2 <= weight <= 2:
        raise ConfigError([f"the weight of a LoRA must be from -2 to 2, not {weight}"])
    return float(weight)


def sampler_description(sampler: str) -> str:
    """As A1111 writes it into a picture."""
    solver = SAMPLERS[sampler]
    return f"Sampler: {solver.label}" + (f", Schedule type: {solver.schedule}" if solver.schedule else "")


@dataclass(frozen=True, kw_only=True)
class SamplingLimits:
    """What memory allows a drawing; without limits when all is 0."""

    pixels: int = 0  # of all pictures of one pass
    tile: int = 0  # px, side of the tiles that a picture is decoded in


NO_LIMITS = SamplingLimits()


PROMPTS = 4  # captions that are drawn where no prompts are given


STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


_FLAG = re.compile(r"\s--(\w+)(?:\s+|$)")


_NUMBERS: dict[str, tuple[str, type, float, float]] = {
    "w": ("width", int, 64, 4096),
    "h": ("height", int, 64, 4096),
    "d": ("seed", int, 0, 2**31 - 1),
    "l": ("guidance", float, 0, 50),
    "s": ("steps", int, 1, 200),
}


def parse_prompt_line(line: str) -> tuple[str, dict[str, Any]]:
    """Splits a sample prompt line into its prompt and the settings of its flags. Raises ConfigError."""
    text, *rest = _FLAG.split(f" {line}")
    facts: dict[str, Any] = {}
    for flag, value in zip(rest[::2], rest[1::2], strict=True):
        if flag == "n":
            facts["negative"] = value.strip()
            continue
        name, kind, low, high = _NUMBERS.get(flag, ("", str, 0, 0))
        try:
            number = kind(value.strip())
        except ValueError:
            number = None
        if not name or number is None or not low <= number <= high:
            known = ", ".join(f"--{key}" for key in ("n", *_NUMBERS))
            raise ConfigError(
                [f"sample prompt {line!r}: --{flag} {value.strip()} is not understood; there are {known}"]
            )
        facts[name] = number
    return text.strip(), facts
