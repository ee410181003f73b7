"""Generated images as PNG files with metadata, and the strip that shows one prompt at several strengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps, PngImagePlugin

from trainer import SOFTWARE
from trainer.atomic_files import replacing
from trainer.sampling.deepcache import DESCRIPTION
from trainer.sampling_config import SamplingConfig, sampler_description

_MARGIN, _HEADING = 6, 22  # px between the images of a strip; height of the line of strengths above them


@dataclass(frozen=True, kw_only=True)
class GeneratedImage:
    """An image of one prompt of a `SamplingConfig` at one strength."""

    prompt_index: int
    strength: float
    image: Image.Image


def save_image(
    generated: GeneratedImage,
    config: SamplingConfig,
    path: Path,
    *,
    base: str,
    loras: Sequence[tuple[str, float]],
) -> None:
    """Writes a PNG whose text chunk `parameters` has A1111's format. The file appears complete or not at all.

    Args:
        base: name of the base model.
        loras: names of the LoRA files, each with its weight at strength 1.
    """
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", SOFTWARE)
    text.add_itxt("parameters", _parameters(generated, config, base, loras))
    with replacing(path, sync=False) as temporary:
        generated.image.save(temporary, format="PNG", pnginfo=text)


def _parameters(
    generated: GeneratedImage, config: SamplingConfig, base: str, loras: Sequence[tuple[str, float]]
) -> str:
    weights = [(name, generated.strength * weight) for name, weight in loras]
    calls = "".join(f" <lora:{name}:{weight:g}>" for name, weight in weights if weight)
    negative = f"\nNegative prompt: {config.negative}" if config.negative else ""
    width, height = generated.image.size
    settings = [
        f"Steps: {config.steps}",
        sampler_description(config.sampler),
        f"CFG scale: {config.guidance:g}",
        f"Seed: {config.seed + generated.prompt_index}",
        f"Size: {width}x{height}",
        f"Model: {base}",
    ]
    if config.fast:
        settings.append(DESCRIPTION)
    return f"{config.prompts[generated.prompt_index]}{calls}{negative}\n{', '.join(settings)}"


def save_strip(
    images: list[GeneratedImage], config: SamplingConfig, folder: Path, name: str = "strip.png"
) -> Path:
    """Writes the sheet of the images, complete or not at all, and returns its path."""
    target = folder / name
    with replacing(target, sync=False) as temporary:
        strip(images, config).save(temporary, format="PNG")
    return target


def strip(images: list[GeneratedImage], config: SamplingConfig) -> Image.Image:
    """Returns a sheet with a row for each prompt and a column for each strength, with the strengths above.

    Images of another size than the first are fitted into its size on white.
    """
    width, height = images[0].image.size
    columns = len(config.strengths)
    rows = len(images) // columns
    sheet_size = (columns * (width + _MARGIN) + _MARGIN, rows * (height + _MARGIN) + _HEADING)
    sheet = Image.new("RGB", sheet_size, "white")
    pen = ImageDraw.Draw(sheet)
    for column, strength in enumerate(config.strengths):
        centre = _MARGIN + column * (width + _MARGIN) + width // 2
        pen.text((centre, 5), f"{strength:g}", fill="black", anchor="mt")
    for index, generated in enumerate(images):
        row, column = divmod(index, columns)
        image = generated.image
        if image.size != (width, height):
            image = ImageOps.pad(image, (width, height), color="white")
        sheet.paste(image, (_MARGIN + column * (width + _MARGIN), _HEADING + row * (height + _MARGIN)))
    return sheet
