"""A project deleted with all that was made of it, and a receipt of what is gone."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from trainer.errors import DatasetError
from ui.store.captioning import Captioning
from ui.store.projects import SAMPLES
from ui.workspace import Desk


@dataclass(frozen=True)
class Receipt:
    project: str
    files: int
    trainings: int


def trainings_of(desk: Desk, project: str) -> list[str]:
    return desk.jobs.names(project)


def delete_project(desk: Desk, project: str, *, trainings: bool) -> Receipt:
    """Deletes pictures, captions, masks, thumbnails and what the doctor noted; with `trainings` also runs and LoRA files.

    The latents and embeddings kept for trainings show the pictures to whoever decodes them; as they are not kept by project,
    all of them go, and are computed anew when needed. Raises DatasetError.
    """
    if project in SAMPLES:
        raise DatasetError(desk.words("artwork.delete_sample"))
    desk.projects.folder(project)
    runs = trainings_of(desk, project)
    if desk.jobs.active(project) or any(desk.jobs.run(run).is_alive() for run in runs):
        raise DatasetError(desk.words("artwork.delete_busy"))
    Captioning(desk.projects, desk.jobs).forget(project)
    files = desk.projects.delete(project)
    for cache in ("latents", "text"):
        shutil.rmtree(desk.projects.cache / cache, ignore_errors=True)
    if trainings:
        for run in runs:
            shutil.rmtree(desk.jobs.run(run).path, ignore_errors=True)
    return Receipt(project, files, len(runs) if trainings else 0)
