"""A captioning model downloaded from the hub into `models/captioners`, when asked: its settings first, so that a wrong one costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trainer.errors import CaptionerError
from trainer.headers.captioner import ONNX, TAGS, captioner_kind, folder_of, kind_from_config

_SETTINGS = (".json", "vocab.txt", "merges.txt")


def fetch(repository: str, models: Path, tell: Callable[[str], None]) -> Path:
    """The folder with the model. HF_HUB_OFFLINE must have been off when huggingface_hub was loaded. Raises CaptionerError."""
    from huggingface_hub import HfApi, snapshot_download

    folder = folder_of(models) / repository.replace("/", "--")
    try:
        listed = HfApi().model_info(repository, files_metadata=True).siblings or []
        sizes = {file.rfilename: file.size or 0 for file in listed}
        settings, weights = wanted(list(sizes), repository)
        if settings:
            snapshot_download(repository, allow_patterns=settings, local_dir=folder)
            kind_from_config(folder, repository)
        tell(
            f"{repository}: {sum(sizes[name] for name in weights) / 1e9:.2f} GB, into {models.name}/captioners/{folder.name}"
        )
        snapshot_download(repository, allow_patterns=weights, local_dir=folder)
    except CaptionerError:
        raise
    except Exception as error:  # the hub's own errors are many, and all mean the same to the user
        raise CaptionerError(
            f"{repository} can't be fetched from the hub ({type(error).__name__}); check the name and the network, "
            f"or put its files into {models.name}/captioners/{folder.name}"
        ) from None
    captioner_kind(folder, repository)
    return folder


def wanted(files: list[str], repository: str) -> tuple[list[str], list[str]]:
    """(settings, weights) that captioning reads of a repository's files. Raises CaptionerError when there are none."""
    if ONNX in files and TAGS in files:
        return [], [ONNX, TAGS]
    top = [name for name in files if "/" not in name]
    weights = [name for name in top if name.endswith(".safetensors")]
    if not weights:
        raise CaptionerError(
            f"{repository} has no weights in .safetensors, and no {ONNX} with {TAGS}; choose another model"
        )
    return [name for name in top if name.endswith(_SETTINGS)], weights
