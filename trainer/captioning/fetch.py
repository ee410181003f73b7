"""Download of a captioning model from the Hugging Face hub into `models/captioners`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trainer.errors import CaptionerError
from trainer.headers.captioner import ONNX, TAGS, captioner_kind, captioners_folder, kind_from_config

_SETTINGS = (".json", "vocab.txt", "merges.txt")


def fetch(repository: str, models: Path, report: Callable[[str], None]) -> Path:
    """Downloads a model and returns its folder.

    The settings are downloaded and checked before the weights, so that an unsupported model costs no large
    download. HF_HUB_OFFLINE must be off when huggingface_hub is imported for the first time.

    Args:
        repository: id on the hub, OWNER/NAME.
        report: receives a sentence with the size of the weights before they are downloaded.

    Raises:
        CaptionerError: the repository can't be downloaded or holds no supported model.
    """
    from huggingface_hub import HfApi, snapshot_download

    folder = captioners_folder(models) / repository.replace("/", "--")
    place = f"{models.name}/captioners/{folder.name}"
    try:
        files = HfApi().model_info(repository, files_metadata=True).siblings or []
        sizes = {file.rfilename: file.size or 0 for file in files}
        settings, weights = select_files(list(sizes), repository)
        if settings:
            snapshot_download(repository, allow_patterns=settings, local_dir=folder)
            kind_from_config(folder, repository)
        report(f"{repository}: {sum(sizes[name] for name in weights) / 1e9:.2f} GB, into {place}")
        snapshot_download(repository, allow_patterns=weights, local_dir=folder)
    except CaptionerError:
        raise
    except Exception as error:  # noqa: BLE001 - the hub's client has many errors, which all mean the same to the user
        raise CaptionerError(
            f"{repository} can't be downloaded from the hub ({type(error).__name__}); "
            f"check the name and the network, or put its files into {place}"
        ) from None
    captioner_kind(folder, repository)
    return folder


def select_files(names: list[str], repository: str) -> tuple[list[str], list[str]]:
    """Returns (settings, weights) that captioning needs of a repository's files.

    Raises CaptionerError if there are no supported weights.
    """
    if ONNX in names and TAGS in names:
        return [], [ONNX, TAGS]
    top = [name for name in names if "/" not in name]
    weights = [name for name in top if name.endswith(".safetensors")]
    if not weights:
        raise CaptionerError(
            f"{repository} has no weights in .safetensors, and no {ONNX} with {TAGS}; choose another model"
        )
    return [name for name in top if name.endswith(_SETTINGS)], weights
