"""Files of one upload, and its progress as the page shows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

MAX_PROBLEMS = 200  # listed for one upload; a zip may hold thousands of files that are not pictures


@dataclass
class IntakeProgress:
    """Progress of a project's upload. The page reads it while the intake thread writes it."""

    total: int = 0  # uploaded files; a zip counts as one
    done: int = 0
    kept: int = 0  # pictures that were added
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # on files that were added, such as a guessed encoding
    replaced: list[str] = field(default_factory=list)  # caption files that had another caption
    ended: bool = False
    rev: int = 0  # increases with every change

    def report(self, problem: str) -> None:
        """Adds a sentence about a rejected file, up to MAX_PROBLEMS."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)
        self.rev += 1

    def note(self, sentence: str) -> None:
        """Adds a sentence about a file that was added, up to MAX_PROBLEMS."""
        if len(self.notes) < MAX_PROBLEMS:
            self.notes.append(sentence)
        self.rev += 1


@dataclass(frozen=True)
class IncomingFile:
    """One uploaded file, alone or from a zip."""

    name: str  # on the artist's computer, with folders if there are any
    path: Path

    @property
    def location(self) -> str:
        """The name with / between folders, as `trainer.dataset.layout` reads it."""
        return "/".join(part for part in self.name.replace("\\", "/").split("/") if part not in ("", "."))

    @property
    def base_name(self) -> str:
        """The name without folders."""
        return self.location.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The base name without suffix."""
        return PurePosixPath(self.base_name).stem

    @property
    def suffix(self) -> str:
        """The file type in lower case, with its dot."""
        return PurePosixPath(self.base_name).suffix.lower()


def incoming_files(paths: list[Path], names: list[str] | None = None) -> list[IncomingFile]:
    """Pairs uploaded files with their names on the artist's computer, or with their own names."""
    names = names or [""] * len(paths)
    return [IncomingFile(name or path.name, path) for path, name in zip(paths, names, strict=True)]
