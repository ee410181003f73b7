"""`python -m trainer lora ...`: look into LoRA files, and make others of them."""

from __future__ import annotations

import dataclasses
import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainer.cli import MODELS, ModelsOption

if TYPE_CHECKING:
    import torch

    from trainer.lora_file.edit.resize import ResizedLayer

app = typer.Typer(help="Look into LoRA files, and make others of them.", no_args_is_help=True)


class Form(StrEnum):
    kohya = "kohya"
    kohya_diffusers = "kohya-diffusers"
    diffusers = "diffusers"


class Method(StrEnum):
    concat = "concat"
    svd = "svd"


class Precision(StrEnum):
    fp16 = "fp16"
    bf16 = "bf16"
    fp32 = "fp32"


Words = Annotated[str | None, typer.Option(help="In the maker's words.")]
File = Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors of an SDXL LoRA.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="The .safetensors to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is there.")]
Rank = Annotated[int | None, typer.Option(min=1, help="Ranks of each module of the new file, at most.")]
PrecisionOption = Annotated[
    Precision | None, typer.Option(help="Of the new file; that of the given ones when not said.")
]


@app.command()
def inspect(file: File) -> None:
    """Say what is in a LoRA file."""
    from trainer.lora_file.describe import describe

    for label, value in describe(file):
        typer.echo(f"{label}: {value}")


@app.command()
def label(
    file: File,
    title: Words = None,
    author: Words = None,
    licence: Words = None,
    description: Words = None,
    tags: Words = None,
    trigger: Annotated[str | None, typer.Option(help="The word that brings it in.")] = None,
    weight: Annotated[
        float | None, typer.Option(min=-2, max=2, help="The strength that its maker prefers.")
    ] = None,
    own_work: Annotated[
        bool | None,
        typer.Option("--own-work/--no-own-work", help="Made from the maker's own pictures alone."),
    ] = None,
) -> None:
    """Say what a file tells people of itself, or change that in place; "" takes an entry out. Its tensors stay, to the byte."""
    from trainer.headers.edit_metadata import Label, checked, relabel
    from trainer.headers.lora import recognise

    said = {
        name: value
        for name, value in locals().items()
        if name in Label.__dataclass_fields__ and value is not None
    }
    facts: dict[str, str] = dict(recognise(file).metadata)
    if said:
        facts = relabel(file, checked(dataclasses.replace(Label.of(facts), **said)).changes())
    for name, value in dataclasses.asdict(Label.of(facts)).items():
        typer.echo(f"{name.replace('_', ' ')}: {value if value is not None else ''}")


@app.command()
def check(
    file: File,
    base: Annotated[
        str | None, typer.Option(help="The base it is for; found by its shapes when not said.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    models: ModelsOption = MODELS,
) -> None:
    """Say what A1111, Forge, ComfyUI, InvokeAI, sd-scripts and diffusers take of a file; status 1 if any drops something."""
    from trainer.lora_file.compatibility.check import check_file

    report = check_file(file, base=_path(base, models) if base else None, bases=models)
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=1, ensure_ascii=False))
    else:
        for line in report.lines():
            typer.echo(line)
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def convert(
    file: File,
    out: Out,
    to: Annotated[Form, typer.Option(help="Whose names OUT has; all tools take kohya.")],
    overwrite: Overwrite = False,
) -> None:
    """Write a file with the names of other tools: the same change, its metadata kept."""
    from trainer.lora_file.edit.convert import convert as converted

    source = converted(file, out, to.value, overwrite=overwrite)
    typer.echo(f"{out}: {len(source.modules)} modules with the names of {to.value}")
    _tell_left_out(file)


@app.command()
def merge(
    out: Out,
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE:WEIGHT...", help="Files and how much of each; weight 1 when not said."),
    ],
    method: Annotated[
        Method, typer.Option(help="concat is exact and adds the ranks up; svd approximates with --rank.")
    ] = Method.concat,
    rank: Rank = None,
    precision: PrecisionOption = None,
    overwrite: Overwrite = False,
) -> None:
    """Write the weighted sum of LoRA files."""
    from trainer.lora_file.edit.merge import merge as merged
    from trainer.lora_file.edit.merge import term

    terms = [term(text) for text in files]
    modules = merged(out, terms, method=method.value, rank=rank, dtype=_dtype(precision), overwrite=overwrite)
    ranks = sorted({module.rank or 0 for module in modules})
    typer.echo(f"{out}: {len(modules)} modules of {len(terms)} files, rank {_span(ranks)}")
    _tell_left_out(*(term.file for term in terms))


