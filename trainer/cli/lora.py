"""`python -m trainer lora ...`: inspects, checks and edits LoRA files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainer.cli import MODELS, ModelsOption
from trainer.cli.options import given, with_options
from trainer.config import setting
from trainer.headers.base_model import BUNDLED_BASE

if TYPE_CHECKING:
    import torch

    from trainer.lora_file.edit.resize import ResizedLayer

app = typer.Typer(
    help="Inspect, check, convert, merge, resize, extract and bake LoRA files.", no_args_is_help=True
)


class Form(StrEnum):
    """Naming schemes of a file's tensors."""

    kohya = "kohya"
    kohya_diffusers = "kohya-diffusers"
    diffusers = "diffusers"


class Method(StrEnum):
    """Methods of `lora merge`."""

    concat = "concat"
    svd = "svd"


class Precision(StrEnum):
    """Floating-point types of a file's tensors."""

    fp16 = "fp16"
    bf16 = "bf16"
    fp32 = "fp32"


File = Annotated[Path, typer.Argument(metavar="FILE", help="An SDXL LoRA in .safetensors.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="The .safetensors file to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Overwrite OUT if it exists.")]
Rank = Annotated[int | None, typer.Option(min=1, help="Largest rank of each module of the new file.")]
PrecisionOption = Annotated[
    Precision | None, typer.Option(help="Precision of the new file; that of the given files by default.")
]
DoraBase = Annotated[
    str | None,
    typer.Option(
        help="Base model of a DoRA: name under models/, or path of a diffusers folder or .safetensors."
    ),
]


@app.command()
def inspect(file: File) -> None:
    """Print network, rank, layers and metadata of a LoRA file."""
    from trainer.lora_file.describe import describe

    for label, value in describe(file):
        typer.echo(f"{label}: {value}")


@dataclass(frozen=True, kw_only=True)
class LabelTexts:
    """Texts that `lora label` changes."""

    title: str = setting("", "Title", group="label", help='Title; "" removes it.')
    author: str = setting("", "Author", group="label", help='Author; "" removes it.')
    licence: str = setting("", "Licence", group="label", help='Licence; "" removes it.')
    description: str = setting("", "Description", group="label", help='Description; "" removes it.')
    tags: str = setting("", "Tags", group="label", help='Tags, separated by commas; "" removes them.')
    trigger: str = setting("", "Trigger word", group="label", help='Trigger word; "" removes it.')


@app.command()
@with_options(LabelTexts, required=False)
def label(
    file: File,
    weight: Annotated[
        float | None, typer.Option(min=-2, max=2, help="Recommended strength, from -2 to 2.")
    ] = None,
    own_work: Annotated[
        bool | None,
        typer.Option("--own-work/--no-own-work", help="Whether only the author's own pictures were used."),
    ] = None,
    **texts: Any,
) -> None:
    """Print or change the metadata that model browsers show, in place; the tensors stay the same."""
    from trainer.headers.edit_metadata import Label, checked, relabel
    from trainer.headers.lora import recognise

    changes = given({**texts, "weight": weight, "own_work": own_work})
    metadata: dict[str, str] = dict(recognise(file).metadata)
    if changes:
        new_label = checked(dataclasses.replace(Label.of(metadata), **changes))
        metadata = relabel(file, new_label.changes())
    for name, value in dataclasses.asdict(Label.of(metadata)).items():
        typer.echo(f"{name.replace('_', ' ')}: {value if value is not None else ''}")


@app.command()
def check(
    file: File,
    base: Annotated[
        str | None,
        typer.Option(help="Base model that the file is for; recognised by the file's shapes by default."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    models: ModelsOption = MODELS,
) -> None:
    """Print what A1111, Forge, ComfyUI, InvokeAI, sd-scripts and diffusers load of a file.

    The exit status is 1 if one of them ignores a part of it.
    """
    from trainer.lora_file.compatibility.check import check_file

    report = check_file(file, base=_path(base, MODELS) if base else None, bases=models)
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
    to: Annotated[Form, typer.Option(help="Tensor names of OUT; all tools load kohya.")],
    overwrite: Overwrite = False,
) -> None:
    """Convert a file to the tensor names of other tools; its effect and metadata stay the same."""
    from trainer.lora_file.edit.convert import convert as converted

    result = converted(file, out, to.value, overwrite=overwrite)
    typer.echo(f"{out}: {len(result.source.modules)} modules with tensor names of {to.value}")
    if notice := result.notice():
        typer.echo(notice)
    _print_notices(file)


@app.command()
def merge(
    out: Out,
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE:WEIGHT...", help="Files and their weights; the default weight is 1."),
    ],
    method: Annotated[
        Method,
        typer.Option(
            help="concat is exact, and its rank is the sum of all ranks; svd approximates with --rank."
        ),
    ] = Method.concat,
    rank: Rank = None,
    precision: PrecisionOption = None,
    base: DoraBase = None,
    overwrite: Overwrite = False,
) -> None:
    """Merge LoRA files into their weighted sum."""
    from trainer.lora_file.edit.merge import merge as merged
    from trainer.lora_file.edit.merge import term

    terms = [term(text) for text in files]
    result = merged(
        out,
        terms,
        method=method.value,
        rank=rank,
        dtype=_dtype(precision),
        base=_path(base, MODELS) if base else None,
        overwrite=overwrite,
    )
    ranks = sorted({module.rank or 0 for module in result.modules})
    typer.echo(f"{out}: {len(result.modules)} modules from {len(terms)} files, rank {_span(ranks)}")
    sources = dict.fromkeys(_short(dtype) for dtype in result.source_dtypes)
    _print_precision(result.dtype, result.rounding_error, list(sources))
    _print_notices(*(term.file for term in terms))


@app.command()
def resize(
    file: File,
    out: Out,
    rank: Rank = None,
    energy: Annotated[
        float | None,
        typer.Option(help="Fraction of the squared singular values to keep in each module, such as 0.95."),
    ] = None,
    precision: PrecisionOption = None,
    base: DoraBase = None,
    overwrite: Overwrite = False,
) -> None:
    """Lower the rank of a file by singular value decomposition; LoHa and LoKr become LoRA, DoRA with --base.

    With both --energy and --rank, --rank is the upper limit.
    """
    from trainer.lora_file.edit.resize import resize as resized

    result = resized(
        file,
        out,
        rank=rank,
        energy=energy,
        dtype=_dtype(precision),
        base=_path(base, MODELS) if base else None,
        overwrite=overwrite,
    )
    _print_extracted(out, result.layers)
    _print_precision(result.dtype, result.rounding_error)
    _print_notices(file)


@app.command()
def extract(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE", help="Name under models/, or path of a diffusers folder or .safetensors."
        ),
    ],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="Fine-tuned checkpoint of that base.")],
    out: Out,
    rank: Annotated[int, typer.Option(min=1, help="Rank of each module.")] = 32,
    text_encoders: Annotated[
        bool, typer.Option("--text-encoders", help="Also extract the text encoders.")
    ] = False,
    models: ModelsOption = MODELS,
    overwrite: Overwrite = False,
) -> None:
    """Extract the difference between TUNED and BASE as a LoRA of linear and convolution layers."""
    from rich.console import Console

    from trainer.lora_file.edit.extract import extract as extracted

    paths = _path(base, models), _path(tuned, models)
    with Console(stderr=True).status("reading") as status:  # minutes for SDXL

        def show(layer: ResizedLayer) -> None:
            status.update(f"{layer.part}.{layer.path}: {layer.share:.0%} of the difference kept")

        layers = extracted(
            *paths, out, rank=rank, text_encoders=text_encoders, overwrite=overwrite, report=show
        )
    _print_extracted(out, layers)


