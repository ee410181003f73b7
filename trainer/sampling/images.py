"""Generated images as PNG files with metadata, and the strip that shows one prompt at several strengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps, PngImagePlugin

from trainer.atomic_files import replacing
from trainer.sampling.deepcache import WORDS
from trainer.sampling_config import SamplingConfig, sampler_description
from trainer.version import SOFTWARE


@dataclass(frozen=True, kw_only=True)
class GeneratedImage:
    prompt_index: int
    strength: float
    picture: Image.Image


def save_image(
    drawn: GeneratedImage,
    request: SamplingConfig,
    path: Path,
    *,
    base: str,
    loras: Sequence[tuple[str, float]],
) -> None:
    """A PNG that carries its parameters as A1111 writes them.

    Args:
        loras: names, and how much of each the whole strength means.
    """
    prompt = request.prompts[drawn.prompt_index]
    width, height = drawn.picture.size
    facts = PngImagePlugin.PngInfo()
    facts.add_text("Software", SOFTWARE)
    negative = f"\nNegative prompt: {request.negative}" if request.negative else ""
    call = "".join(
        f" <lora:{name}:{drawn.strength * weight:g}>" for name, weight in loras if drawn.strength * weight
    )
    facts.add_itxt(
        "parameters",
        f"{prompt}{call}{negative}\nSteps: {request.steps}, {sampler_description(request.sampler)}, CFG scale: {request.guidance:g}, "
        f"Seed: {request.seed + drawn.prompt_index}, Size: {width}x{height}, Model: {base}{f', {WORDS}' if request.fast else ''}",
    )
    with replacing(path, sync=False) as temporary:
        drawn.picture.save(temporary, format="PNG", pnginfo=facts)


def save_strip(drawn: list[GeneratedImage], request: SamplingConfig, folder: Path) -> Path:
    """`strip.png`, whole or not at all."""
    target = folder / "strip.png"
    with replacing(target, sync=False) as temporary:
        strip(drawn, request).save(temporary, format="PNG")
    return target


def strip(drawn: list[GeneratedImage], request: SamplingConfig) -> Image.Image:
    """One row a prompt, one column a strength, the strengths written above."""
    width, height = drawn[0].picture.size
    columns, margin, top = len(request.strengths), 6, 22
    rows = len(drawn) // columns
    sheet = Image.new("RGB", (columns * (width + margin) + margin, rows * (height + margin) + top), "white")
    pen = ImageDraw.Draw(sheet)
    for column, strength in enumerate(request.strengths):
        pen.text(
            (margin + column * (width + margin) + width // 2, 5), f"{strength:g}", fill="black", anchor="mt"
        )
    for index, cell in enumerate(drawn):
        row, column = divmod(index, columns)
        fitted = (
            cell.picture
            if cell.picture.size == (width, height)
            else ImageOps.pad(cell.picture, (width, height), color="white")
        )
        sheet.paste(fitted, (margin + column * (width + margin), top + row * (height + margin)))
    return sheet
