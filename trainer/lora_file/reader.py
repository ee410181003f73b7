"""The reader of LoRA files: from a path to modules in any spelling, with every tensor accounted for.

Every command and the page read through it, so they agree on each file. A path is that of a .safetensors file,
or of a folder as PEFT saves it (`adapter_model.safetensors` and `adapter_config.json`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from safetensors import SafetensorError

from trainer.adapter.roles import is_whole
from trainer.errors import LoraFileError
from trainer.headers.edit_metadata import header_bytes
from trainer.headers.lora import BUNDLED, MATRIX, lora_path, recognise
from trainer.headers.safetensors import Header
from trainer.lora_file.arrays import load_arrays
from trainer.lora_file.modules import LoraFile, LoraModule
from trainer.lora_file.scales import Scales, read_scales
from trainer.lora_file.sdxl_modules import find_module, sdxl
from trainer.lora_file.tensor_names import ALPHA, DORA, DOWN, LOHA, UP, split_key
from trainer.lora_file.text_encoder_alone import text_encoder_of

if TYPE_CHECKING:
    import torch

_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_LARGEST_FP16 = 65504.0
_MOST_ELEMENTS = 1 << 28  # of the change of a module; the largest layer of SDXL has a tenth


@dataclass(frozen=True)
class Tensors:
    """A LoRA file as named tensors, before they are assigned to modules."""

    path: Path
    header: Header
    tensors: Mapping[str, torch.Tensor]
    text_encoder: str | None = None  # of names that don't contain a part

    def place(self, name: str) -> tuple[str, str] | None:
        """(part, path) of a module by its name as spelled, or None where SDXL has no such module."""
        return find_module(name, self.text_encoder)


def read_tensors(path: Path, *, as_arrays: bool = False) -> Tensors:
    """Reads all tensors of a LoRA file. Raises LoraFileError, which names what another file is.

    Args:
        as_arrays: read `Array`s, without importing PyTorch; modules of them are described and not computed with.
    """
    path = lora_path(path)
    header = recognise(path)
    for key, tensor in header.tensors.items():
        is_matrix = MATRIX.fullmatch(key) and not key.endswith(".on_input")  # a boolean of IA3
        if tensor.dtype not in _FLOATS and is_matrix:
            raise LoraFileError(
                f"{path.name} holds {key} as {tensor.dtype}, not as fractions; take the LoRA before it was "
                "quantized"
            )
    try:
        arrays = load_arrays(path, header) if as_arrays else None
        tensors = _load(path, header) if arrays is None else cast("Mapping[str, torch.Tensor]", arrays)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise LoraFileError(f"{path.name} is damaged ({error}); download or save it again") from None
    return Tensors(path, header, tensors, text_encoder_of(path, header))


def _load(path: Path, header: Header) -> dict[str, torch.Tensor]:
    """All tensors of a file whose header was read.

    The library rejects metadata in other encodings than UTF-8 and metadata with nested JSON, which some programs
    write; the tensors of such a file are read without its metadata.
    """
    from safetensors.torch import load, load_file

    try:
        return load_file(path)
    except SafetensorError:
        with path.open("rb") as file:
            file.seek(header.start)
            return load(header_bytes(header, {}) + file.read())


def read_modules(path: Path, *, as_arrays: bool = False) -> LoraFile:
    """Reads the modules of a LoRA file; embeddings that the file bundles are left out.

    Args:
        as_arrays: see `read_tensors`.

    Raises:
        LoraFileError: the file is no LoRA for SDXL, has a tensor of no module, or matrices that don't fit
            each other.
    """
    file = read_tensors(path, as_arrays=as_arrays)
    modules: dict[tuple[str, str], LoraModule] = {}
    for name, module in modules_by_name(file, read_scales(file.path, file.header)).items():
        if (module.part, module.path) in modules:
            raise LoraFileError(
                f"{file.path.name} holds {module.part}.{module.path} twice, under two names ({name}); "
                "save it again from the program that made it"
            )
        modules[module.part, module.path] = module
    for module in modules.values():
        _expect_sound(module, file.path)
    return LoraFile(file.path, file.header.metadata, tuple(modules[place] for place in sorted(modules)))


def modules_by_name(file: Tensors, scales: Scales | None, *, strict: bool = True) -> dict[str, LoraModule]:
    """Modules by their name as the file spells it, their scale among the tensors.

    Args:
        scales: the alphas that the file keeps apart from its matrices; None leaves them out.
        strict: raise LoraFileError for a tensor of no module, and for one that is there twice.
    """
    roles: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in file.tensors.items():
        if key.startswith(BUNDLED):
            continue
        split = split_key(key)
        if split is None or file.place(split[0]) is None:
            if not strict:
                continue
            raise LoraFileError(
                f"{file.path.name} holds {key!r}, which belongs to no module of SDXL; save it in kohya's "
                "format in the program that made it"
            )
        name, role, suffix = split
        if role in roles.setdefault(name, {}) and strict:
            raise LoraFileError(f"{file.path.name} holds the {role} of {name} twice; save it again")
        is_by_output = "lora_magnitude_vector" in suffix or (role == DORA and tensor.dim() == 1)
        roles[name][role] = _by_output(file, name, tensor) if is_by_output else tensor
    modules = {}
    for name, tensors in roles.items():
        place = file.place(name)
        assert place
        module = _with_finite_alpha(LoraModule(*place, tensors))
        modules[name] = scales.applied(module, name) if scales else module
    return modules


def _by_output(file: Tensors, name: str, length: torch.Tensor) -> torch.Tensor:
    """PEFT's magnitudes, (O,) or (1, O, 1, 1), as LyCORIS and ComfyUI have them: (O, 1) or (O, 1, 1, 1)."""
    place = file.place(name)
    shape = sdxl().shape(*place) if place else None
    return length.reshape(-1, 1, *[1] * len((shape or ())[2:]))


