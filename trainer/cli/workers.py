"""Hidden commands that start the page's worker processes; each works on the directory that it is given."""

from __future__ import annotations

from pathlib import Path

import typer

from trainer.cli import MODELS, ModelsOption


def session(folder: Path, models: ModelsOption = MODELS) -> None:
    """Sample pictures for the page, with the base model kept in memory (trainer/workers/sampling.py)."""
    from trainer.workers.sampling import serve

    serve(folder, models)


def planner(folder: Path, models: ModelsOption = MODELS) -> None:
    """Estimate memory and time of a training before it starts (trainer/workers/planning.py)."""
    from trainer.workers.planning import serve

    serve(folder, models)


def make(folder: Path, models: ModelsOption = MODELS) -> None:
    """Run a LoRA tool for the page (trainer/workers/lora_tools.py)."""
    from trainer.workers.lora_tools import work

    if work(folder, models) != "finished":
        raise typer.Exit(1)


def caption_job(folder: Path, models: ModelsOption = MODELS) -> None:
    """Caption pictures for the page (trainer/runs/captioning_job.py)."""
    from trainer.workers.captioning import work

    if work(folder, models) != "finished":
        raise typer.Exit(1)


WORKERS = {"session": session, "planner": planner, "make": make, "caption-job": caption_job}
