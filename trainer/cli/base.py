"""`python -m trainer base ...`: what a base model is, which there are, and fetching one."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from trainer.cli import MODELS as DEFAULT_MODELS
from trainer.cli import ModelsOption
from trainer.errors import BaseError

app = typer.Typer(help="Look at base models, or fetch one.", no_args_is_help=True)

# What training and drawing read of a repository on the hub: not its fp32 twins, other formats or pictures.
_WANTED = (
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
    models: ModelsOption = DEFAULT_MODELS,
) -> None:
    """Say what a base model is and how it would be trained. Nothing is loaded."""
    from trainer.sdxl.base import open_base
    from trainer.sdxl.describe import describe_base

    for label, value in describe_base(open_base(reference, models)):
        typer.echo(f"{label}: {value}")


@app.command("list")
def list_bases(models: ModelsOption = DEFAULT_MODELS) -> None:
    """Name the base models under the models folder."""
    from trainer.headers.base_model import list_base_models

    for name in list_base_models(models):
        typer.echo(name)


@app.command()
def fetch(
    repository: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="A repository of the Hugging Face hub.")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Fetch without asking.")] = False,
    models: ModelsOption = DEFAULT_MODELS,
) -> None:
    """Download a base model from the Hugging Face hub into the models folder, after saying how large it is."""
    from fnmatch import fnmatch

    os.environ["HF_HUB_OFFLINE"] = "0"
    from huggingface_hub import HfApi, snapshot_download

    try:
        listed = HfApi().model_info(repository, files_metadata=True).siblings or []
    except Exception as error:  # the hub's own errors are many, and all mean the same to the user
        raise BaseError(
            f"{repository} can't be reached on the hub ({type(error).__name__}); check the name and the network, "
            f"or put a .safetensors file into {models.name}/"
        ) from None
    files = {
        file.rfilename: file.size or 0
        for file in listed
        if any(fnmatch(file.rfilename, wanted) for wanted in _WANTED)
    }
    halves = {name for name in files if ".fp16." in name}
    # Where a part comes in fp16 too, that one suffices.
    chosen = {name: size for name, size in files.items() if name in halves or not _has_half(name, halves)}
    if not any(name.endswith(".safetensors") for name in chosen):
        raise BaseError(
            f"{repository} holds no diffusers folder in .safetensors; download its single file into {models.name}/ instead"
        )
    typer.echo(
        f"{repository}: {len(chosen)} files, {sum(chosen.values()) / 1e9:.2f} GB, into {models.name}/{repository.replace('/', '--')}"
    )
    if not yes:
        typer.confirm("Download?", abort=True)
    snapshot_download(
        repository, allow_patterns=sorted(chosen), local_dir=models / repository.replace("/", "--")
    )
    typer.echo(f"fetched; train on it with: --base {repository}")


def _has_half(name: str, halves: set[str]) -> bool:
    folder = name.rpartition("/")[0]
    return name.endswith((".safetensors", ".index.json")) and any(
        half.rpartition("/")[0] == folder for half in halves
    )