def _with_finite_alpha(module: LoraModule) -> LoraModule:
    """The module with alpha 1 where its alpha has no effect and is too large for fp16.

    A LoKr of whole factors has no rank to scale by; ai-toolkit writes alpha 9999999999 beside it, inf in fp16.
    """
    alpha = module.alpha
    if alpha is None or not is_whole(module.tensors) or abs(alpha) <= _LARGEST_FP16:
        return module
    return module.with_alpha(1.0)


def _expect_sound(module: LoraModule, path: Path) -> None:
    """Raises LoraFileError unless the matrices of a module are complete, fit each other and are finite."""
    where, tensors = f"{path.name}: {module.part}.{module.path}", module.tensors
    if missing := _missing(set(tensors)):
        raise LoraFileError(f"{where} has {missing}; save the file again")
    if module.network:
        _expect_fit(module, where)
    if any(tensor.numel() != 1 for role, tensor in tensors.items() if role == ALPHA):
        raise LoraFileError(f"{where} has an alpha of several numbers; save the file again")
    for role, tensor in tensors.items():
        if not bool(tensor.float().isfinite().all()):
            raise LoraFileError(
                f"{where} holds values that are no numbers ({role}); use an earlier checkpoint"
            )


def _missing(roles: set[str]) -> str | None:
    """The first matrix that a module of these roles needs and does not have, in words."""
    if (DOWN in roles) != (UP in roles):
        return f"no {UP if DOWN in roles else DOWN} matrix"
    if roles <= {ALPHA, DORA}:
        return "no matrices"
    if any(role.startswith("hada_w") for role in roles):
        return next((f"no {role}" for role in LOHA if role not in roles), None)
    if any(role.startswith("lokr_w") for role in roles):
        for factor in ("lokr_w1", "lokr_w2"):
            if factor not in roles and not {f"{factor}_a", f"{factor}_b"} <= roles:
                return f"no {factor}"
    return None


def _expect_fit(module: LoraModule, where: str) -> None:
    """Raises LoraFileError unless the matrices can be multiplied and a `dora_scale` fits their product."""
    sides = module.sides
    if sides is None or sides[0] * sides[1] > _MOST_ELEMENTS:
        matrices = [tensor for role, tensor in module.tensors.items() if role not in (ALPHA, DORA)]
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in matrices)
        raise LoraFileError(f"{where} has matrices that don't fit each other, {shapes}; save the file again")
    if DORA in module.tensors:
        length = module.tensors[DORA]
        inputs = sides[1] // math.prod(module.kernel)
        expected = {(sides[0], 1), (1, inputs)}
        if tuple(length.shape[:2]) not in expected or length.numel() != max(length.shape[:2]):
            raise LoraFileError(
                f"{where} has a dora_scale of shape {tuple(length.shape)}, not one of {sorted(expected)}; "
                "save it again"
            )