@app.command()
def resize(
    file: File,
    out: Out,
    rank: Rank = None,
    energy: Annotated[
        float | None,
        typer.Option(help="Share of the squared singular values that each module keeps, such as 0.95."),
    ] = None,
    precision: PrecisionOption = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a file of lower rank, by singular values; --rank then is a cap of --energy. LoHa and LoKr become LoRA."""
    from trainer.lora_file.edit.resize import resize as resized

    _tell(out, resized(file, out, rank=rank, energy=energy, dtype=_dtype(precision), overwrite=overwrite))
    _tell_left_out(file)


@app.command()
def extract(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE", help="Name under models, or path of a diffusers folder or .safetensors."
        ),
    ],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The checkpoint whose difference is wanted.")],
    out: Out,
    rank: Annotated[int, typer.Option(min=1, help="Ranks of each module.")] = 32,
    text_encoders: Annotated[
        bool, typer.Option("--text-encoders", help="Theirs too, not only the UNet's.")
    ] = False,
    models: ModelsOption = MODELS,
    overwrite: Overwrite = False,
) -> None:
    """Write what TUNED changed in BASE as a LoRA of its linear and convolution layers."""
    from rich.console import Console

    from trainer.lora_file.edit.extract import extract as extracted

    paths = _path(base, models), _path(tuned, models)
    with Console(stderr=True).status("reading") as status:  # minutes, for the true SDXL

        def show(layer: ResizedLayer) -> None:
            status.update(f"{layer.part}.{layer.path}: {layer.share:.0%} of the difference kept")

        kept = extracted(
            *paths, out, rank=rank, text_encoders=text_encoders, overwrite=overwrite, report=show
        )
    _tell(out, kept)


@app.command()
def bake(
    file: File,
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="The folder, or .safetensors, to write; must not be there yet."),
    ],
    base: Annotated[
        str, typer.Option(help="Name under models, or path of a diffusers folder or .safetensors.")
    ] = "tiny-sdxl",
    strength: Annotated[float, typer.Option(help="How much of the file.")] = 1.0,
    models: ModelsOption = MODELS,
) -> None:
    """Write a copy of a base with the file in its weights."""
    from trainer.lora_file.edit.bake import bake as baked

    changed = baked(file, out, _path(base, models), strength)
    typer.echo(f"{out}: {changed} weights of {base} changed, at strength {strength:g}")
    _tell_left_out(file)


def _path(reference: str, models: Path) -> Path:
    """Of a base on disk, as `train --base` names it. Raises BaseError."""
    from trainer.sdxl.base import open_base

    return open_base(reference, models).path


def _dtype(precision: Precision | None) -> torch.dtype | None:
    import torch

    return {
        None: None,
        Precision.fp16: torch.float16,
        Precision.bf16: torch.bfloat16,
        Precision.fp32: torch.float32,
    }[precision]


def _span(values: list[int]) -> str:
    return str(values[0]) if values[0] == values[-1] else f"{values[0]}–{values[-1]}"


def _tell_left_out(*files: Path) -> None:
    from trainer.lora_file.scales import file_notice

    for file in files:
        if notice := file_notice(file):
            typer.echo(notice, err=True)


def _tell(out: Path, kept: list[ResizedLayer]) -> None:
    """What is left of each part."""
    from trainer.lora_file.modules import PART_LABELS

    typer.echo(f"{out}: {len(kept)} modules")
    for part, label in PART_LABELS.items():
        of_part = [module for module in kept if module.part == part]
        if of_part:
            shares = [module.share for module in of_part]
            worst = min(of_part, key=lambda module: module.share)
            typer.echo(
                f"{label}: {len(of_part)} modules, rank {_span(sorted(module.rank for module in of_part))}, "
                f"{sum(shares) / len(shares):.1%} of the squared singular values kept, least in {worst.path} ({worst.share:.1%})"
            )
