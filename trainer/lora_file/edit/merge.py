"""Merging of LoRAs into one file: the sum of weight_i * alpha_i / rank_i * up_i down_i."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.errors import LoraFileError
from trainer.lora_file.edit.base_of_dora import BaseOfDora
from trainer.lora_file.edit.convert import expect_free, tensors_of, write_lora
from trainer.lora_file.edit.svd import of_matrix, of_product
from trainer.lora_file.folded_scale import cast, with_one_alpha
from trainer.lora_file.metadata import network_metadata
from trainer.lora_file.modules import LoraFile, LoraModule, lora_module, side_by_side
from trainer.lora_file.reader import read_modules

_BASE_ENTRIES = (
    "ss_base_model",
    "ss_v2",
    "ss_sd_model",
    "modelspec.architecture",
    "modelspec.prediction_type",
    "modelspec.resolution",
)


@dataclass(frozen=True)
class Term:
    """A LoRA file and its weight in a sum."""

    file: Path
    weight: float


def term(text: str) -> Term:
    """The term of `FILE:WEIGHT`, split at the last colon because file names may have colons.

    Without a weight, or with another word after the colon, the whole text is a file name and the weight is 1.

    Raises:
        LoraFileError: the weight is 0 or infinite.
    """
    name, colon, number = text.rpartition(":")
    try:
        weight = float(number) if colon else math.nan
    except ValueError:
        weight = math.nan
    if colon and name and not math.isnan(weight):
        if weight == 0 or math.isinf(weight):
            raise LoraFileError(
                f"{text!r} has the weight {number}, which merges nothing or everything; give a number such "
                "as 0.5 or -1"
            )
        return Term(Path(name), weight)
    return Term(Path(text), 1.0)


@dataclass(frozen=True)
class Merged:
    """Result of `merge`: the new modules, their dtype and those of the files, and the error of the rounding.

    The error is the largest of a module, relative to its change, in Frobenius norms.
    """

    modules: list[LoraModule]
    dtype: torch.dtype
    source_dtypes: tuple[torch.dtype, ...]
    rounding_error: float


def merge(
    out: Path,
    terms: Sequence[Term],
    *,
    method: str = "concat",
    rank: int | None = None,
    dtype: torch.dtype | None = None,
    base: Path | None = None,
    overwrite: bool = False,
) -> Merged:
    """Writes the weighted sum of LoRA files, each of which may change other modules.

    Args:
        method: `concat` puts the matrices side by side: exact, and the ranks add up. `svd` writes the best
            approximation of `rank`.
        dtype: dtype of the new file; by default the widest of the files.
        base: the base of a DoRA, whose change depends on its weights; other files don't need it.

    Raises:
        BaseError: the base can't be opened.
        LoraFileError: a file can't be read, or has a network that can't be added up.
    """
    expect_free(out, overwrite)
    if method == "svd" and not rank:
        raise LoraFileError(
            "merging by svd needs the rank of the new file; add --rank 32, or take --method concat"
        )
    if method == "concat" and rank:
        raise LoraFileError(
            "concat keeps every rank and so can't have --rank; take --method svd, or leave --rank out"
        )
    files = [read_modules(each.file) for each in terms]
    dtype = dtype or _widest(files)
    shared: dict[tuple[str, str], list[tuple[float, LoraModule]]] = {}
    for file, each in zip(files, terms, strict=True):
        for module in file.modules:
            shared.setdefault((module.part, module.path), []).append((each.weight, module))
    weights = BaseOfDora(base)
    exact = [
        _approximated(part, path, shared[part, path], rank, weights)
        if rank
        else _joined(part, path, shared[part, path])
        for part, path in sorted(shared)
    ]
    modules, error = cast(with_one_alpha(exact), dtype)
    write_lora(
        out,
        tensors_of(modules, "kohya", out.name),
        _metadata(out, files, terms, modules),
        overwrite=overwrite,
    )
    return Merged(modules, dtype, tuple(file.dtype for file in files), error)


def _widest(files: Sequence[LoraFile]) -> torch.dtype:
    dtype = files[0].dtype
    for file in files[1:]:
        dtype = torch.promote_types(dtype, file.dtype)
    return dtype


def _joined(part: str, path: str, terms: list[tuple[float, LoraModule]]) -> LoraModule:
    """The exact sum in fp32; its alpha is its rank, so that the scale is 1."""
    terms = [(weight, module.as_lora()) for weight, module in terms]
    for _, module in terms:
        if module.network is None:
            raise LoraFileError(module.unsupported())
        if module.network != "lora":
            base = " --base BASE" if module.is_decomposed else ""
            raise LoraFileError(
                f"{part}.{path} is a {module.kind}, and concat joins LoRAs only; take --method svd --rank 32"
                f"{base}"
            )
    _expect_same_shape(terms)
    up, down = side_by_side(terms)
    return lora_module(part, path, up, down, alpha=up.shape[1], dtype=torch.float32)


def _approximated(
    part: str, path: str, terms: list[tuple[float, LoraModule]], rank: int, weights: BaseOfDora
) -> LoraModule:
    """The best approximation of the sum by a LoRA of `rank`, in fp32."""
    terms = [(weight, module.as_lora()) for weight, module in terms]
    outputs, inputs = _expect_same_shape(terms)
    if all(module.network == "lora" for _, module in terms):
        spectrum = of_product(*side_by_side(terms))
    else:
        changes = [weight * weights.change(module) for weight, module in terms]
        spectrum = of_matrix(torch.stack(changes).sum(0))
    up, down = spectrum.factors(rank)
    if not up.shape[1]:  # the terms cancel: a module of zeros keeps the layer in the file
        up, down = torch.zeros(outputs, 1), torch.zeros(1, inputs)
    return lora_module(part, path, up, down, alpha=up.shape[1], dtype=torch.float32)


def _expect_same_shape(terms: list[tuple[float, LoraModule]]) -> tuple[int, int]:
    """(O, I) of the modules. Raises LoraFileError where they differ, or where a module can't be computed."""
    sides = []
    for _, module in terms:
        if module.sides is None:
            raise LoraFileError(module.unsupported())
        sides.append(module.sides)
    if len(set(sides)) > 1:
        module = terms[0][1]
        raise LoraFileError(
            f"{module.part}.{module.path} is {sides[0]} in one file and {sides[1]} in another; merge LoRAs "
            "of one base"
        )
    return sides[0]


def _metadata(
    out: Path, files: Sequence[LoraFile], terms: Sequence[Term], modules: list[LoraModule]
) -> dict[str, str]:
    """Metadata of the new file: entries about the base that all files share, and the names of the files."""
    shared = {
        key: value
        for key, value in files[0].metadata.items()
        if key.startswith(_BASE_ENTRIES) and all(file.metadata.get(key) == value for file in files)
    }
    weighted_names = " ".join(f"{each.weight:+g} {each.file.stem}" for each in terms)
    return {
        **shared,
        **network_metadata(modules, shared),
        "ss_output_name": out.stem,
        "ss_training_comment": f"merged: {weighted_names}",
        "modelspec.title": out.stem,
        "modelspec.merged_from": ", ".join(each.file.stem for each in terms),
    }
