"""Change of the rank of a LoRA: in each module, the best approximation by singular values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.errors import LoraFileError
from trainer.lora_file.edit.base_of_dora import BaseOfDora
from trainer.lora_file.edit.convert import expect_free, tensors_of, write_lora
from trainer.lora_file.edit.svd import Spectrum, of_matrix, of_product
from trainer.lora_file.folded_scale import cast, with_one_alpha
from trainer.lora_file.metadata import network_metadata
from trainer.lora_file.modules import LoraModule, lora_module
from trainer.lora_file.reader import read_modules


@dataclass(frozen=True)
class ResizedLayer:
    """Result for one module: its new rank, and the share of its squared singular values that is left."""

    part: str
    path: str
    rank: int
    share: float


@dataclass(frozen=True)
class Resized:
    """Result of `resize`: its modules, the dtype of the new file, and the largest error of its rounding.

    The error is relative to the change of a module, in Frobenius norms.
    """

    layers: list[ResizedLayer]
    dtype: torch.dtype
    rounding_error: float


def resize(
    source: Path,
    out: Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    dtype: torch.dtype | None = None,
    base: Path | None = None,
    overwrite: bool = False,
) -> Resized:
    """Writes `source` as a LoRA of lower rank; DoRA, LoHa and LoKr become LoRA.

    Args:
        base: the base of a DoRA, whose change depends on its weights; other files don't need it.
        rank: largest rank of a module.
        energy: share, 0 to 1, of the squared singular values that each module keeps, with the smallest rank.
        dtype: dtype of the new file; by default that of `source`.

    Raises:
        BaseError: the base can't be opened.
        LoraFileError: neither rank nor energy is given, or a DoRA has no base.
    """
    expect_free(out, overwrite)
    if rank is None and energy is None:
        raise LoraFileError("the size of the new file is not given; add --rank 16, or --energy 0.95")
    if energy is not None and not 0 < energy <= 1:
        raise LoraFileError(
            f"--energy is a share between 0 and 1, not {energy:g}; 0.95 keeps most of a style"
        )
    file = read_modules(source)
    weights = BaseOfDora(base)
    exact: list[LoraModule] = []
    layers: list[ResizedLayer] = []
    for module in file.modules:
        try:
            small, layer = _resized(module, weights, rank, energy)
        except torch.linalg.LinAlgError:  # the product overflows to infinity
            raise LoraFileError(
                f"{source.name}: the values of {module.part}.{module.path} are too large; use an earlier "
                "checkpoint"
            ) from None
        exact.append(small)
        layers.append(layer)
    dtype = dtype or file.dtype
    modules, error = cast(with_one_alpha(exact), dtype)
    metadata = {
        **file.metadata,
        **network_metadata(modules, file.metadata),
        "ss_network_module": "networks.lora",
        "ss_network_args": "{}",
    }
    comments = (
        file.metadata.get("ss_training_comment"),
        f"resized from rank {file.metadata.get('ss_network_dim', '?')}",
    )
    metadata["ss_training_comment"] = "; ".join(filter(None, comments))
    write_lora(out, tensors_of(modules, "kohya", source.name), metadata, overwrite=overwrite)
    return Resized(layers, dtype, error)


def _resized(
    module: LoraModule, weights: BaseOfDora, rank: int | None, energy: float | None
) -> tuple[LoraModule, ResizedLayer]:
    """The module as a LoRA of lower rank in fp32, and the result for the report."""
    dtype = torch.float32
    part, path, spectrum = module.part, module.path, spectrum_of(module, weights)
    if not len(
        spectrum.values
    ):  # a module without a change stays in the file, because some tools require all of them
        up, down = torch.zeros(spectrum.left.shape[0], 1), torch.zeros(1, spectrum.right.shape[1])
        return lora_module(part, path, up, down, alpha=1, dtype=dtype), ResizedLayer(part, path, 1, 1.0)
    size = len(spectrum.values) if energy is None else spectrum.rank_for(energy)
    size = min(size, rank or size, len(spectrum.values))
    up, down = spectrum.factors(size)
    layer = ResizedLayer(part, path, size, spectrum.share(size))
    return lora_module(part, path, up, down, alpha=size, dtype=dtype), layer


def spectrum_of(module: LoraModule, weights: BaseOfDora) -> Spectrum:
    """The singular values of a module's change; for a LoRA without forming the whole matrix."""
    module = module.as_lora()
    if module.network == "lora":
        up, down = module.matrices()
        return of_product(module.scale * up, down)
    return of_matrix(weights.change(module))
