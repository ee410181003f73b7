"""Deletes a project with everything that was created from it, and returns a receipt."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from trainer.errors import DatasetError
from ui.store.captioning import Captioning
from ui.store.projects import SAMPLES, Projects
from ui.store.runs import Runs
from ui.text import Words


@dataclass(frozen=True)
class DeletionReceipt:
    """Names a deleted project and counts the files and trainings that were deleted with it."""

    project: str
    files: int
    trainings: int


def delete_project(
    projects: Projects, runs: Runs, words: Words, project: str, *, with_trainings: bool
) -> DeletionReceipt:
    """Deletes a project's pictures, captions, masks, thumbnails and check results; optionally its trainings too.

    Cached latents and text embeddings can be decoded back to the pictures. They are not stored by project, so all of
    them are deleted; the next training computes those that it needs again.

    Args:
        with_trainings: also deletes the project's runs with their LoRA files.

    Raises:
        DatasetError: the project is a bundled sample, does not exist, or is being trained on or captioned.
    """
    if project in SAMPLES:
        raise DatasetError(words("artwork.delete_sample"))
    projects.folder(project)
    names = runs.names(project)
    if runs.active(project) or any(runs.run(name).is_alive() for name in names):
        raise DatasetError(words("artwork.delete_busy"))
    Captioning(projects, runs).remove_jobs(project)
    files = projects.delete(project)
    for cache in ("latents", "text"):
        shutil.rmtree(projects.cache / cache, ignore_errors=True)
    if with_trainings:
        for name in names:
            shutil.rmtree(runs.run(name).path, ignore_errors=True)
    return DeletionReceipt(project, files, len(names) if with_trainings else 0)
