"""A LoRA of another rank: in each module, the best approximation by singular values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.errors import LoraFileError
from trainer.lora_file.edit.convert import expect_free, tensors_of, write_lora
from trainer.lora_file.edit.svd import Spectrum, of_matrix, of_product
from trainer.lora_file.metadata import network_metadata
from trainer.lora_file.modules import Module, lora_module
from trainer.lora_file.reader import read_modules


@dataclass(frozen=True)
class Kept:
    """What is left of one module."""

    part: str
    path: str
    rank: int
    share: float  # of the squared singular values


def resize(
    source: Path,
    out: Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> list[Kept]:
    """Writes `source` with fewer (or, of a LoHa or LoKr, plain LoRA) ranks.

    Args:
        rank: at most this in every module.
        energy: in every module the smallest rank that keeps this share of its squared singular values, 0 to 1.

    Raises:
        LoraFileError: neither rank nor energy, or a form whose change depends on its base.
    """
    expect_free(out, overwrite)
    if rank is None and energy is None:
        raise LoraFileError("say how much to keep: add --rank 16, or --energy 0.95")
    if energy is not None and not 0 < energy <= 1:
        raise LoraFileError(
            f"--energy is a share between 0 and 1, not {energy:g}; 0.95 keeps most of a style"
        )
    file = read_modules(source)
    modules, kept = [], []
    for module in file.modules:
        try:
            small, left = _resized(module, rank, energy, dtype or file.dtype)
        except torch.linalg.LinAlgError:  # its product is infinite
            raise LoraFileError(
                f"{source.name}: the values of {module.part}.{module.path} are too large; use an earlier checkpoint"
            ) from None
        modules.append(small)
        kept.append(left)
    facts = {
        **file.metadata,
        **network_metadata(modules, file.metadata),
        "ss_network_module": "networks.lora",
        "ss_network_args": "{}",
    }
    facts["ss_training_comment"] = "; ".join(
        text
        for text in (
            file.metadata.get("ss_training_comment", ""),
            f"resized from rank {file.metadata.get('ss_network_dim', '?')}",
        )
        if text
    )
    write_lora(out, tensors_of(modules, "kohya", source.name), facts, overwrite=overwrite)
    return kept


def _resized(
    module: Module, rank: int | None, energy: float | None, dtype: torch.dtype
) -> tuple[Module, Kept]:
    spectrum = spectrum_of(module)
    if not len(spectrum.values):  # a module that changes nothing stays, so that no tool misses it
        up, down = torch.zeros(spectrum.left.shape[0], 1), torch.zeros(1, spectrum.right.shape[1])
        return lora_module(module.part, module.path, up, down, alpha=1, dtype=dtype), Kept(
            module.part, module.path, 1, 1.0
        )
    wanted = len(spectrum.values) if energy is None else spectrum.rank_for(energy)
    wanted = min(wanted, rank or wanted, len(spectrum.values))
    up, down = spectrum.factors(wanted)
    kept = Kept(module.part, module.path, wanted, spectrum.share(wanted))
    return lora_module(module.part, module.path, up, down, alpha=wanted, dtype=dtype), kept


def spectrum_of(module: Module) -> Spectrum:
    if module.network == "lora":
        up, down = module.matrices()
        return of_product(module.scale * up, down)
    return of_matrix(module.change())
