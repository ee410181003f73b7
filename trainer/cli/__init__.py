"""Ways in from the command line, one file for each group; `__main__` mounts them."""

from pathlib import Path
from typing import Annotated

import typer

MODELS = Path(__file__).resolve().parent.parent.parent / "models"
ModelsOption = Annotated[Path, typer.Option(help="Folder of base models.")]