@app.command()
def bake(
    file: File,
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Folder or .safetensors file to write; it must not exist yet."),
    ],
    base: Annotated[
        str, typer.Option(help="Name under models/, or path of a diffusers folder or .safetensors.")
    ] = BUNDLED_BASE,
    strength: Annotated[float, typer.Option(help="Strength of the LoRA.")] = 1.0,
    models: ModelsOption = MODELS,
) -> None:
    """Merge a LoRA into the weights of a base model and write the result."""
    from trainer.lora_file.edit.bake import bake as baked

    changed = baked(file, out, _path(base, models), strength)
    typer.echo(f"{out}: {changed} weights of {base} changed, at strength {strength:g}")
    _print_notices(file)


def _path(reference: str, models: Path) -> Path:
    """Path of a base model that is given as in `train --base`. Raises BaseError."""
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


def _short(dtype: torch.dtype) -> str:
    """The name of a dtype as --precision spells it."""
    name = str(dtype).removeprefix("torch.")
    return {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float64": "fp64"}.get(name, name)


def _print_precision(dtype: torch.dtype, error: float, sources: Sequence[str] = ()) -> None:
    """Prints the precision of a new file, the files' own where they differ, and the error of the rounding."""
    of_files = f" (the files have {' and '.join(sources)})" if len(sources) > 1 else ""
    text = f"saved in {_short(dtype)}{of_files}"
    if error > 1e-4:
        text += f"; rounding moves a module's change by up to {error:.2%}, and --precision fp32 avoids it"
    typer.echo(text)


def _span(values: list[int]) -> str:
    return str(values[0]) if values[0] == values[-1] else f"{values[0]}–{values[-1]}"


def _print_notices(*files: Path) -> None:
    from trainer.lora_file.scales import file_notice

    for file in files:
        if notice := file_notice(file):
            typer.echo(notice, err=True)


def _print_extracted(out: Path, layers: list[ResizedLayer]) -> None:
    """Prints how much of each part of the model a new file keeps."""
    from trainer.lora_file.modules import PART_LABELS

    typer.echo(f"{out}: {len(layers)} modules")
    for part, label in PART_LABELS.items():
        of_part = [module for module in layers if module.part == part]
        if of_part:
            mean_share = sum(module.share for module in of_part) / len(of_part)
            worst = min(of_part, key=lambda module: module.share)
            ranks = _span(sorted(module.rank for module in of_part))
            typer.echo(
                f"{label}: {len(of_part)} modules, rank {ranks}, {mean_share:.1%} of the squared singular "
                f"values kept, least in {worst.path} ({worst.share:.1%})"
            )
