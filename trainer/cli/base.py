"""`python -m trainer base ...`: describes, lists and downloads base models."""

from __future__ import annotations

import os
from fnmatch import fnmatch
from typing import Annotated

import typer

from trainer.cli import MODELS, ModelsOption
from trainer.errors import BaseError

app = typer.Typer(help="Check, list and download base models.", no_args_is_help=True)

# Files of a hub repository that training and sampling read: no fp32 duplicates, other formats or pictures.
_PATTERNS = (
    "model_index.json",
    "scheduler/*.json",
    "tokenizer/*",
    "tokenizer_2/*",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
    "unet/config.json",
    "vae/config.json",
    "unet/*.safetensors*",
    "vae/*.safetensors*",
    "text_encoder/*.safetensors*",
    "text_encoder_2/*.safetensors*",
)


@app.command()
def check(
    reference: Annotated[
        str, typer.Argument(metavar="BASE", help="A name under models/, a folder, or a .safetensors file.")
    ],
    models: ModelsOption = MODELS,
) -> None:
    """Print what a base model is and how it would be trained, without loading its weights."""
    from trainer.sdxl.base import open_base
    from trainer.sdxl.describe import describe_base

    for label, value in describe_base(open_base(reference, models)):
        typer.echo(f"{label}: {value}")


@app.command("list")
def list_bases(models: ModelsOption = MODELS) -> None:
    """List the base models in the models folder."""
    from trainer.headers.base_model import list_base_models

    for name in list_base_models(models):
        typer.echo(name)


@app.command()
def fetch(
    repository: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="A repository of the Hugging Face hub.")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Download without confirmation.")] = False,
    models: ModelsOption = MODELS,
) -> None:
    """Download a base model from the Hugging Face hub into the models folder, after showing its size."""
    os.environ["HF_HUB_OFFLINE"] = "0"
    from huggingface_hub import HfApi, snapshot_download

    try:
        listed = HfApi().model_info(repository, files_metadata=True).siblings or []
    except Exception as error:  # the hub raises many kinds, which mean the same to the user
        raise BaseError(
            f"{repository} can't be reached on the Hugging Face hub ({type(error).__name__}); check the name "
            f"and the network, or put a .safetensors file into {models.name}/"
        ) from error
    sizes = _files_to_fetch({file.rfilename: file.size or 0 for file in listed})
    if not any(name.endswith(".safetensors") for name in sizes):
        raise BaseError(
            f"{repository} contains no diffusers folder in .safetensors; download its single-file checkpoint "
            f"into {models.name}/ instead"
        )
    folder = models / repository.replace("/", "--")
    size_gb = sum(sizes.values()) / 1e9
    typer.echo(f"{repository}: {len(sizes)} files, {size_gb:.2f} GB, into {models.name}/{folder.name}")
    if not yes:
        typer.confirm("Download?", abort=True)
    snapshot_download(repository, allow_patterns=sorted(sizes), local_dir=folder)
    typer.echo(f"Downloaded. Train on it with: --base {repository}")


def _files_to_fetch(sizes: dict[str, int]) -> dict[str, int]:
    """Selects the needed files, from name to bytes; of a part that exists in fp16 and fp32, only fp16."""
    needed = {
        name: size for name, size in sizes.items() if any(fnmatch(name, pattern) for pattern in _PATTERNS)
    }
    fp16 = {name for name in needed if ".fp16." in name}
    fp16_folders = {name.rpartition("/")[0] for name in fp16}
    return {
        name: size
        for name, size in needed.items()
        if name in fp16 or not (_is_weights(name) and name.rpartition("/")[0] in fp16_folders)
    }


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".index.json"))
