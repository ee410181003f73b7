"""Loss curves for TensorBoard or Weights & Biases, by accelerate's trackers."""

from __future__ import annotations

import dataclasses
import importlib
import json
import uuid
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available, is_wandb_available

from trainer.atomic_files import write_atomically
from trainer.config import TrainConfig
from trainer.errors import ConfigError
from trainer.json_files import read_object

_INSTALLED = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}


def check_tracker(config: TrainConfig) -> None:
    """Raises ConfigError when the tracker's package is missing or broken."""
    name = config.log_with
    if name == "none":
        return
    if not _INSTALLED[name]():
        raise ConfigError([f"log_with {name} needs its package: pip install {name}, or set log_with to none"])
    try:
        importlib.import_module(name)
    except ImportError as error:
        remedy = f"pip install --force-reinstall {name}, or set log_with to none"
        raise ConfigError([f"the package {name} is broken ({error}): {remedy}"]) from None


def tracker_options(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Returns the arguments of an Accelerator with which `start_tracker` finds its tracker."""
    return {} if config.log_with == "none" else {"log_with": config.log_with, "project_dir": folder}


def start_tracker(accelerator: Accelerator, config: TrainConfig, folder: Path) -> None:
    """Opens the run in the tracker with all its settings; a run that continues goes on with its curve there.

    The name of the run in Weights & Biases is stored in `tracker.json` in the run directory.

    Args:
        folder: the run directory.

    Raises:
        ConfigError: the tracker does not start.
    """
    check_tracker(config)
    if config.log_with != "none":
        known = read_object(folder / "tracker.json")
        wandb_id = known.get("wandb") or uuid.uuid4().hex[:16]
        settings = {
            name: ", ".join(map(str, v)) if isinstance(v, tuple) else v
            for name, v in dataclasses.asdict(config).items()
        }
        wandb_options = {
            "name": config.name,
            "dir": str(accelerator.logging_dir),
            "id": wandb_id,
            "resume": "allow",  # continues the run with this id, or creates it
        }
        # TensorBoard shows settings that are stored again as a second run.
        is_known = config.log_with in known
        try:
            accelerator.init_trackers(
                "impasto", config=None if is_known else settings, init_kwargs={"wandb": wandb_options}
            )
        except Exception as error:
            reason = " ".join(str(error).split())
            how = "wandb login, or set WANDB_MODE=offline, or " if config.log_with == "wandb" else ""
            message = f"{config.log_with} does not start ({reason}); {how}set log_with to none"
            raise ConfigError([message]) from error
        if accelerator.is_main_process and not is_known:
            ids = {**known, config.log_with: wandb_id if config.log_with == "wandb" else folder.name}
            write_atomically(folder / "tracker.json", json.dumps(ids).encode())
