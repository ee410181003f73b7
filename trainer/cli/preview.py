"""`python -m trainer preview`: samples prompts with LoRA files at several strengths."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trainer.cli import MODELS, ModelsOption
from trainer.cli.options import with_options
from trainer.config import TrainConfig
from trainer.errors import ConfigError
from trainer.prompt_syntax import prompt_notes
from trainer.sampling_config import MAX_FILES, SamplingConfig, parse_weighted_file, sampling_config_from

_SETTINGS = ("negative", "seed", "steps", "guidance", "sampler", "clip_skip", "fast")


@with_options(TrainConfig, ("base",))
@with_options(SamplingConfig, _SETTINGS, flags={"fast": "--fast"})
def preview(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A LoRA .safetensors file.")],
    prompt: Annotated[list[str], typer.Option(help="Prompt; repeatable.")],
    out_dir: Annotated[Path, typer.Option(help="Folder for the pictures.")],
    with_: Annotated[
        list[str] | None,
        typer.Option(
            "--with", metavar="FILE=WEIGHT", help=f"A further LoRA to mix in, up to {MAX_FILES} in all."
        ),
    ] = None,
    strengths: Annotated[
        str, typer.Option(help="Strengths of all LoRAs together, from -1 to 2, separated by commas.")
    ] = "0,0.25,0.5,0.75,1",
    size: Annotated[
        str, typer.Option(metavar="WIDTHxHEIGHT", help="Size in px; the base model's native size by default.")
    ] = "",
    models: ModelsOption = MODELS,
    **options: Any,
) -> None:
    """Generate pictures of any number of prompts at several strengths: one PNG each, and a sheet strip.png."""
    base = options.pop("base")
    width, height = _size(size)
    config = sampling_config_from(
        {**options, "prompts": prompt, "strengths": _strengths(strengths), "width": width, "height": height}
    )
    for note in prompt_notes((*prompt, str(options.get("negative") or ""))):
        typer.echo(f"note: {note}", err=True)
    files = [(file, 1.0), *map(parse_weighted_file, with_ or [])]
    if len(files) > MAX_FILES:
        raise ConfigError([f"at most {MAX_FILES} LoRAs can be mixed; merge some first: lora merge"])
    from trainer.cli.progress_bars import progress_bar
    from trainer.lora_file.scales import file_notice
    from trainer.sampling.pipeline import generate_from_file

    for path, _ in files:
        if notice := file_notice(path):
            typer.echo(notice, err=True)
    for notice in _few_step_notices([path for path, _ in files], base, config):
        typer.echo(notice, err=True)
    with progress_bar("sampling") as on_step:
        paths = generate_from_file(files, config, out_dir, base=base, models=models, on_step=on_step)
    for path in paths:
        typer.echo(path)


def _few_step_notices(files: list[Path], base: str, config: SamplingConfig) -> list[str]:
    """Returns advice on LoRA files and a base that are made for few steps."""
    from trainer.headers.few_steps import few_step_advice, few_step_kind
    from trainer.headers.lora import recognise

    kinds = [(path.stem, few_step_kind(path.stem, recognise(path).metadata)) for path in files]
    kinds.append((base, few_step_kind(base, {})))
    values = {"steps": config.steps, "guidance": config.guidance}
    advices = [few_step_advice(kind, name, **values) for name, kind in kinds]
    return [advice for advice in advices if advice]


def _size(text: str) -> tuple[int, int]:
    """Splits `832x1216`; (0, 0) for an empty text. Raises ConfigError."""
    width, times, height = text.lower().partition("x")
    if not text:
        return 0, 0
    if not (times and width.isdecimal() and height.isdecimal() and len(text) < 20):
        raise ConfigError([f"size must be like 832x1216, not {text!r}"])
    return int(width), int(height)


def _strengths(text: str) -> tuple[float, ...]:
    """Numbers separated by commas. Raises ConfigError."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        message = f"strengths must be numbers separated by commas, like 0,0.5,1, not {text!r}"
        raise ConfigError([message]) from None
