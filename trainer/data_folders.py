"""Default folders of base models, datasets and runs, in a checkout and in an installed package.

checkout (also `pip install -e .`)    models/ datasets/ outputs/ of the checkout
installed (`pip install .`)           the same three under ~/impasto or the folder in IMPASTO_HOME;
                                      the bundled base and the sample set are copied there at the first start
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from trainer.atomic_files import replacing

_PACKAGE = Path(__file__).resolve().parent
_BUNDLED = (
    _PACKAGE / "bundled"
)  # exists in an installed package only: pyproject.toml maps models/ and datasets/ there
_EXAMPLES = (Path("models") / "tiny-sdxl", Path("datasets") / "ink-emoji")


@dataclass(frozen=True)
class DataFolders:
    """The three folders below `root` that hold a user's files."""

    root: Path

    @property
    def models(self) -> Path:
        """Base models."""
        return self.root / "models"

    @property
    def datasets(self) -> Path:
        """Picture folders, one for each project of the page."""
        return self.root / "datasets"

    @property
    def outputs(self) -> Path:
        """Run directories, and the caches beside them."""
        return self.root / "outputs"

    def prepare(self) -> None:
        """Copies the bundled base and the sample set of an installed package into their folders, once.

        Does nothing in a checkout. Each copy appears complete or not at all, so that the next start repeats
        an interrupted one. Raises OSError when the folder can't be written.
        """
        if not _BUNDLED.is_dir():
            return
        for example in _EXAMPLES:
            target = self.root / example
            if target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with replacing(target) as temporary:
                    shutil.copytree(_BUNDLED / example, temporary)
            except OSError:  # another process was faster; its copy is the same
                if not target.exists():
                    raise


def data_folders() -> DataFolders:
    """The checkout's folders; for an installed package those under `IMPASTO_HOME` or `~/impasto`."""
    if _BUNDLED.is_dir():
        return DataFolders(Path(os.environ.get("IMPASTO_HOME") or Path.home() / "impasto").absolute())
    return DataFolders(_PACKAGE.parent)
