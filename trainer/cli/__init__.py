"""The commands of `python -m trainer`, one file for each group; `__main__` mounts them."""

from pathlib import Path
from typing import Annotated

import typer

from trainer.data_folders import data_folders

MODELS = data_folders().models
ModelsOption = Annotated[Path, typer.Option(help="Folder of base models.")]
