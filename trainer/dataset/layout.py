"""Layout of a dataset: which files are pictures, captions, masks or metadata, and which are passed over.

`layout` decides from names alone, so that a folder, a zip and an upload with the same content give the same
dataset. All ways in use it: training, `dataset check`, captioning, and the uploads of the page.

set/
  owl.png  owl.txt         a picture and its caption; also owl.caption, owl.TXT, owl.png.txt
  owl.mask.png             its mask; also masks/owl.png, and OneTrainer's owl-masklabel.png
  metadata.jsonl           captions and weights of pictures in this folder and in those below
  portraits/ann.png        pictures of all sub-folders
  10_sks cat/art.png       kohya's layout: 10 repeats, "sks cat" where a caption is missing

Several `NN_name` folders on one path do not multiply: the innermost one applies, to all pictures below it.
Names match exactly, or else without regard to Unicode normalisation (macOS stores é as two characters), or
else without regard to case. Hidden files and folders (`.impasto`, `._art.png` of macOS) and trainings of
Impasto are passed over silently.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import PurePosixPath

from trainer.dataset.pictures import UNSUPPORTED_SUFFIXES, is_supported, unsupported_reason

SIDECARS = (".txt", ".caption")  # in the order of preference
METADATA = "metadata.jsonl"
MASK_FOLDER = "masks"
LARGE_REPEATS = 100  # more are reported: "2024_summer" is rather a date
_MASK_ENDING, _MASK_LABEL, _CONDITION_LABEL = ".mask.png", "-masklabel.png", "-condlabel.png"
_KOHYA_FOLDER = re.compile(r"(\d{1,4})_(.+)")
_CLUTTER = frozenset({"thumbs.db", "desktop.ini"})
_RUN_FILES = frozenset({"events.jsonl", "manifest.json"})  # of a training
_NAMED = 3  # file names in a sentence about many files
_KeyOf = Callable[[str], tuple[str, str, tuple[int, ...]]]


class Reason(Enum):
    """Reason why a file is passed over."""

    HIDDEN = auto()  # hidden, written by an operating system, or part of a training
    OTHER = auto()  # no picture, caption, mask or metadata
    UNSUPPORTED = auto()  # a picture of an unsupported format
    UNDISPLAYABLE = auto()  # a picture whose name can't be shown or stored
    CONDITION = auto()  # a condition image of OneTrainer
    LONE_CAPTION = auto()  # no picture has its name
    LONE_MASK = auto()
    SPARE_CAPTION = auto()  # its picture has another one, which is preferred
    SPARE_MASK = auto()
    MASK_FORMAT = auto()  # a picture in a folder of masks that is no PNG


# Sentences about all files of a reason together; the other reasons are reported by file or not at all.
_SENTENCES = {
    Reason.CONDITION: "condition images of OneTrainer are not used: {names}",
    Reason.LONE_CAPTION: "no picture has the name of these caption files, which are not used: {names}",
    Reason.LONE_MASK: (
        "no picture has the name of these masks, which are not used: {names}; if they are pictures to train "
        "on, rename them or their folder"
    ),
    Reason.SPARE_CAPTION: "these caption files are not used, because their pictures have another: {names}",
    Reason.SPARE_MASK: "these masks are not used, because their pictures have another: {names}",
    Reason.MASK_FORMAT: "these files are in a folder of masks but are no PNGs, so they are not used: {names}",
}


@dataclass(frozen=True)
class PictureFiles:
    """One picture of a dataset with the files that belong to it; names are relative, with /."""

    name: str
    caption: str | None = None
    mask: str | None = None
    repeats: int = 1  # of its innermost `NN_name` folder
    token: str = ""  # name of that folder: the caption where there is no other


@dataclass(frozen=True)
class Layout:
    """All files of a dataset."""

    pictures: tuple[PictureFiles, ...]  # by folder and name, outer folders first
    metadata: tuple[str, ...] = ()  # outer folders first
    passed_over: dict[str, Reason] = field(default_factory=dict)

    def passed_over_for(self, reason: Reason) -> list[str]:
        """Returns the names of the files that are passed over for a reason."""
        return [name for name, why in self.passed_over.items() if why is reason]

    def problems(self, without: Collection[Reason] = ()) -> list[str]:
        """Returns a sentence for each group of files that the user may have meant to be used."""
        sentences = [
            f"{name} {unsupported_reason(name)}" for name in self.passed_over_for(Reason.UNSUPPORTED)
        ]
        undisplayable = self.passed_over_for(Reason.UNDISPLAYABLE)
        sentences += [f"{name!a} has a name that can't be read; rename it" for name in undisplayable]
        for reason, sentence in _SENTENCES.items():
            names = self.passed_over_for(reason)
            if names and reason not in without:
                sentences.append(sentence.format(names=listed(names)))
        return sentences + list(self._large_repeats())

    def _large_repeats(self) -> Iterator[str]:
        many = {_kohya_part(one.name): one.repeats for one in self.pictures if one.repeats > LARGE_REPEATS}
        for folder, repeats in many.items():
            yield (
                f"the folder {folder} repeats each of its pictures {repeats} times in an epoch; rename it if "
                "its number is not meant as repeats"
            )


def layout(names: Iterable[str]) -> Layout:
    """Returns the layout of the files with these relative names, with / between folders."""
    files = _Files()
    everything = sorted(set(names), key=order)
    runs = _run_folders(everything)
    for name in everything:
        files.add(name, is_in_run=any(name.startswith(run) for run in runs))
    return files.layout()


def order(name: str) -> tuple[list[str], str]:
    """Returns a key that sorts relative names by folder, outer folders first, and then by base name."""
    folder, base = _split(name)
    return (folder.split("/") if folder else []), base


def kohya_folder(name: str) -> tuple[int, str] | None:
    """Returns (repeats, token) of a folder named `NN_token`, as kohya's trainers use it; None for other
    names.
    """
    match = _KOHYA_FOLDER.fullmatch(name)
    return (max(1, int(match[1])), match[2].strip()) if match else None


def is_picture_name(name: str) -> bool:
    """Returns whether a relative name is that of a picture: no mask, not hidden, of a supported format."""
    return _kind_of(name) is _Kind.PICTURE


def mask_stem(name: str) -> str:
    """Returns the stem of the picture that a mask belongs to; "" if the name is not that of a mask."""
    return _mask_key(name)[1] if _kind_of(name) is _Kind.MASK else ""


def is_displayable_name(name: str) -> bool:
    """Returns whether a file name can be shown and stored as UTF-8.

    Such a name has no control characters and no undecodable bytes.
    """
    # Undecodable bytes of file names are surrogates in Python, category Cs.
    return name.isprintable() or all(unicodedata.category(letter) not in ("Cc", "Cs") for letter in name)


def is_hidden(name: str) -> bool:
    """Returns whether a relative name is hidden or was written by an operating system."""
    parts = name.split("/")
    return any(part.startswith(".") for part in parts) or "__MACOSX" in parts or parts[-1].lower() in _CLUTTER


def folded(name: str) -> str:
    """Returns a name without differences of case and Unicode normalisation."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def listed(names: list[str]) -> str:
    """Returns the first names of a list and the number of the others."""
    shown = ", ".join(names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown


class NameIndex:
    """Names by folder and key. `find` tries the exact key, then the normalised and the folded one."""

    def __init__(self) -> None:
        self._levels: tuple[dict[tuple[str, str], list[str]], ...] = tuple(
            defaultdict(list) for _ in range(3)
        )

    def add(self, folder: str, key: str, name: str) -> None:
        """Adds a name under a key of a folder."""
        for level, form in zip(self._levels, _forms(key), strict=True):
            level[folder, form].append(name)

    def find(self, folder: str, key: str) -> tuple[int, list[str]]:
        """Returns (0 for an exact match to 2 for a folded one, names); no names if nothing matches."""
        for number, (level, form) in enumerate(zip(self._levels, _forms(key), strict=True)):
            if (folder, form) in level:
                return number, level[folder, form]
        return len(self._levels), []


class _Kind(Enum):
    """Kind of a file, by its own name."""

    PICTURE = auto()
    CAPTION = auto()
    MASK = auto()
    METADATA = auto()


@dataclass
class _Files:
    """Files in the order of their names, sorted into kinds."""

    pictures: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    passed_over: dict[str, Reason] = field(default_factory=dict)
    stems: NameIndex = field(default_factory=NameIndex)
    names: NameIndex = field(default_factory=NameIndex)

    def add(self, name: str, *, is_in_run: bool) -> None:
        kind = Reason.HIDDEN if is_in_run else _kind_of(name)
        if isinstance(kind, Reason):
            self.passed_over[name] = kind
            return
        lists = {_Kind.CAPTION: self.captions, _Kind.MASK: self.masks, _Kind.METADATA: self.metadata}
        lists.get(kind, self.pictures).append(name)
        if kind is _Kind.PICTURE:
            folder, base = _split(name)
            self.stems.add(folder, PurePosixPath(base).stem, name)
            self.names.add(folder, base, name)

    def layout(self) -> Layout:
        captions = self._assigned(self.captions, _caption_key, Reason.LONE_CAPTION, Reason.SPARE_CAPTION)
        masks = self._assigned(self.masks, _mask_key, Reason.LONE_MASK, Reason.SPARE_MASK)
        pictures = [
            PictureFiles(name, captions.get(name), masks.get(name), *_repeats(name)) for name in self.pictures
        ]
        return Layout(tuple(pictures), tuple(self.metadata), self.passed_over)

    def _assigned(self, files: list[str], key_of: _KeyOf, lone: Reason, spare: Reason) -> dict[str, str]:
        """Returns {picture: its caption or mask}. A file serves all pictures that match it equally well."""
        choices: defaultdict[str, list[tuple[tuple[int, ...], str]]] = defaultdict(list)
        for file in files:
            folder, stem, rank = key_of(file)
            level, pictures = self.stems.find(folder, stem)
            if not pictures:  # `art.png.txt` for `art.png`
                level, pictures = self.names.find(folder, stem)
                level += len(SIDECARS) + 1
            for picture in pictures:
                choices[picture].append(((level, *rank), file))
            if not pictures:
                self.passed_over[file] = lone
        chosen = {picture: min(options)[1] for picture, options in choices.items()}
        used = set(chosen.values())
        for file in files:
            if file not in used and file not in self.passed_over:
                self.passed_over[file] = spare
        return chosen


def _kind_of(name: str) -> _Kind | Reason:
    folder, base = _split(name)
    low = base.lower()
    suffix = PurePosixPath(low).suffix
    in_masks = _mask_folder(folder) is not None
    if is_hidden(name):
        return Reason.HIDDEN
    if low.endswith((_MASK_ENDING, _MASK_LABEL)) or (in_masks and suffix == ".png"):
        return _Kind.MASK
    if low.endswith(_CONDITION_LABEL):
        return Reason.CONDITION
    if suffix in SIDECARS or low == METADATA:
        if in_masks or not is_displayable_name(name):
            return Reason.OTHER
        return _Kind.METADATA if low == METADATA else _Kind.CAPTION
    if not is_supported(suffix):
        return Reason.UNSUPPORTED if suffix in UNSUPPORTED_SUFFIXES else Reason.OTHER
    if in_masks:
        return Reason.MASK_FORMAT
    return _Kind.PICTURE if is_displayable_name(name) else Reason.UNDISPLAYABLE


def _caption_key(name: str) -> tuple[str, str, tuple[int, ...]]:
    """Returns (folder, stem, rank) of a caption file; the lowest rank is preferred."""
    folder, base = _split(name)
    path = PurePosixPath(base)
    return folder, path.stem, (SIDECARS.index(path.suffix.lower()), not path.suffix.islower())


def _mask_key(name: str) -> tuple[str, str, tuple[int, ...]]:
    """Returns (folder of the picture, stem, rank) of a mask; the lowest rank is preferred."""
    folder, base = _split(name)
    for rank, ending in ((0, _MASK_ENDING), (2, _MASK_LABEL)):
        if base.lower().endswith(ending):
            outside = _mask_folder(folder)
            return folder if outside is None else outside, base[: -len(ending)], (rank,)
    outside = _mask_folder(folder)
    return outside or "", PurePosixPath(base).stem, (1,)


def _mask_folder(folder: str) -> str | None:
    """Returns the folder of the pictures whose masks are in `folder`; None if it is no folder of masks."""
    parts = folder.split("/")
    for number in reversed(range(len(parts))):
        if parts[number].lower() == MASK_FOLDER:
            return "/".join(parts[:number] + parts[number + 1 :])
    return None


def _repeats(name: str) -> tuple[int, str]:
    folder = _kohya_part(name)
    return (kohya_folder(folder) if folder else None) or (1, "")


def _kohya_part(name: str) -> str:
    """Returns the innermost `NN_name` folder of a relative name, or ""."""
    parts = name.split("/")[:-1]
    return next((part for part in reversed(parts) if kohya_folder(part)), "")


def _run_folders(names: list[str]) -> list[str]:
    """Returns the folders of trainings, with / at the end; the outermost folder is never one."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for name in names:
        folder, base = _split(name)
        if folder and base in _RUN_FILES:
            found[folder].add(base)
    return [f"{folder}/" for folder, bases in found.items() if bases == _RUN_FILES]


def _forms(key: str) -> tuple[str, str, str]:
    return key, unicodedata.normalize("NFC", key), folded(key)


def _split(name: str) -> tuple[str, str]:
    folder, _, base = name.rpartition("/")
    return folder, base
