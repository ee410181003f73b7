"""A LoRA file as modules of SDXL, whatever its spelling: what each one changes, and how it is written again.

Roles, shapes and formulas of the networks are those of `trainer.adapter.lycoris`: O outputs, I inputs (times the
kernel's area for a convolution), R rank.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trainer.adapter.lycoris import is_whole, product
from trainer.errors import LoraFileError
from trainer.headers.lora import BUNDLED
from trainer.lora_file import tensor_names as forms
from trainer.lora_file.attach import LABELS
from trainer.lora_file.container import Container, open_lora
from trainer.lora_file.sdxl_modules import names, sdxl

DOWN, UP, ALPHA, DORA = "down", "up", "alpha", "dora_scale"  # roles of tensors, as forms.py names them
PART_LABELS = {"unet": "UNet", "text_encoder": "text encoder 1", "text_encoder_2": "text encoder 2"}

# What LyCORIS and others write beside the networks that are read here: such tensors are renamed and checked, no more.
_OTHER_ROLES = (
    "diff_b",
    "w_norm",
    "b_norm",
    "oft_blocks",
    "oft_diag",
    "rescale",
    "scale_weight",
    "on_input",
    "weight",
    "scalar",
)
_ROLES = {
    **{ending: role for role, endings in forms.ENDINGS.items() for ending in endings},
    **{f".{role}": role for role in _OTHER_ROLES},
    "_lora.down.weight": DOWN,  # diffusers before 0.22
    "_lora.up.weight": UP,
}
_LONGEST_FIRST = sorted(_ROLES, key=len, reverse=True)


def split_key(key: str) -> tuple[str, str, str] | None:
    """(module's name as spelled, role, ending), or None for a key that is no part of a network."""
    for ending in _LONGEST_FIRST:
        if key.endswith(ending) and len(key) > len(ending):
            return key.removesuffix(ending), _ROLES[ending], ending
    return None


def written_key(name: str, role: str) -> str:
    """Of a tensor in kohya's form."""
    return name + (forms.ending(role) if role in forms.ENDINGS else f".{role}")


@dataclass(frozen=True)
class Module:
    """What a file holds for one module of the base."""

    part: str
    path: str
    tensors: Mapping[str, torch.Tensor]  # by role

    @property
    def network(self) -> str | None:
        """`lora`, `dora`, `loha`, `lokr` or `diff`; None for forms that are only renamed and checked."""
        roles = set(self.tensors) - {ALPHA}
        if {DOWN, UP} <= roles <= {DOWN, UP, DORA}:
            return "dora" if DORA in roles else "lora"
        if roles == {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}:
            return "loha"
        if roles and roles <= {"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"}:
            return "lokr"
        return "diff" if roles == {"diff"} else None

    @property
    def kind(self) -> str:
        """The network in words."""
        if self.network:
            return LABELS["locon" if self.network == "lora" and self.kernel else self.network]
        for mark, kind in (("mid", "LoRA"), ("hada_t", "LoHa"), ("lokr_t", "LoKr")):
            if any(role.startswith(mark) for role in self.tensors):
                return f"{kind} with a Tucker decomposition"
        if DORA in self.tensors:
            return "weight-decomposed LoHa or LoKr"
        return f"network of {', '.join(sorted(set(self.tensors) - {ALPHA}))}"

    @property
    def rank(self) -> int | None:
        """None where no matrix is a product of thinner ones."""
        if is_whole(self.tensors):
            return None
        thin = [
            self.tensors[role]
            for role in (DOWN, "hada_w1_b", "lokr_w1_b", "lokr_w2_b")
            if role in self.tensors
        ]
        return thin[0].shape[0] if thin and thin[0].dim() else None

    @property
    def alpha(self) -> float | None:
        """As the file says it; every reader takes scale 1 where it is absent."""
        alpha = self.tensors.get(ALPHA)
        return float(alpha.flatten()[0]) if alpha is not None and alpha.numel() else None

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None or not self.rank else self.alpha / self.rank

    @property
    def kernel(self) -> tuple[int, ...]:
        """() for a linear layer, (k, k) for a convolution."""
        shape = sdxl().shape(self.part, self.path)
        return tuple(shape[2:]) if shape else tuple(self.tensors[DOWN].shape[2:])

    def matrices(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(up (O, R), down (R, I)) of a LoRA or DoRA in fp32, its scale not yet in them."""
        return self.tensors[UP].float().flatten(1), self.tensors[DOWN].float().flatten(1)

    def change(self) -> torch.Tensor:
        """What is added to the weight, (O, I) in fp32. Raises LoraFileError for forms whose change is not theirs alone."""
        if self.network is None or self.network == "dora":
            hint = (
                "bake the file into its base instead"
                if self.network
                else "make it a plain LoRA where it was made"
            )
            raise LoraFileError(
                f"{self.part}.{self.path} is a {self.kind}, whose change can't be told from the file; {hint}"
            )
        tensors = {role: tensor.float() for role, tensor in self.tensors.items()}
        rows = self._rows()
        return self.scale * product(self.network, tensors, (rows, -1))

    def _rows(self) -> int:
        """O, from the matrices alone."""
        sizes = {role: tensor.shape[0] for role, tensor in self.tensors.items() if tensor.dim()}
        if self.network == "lokr":
            return sizes.get("lokr_w1", sizes.get("lokr_w1_a", 1)) * sizes.get(
                "lokr_w2", sizes.get("lokr_w2_a", 1)
            )
        return sizes[{"loha": "hada_w1_a", "diff": "diff"}.get(self.network or "", UP)]


@dataclass(frozen=True)
class LoraFile:
    path: Path
    facts: Mapping[str, str]
    modules: tuple[Module, ...]  # in order of part and path

    @property
    def dtype(self) -> torch.dtype:
        """The widest of its matrices."""
        dtypes = [
            tensor.dtype
            for module in self.modules
            for role, tensor in module.tensors.items()
            if role != ALPHA
        ]
        widest = dtypes[0]
        for dtype in dtypes:
            # fp8 has no promotion rules; what comes of it is written in fp16.
            widest = torch.float16 if dtype.itemsize == 1 else torch.promote_types(widest, dtype)
        return widest


def read_modules(path: Path) -> LoraFile:
    """A file of any spelling with every tensor accounted for, but for embeddings that it bundles. Raises LoraFileError."""
    container = open_lora(path)
    found: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    for key, tensor in container.tensors.items():
        if key.startswith(BUNDLED):
            continue
        split = split_key(key)
        place = split and names().find(split[0])
        if split is None or place is None:
            raise LoraFileError(
                f"{path.name} holds {key!r}, which belongs to no module of SDXL; look at it with: lora check"
            )
        roles = found.setdefault(place, {})
        if split[1] in roles:
            raise LoraFileError(
                f"{path.name} holds {place[0]}.{place[1]} twice, under two spellings; save it again from its trainer"
            )
        # PEFT's is (O,), of a convolution (1, O, 1, 1); kohya's (O, 1).
        roles[split[1]] = tensor.reshape(-1, 1) if "lora_magnitude_vector" in split[2] else tensor
    modules = [
        _with_peft_alpha(Module(part, where, found[part, where]), container) for part, where in sorted(found)
    ]
    for module in modules:
        _check(module, path)
    return LoraFile(path, container.facts, tuple(modules))


def _with_peft_alpha(module: Module, container: Container) -> Module:
    """diffusers keeps alpha, if at all, in the header, as PEFT's configuration of each part."""
    text = container.facts.get("lora_adapter_metadata")
    if text is None or ALPHA in module.tensors or DOWN not in module.tensors:
        return module
    try:
        config = json.loads(text)
        alpha = config.get(f"{module.part}.lora_alpha")
        if alpha is None:
            return module
        alpha = _of_pattern(config.get(f"{module.part}.alpha_pattern"), module.path, float(alpha))
        if config.get(f"{module.part}.use_rslora") and module.rank:  # alpha / sqrt(R), Kalajdzievski 2023
            alpha *= module.rank**0.5
    except (ValueError, TypeError, AttributeError, RecursionError, re.error):
        raise LoraFileError(
            f"{container.path.name} has damaged lora_adapter_metadata in its header; save it again"
        ) from None
    return replace(module, tensors={**module.tensors, ALPHA: torch.tensor(alpha)})


def _of_pattern(patterns: Any, path: str, default: float) -> float:
    """PEFT's patterns are regular expressions that match the end of a module's path."""
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern.removeprefix('^')})", path):
            return float(value)
    return default


def _check(module: Module, path: Path) -> None:
    """Raises LoraFileError unless the matrices of a module are whole, fit each other and are numbers."""
    where, tensors = f"{path.name}: {module.part}.{module.path}", module.tensors
    if (DOWN in tensors) != (UP in tensors):
        raise LoraFileError(
            f"{where} has no {'up' if DOWN in tensors else 'down'} matrix; save the file again"
        )
    if set(tensors) <= {ALPHA, DORA}:
        raise LoraFileError(f"{where} has no matrices; save the file again")
    if lacking := _lacking(set(tensors)):
        raise LoraFileError(f"{where} lacks {lacking}; save the file again")
    pairs = [
        (UP, DOWN),
        ("hada_w1_a", "hada_w1_b"),
        ("hada_w2_a", "hada_w2_b"),
        ("lokr_w1_a", "lokr_w1_b"),
        ("lokr_w2_a", "lokr_w2_b"),
    ]
    for left, right in pairs if module.network else []:
        if left in tensors and not _fit(tensors[left].shape, tensors[right].shape):
            shapes = f"{tuple(tensors[left].shape)} and {tuple(tensors[right].shape)}"
            raise LoraFileError(
                f"{where} has matrices that don't fit each other, {shapes}; save the file again"
            )
    if module.network == "dora":
        sides = {(tensors[UP].shape[0], 1), (1, tensors[DOWN].shape[1])}
        if tuple(tensors[DORA].shape[:2]) not in sides or tensors[DORA].numel() != max(
            tensors[DORA].shape[:2]
        ):
            raise LoraFileError(
                f"{where} has a dora_scale of shape {tuple(tensors[DORA].shape)}, not one of {sorted(sides)}; save it again"
            )
    if any(tensor.numel() != 1 for role, tensor in tensors.items() if role == ALPHA):
        raise LoraFileError(f"{where} has an alpha of several numbers; save the file again")
    for role, tensor in tensors.items():
        if not bool(torch.isfinite(tensor.float()).all()):
            raise LoraFileError(
                f"{where} holds values that are no numbers ({role}); use an earlier checkpoint"
            )


def _lacking(roles: set[str]) -> str | None:
    """A matrix that a LoHa or LoKr of these roles would need."""
    if any(role.startswith("hada_w") for role in roles):
        return next(
            (role for role in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b") if role not in roles), None
        )
    if any(role.startswith("lokr_w") for role in roles):
        return next(
            (w for w in ("lokr_w1", "lokr_w2") if w not in roles and not {f"{w}_a", f"{w}_b"} <= roles), None
        )
    return None


def _fit(left: torch.Size, right: torch.Size) -> bool:
    """Whether (O, R) and (R, I) fit; a convolution's are (O, R, 1, 1) and (R, I, k, k)."""
    if len(left) not in (2, 4) or len(right) not in (2, 4) or 0 in left or 0 in right:
        return False
    return left[1] == right[0] and all(side == 1 for side in left[2:])


def lora_module(
    part: str, path: str, up: torch.Tensor, down: torch.Tensor, *, alpha: float, dtype: torch.dtype
) -> Module:
    """A LoRA of up (O, R) and down (R, I), in the shapes that its layer wants."""
    kernel = Module(part, path, {DOWN: down}).kernel
    if kernel:
        inputs = down.shape[1] // (kernel[0] * kernel[1])
        up, down = up[:, :, None, None], down.reshape(-1, inputs, *kernel)
    return Module(
        part,
        path,
        {UP: up.to(dtype).contiguous(), DOWN: down.to(dtype).contiguous(), ALPHA: alpha_tensor(alpha)},
    )


def alpha_tensor(alpha: float) -> torch.Tensor:
    """Without dimensions, as sd-scripts needs it; in fp16 where that is exact."""
    half = torch.tensor(alpha, dtype=torch.float16)
    return half if float(half) == alpha else torch.tensor(alpha, dtype=torch.float32)


def with_one_alpha(modules: Iterable[Module]) -> list[Module]:
    """The same changes with one alpha throughout each part, folded into the up matrices.

    diffusers 0.42 scales a part of several alphas wrongly, with no more than a RuntimeWarning. One alpha beside several
    ranks is read right by every tool.
    """
    modules = list(modules)
    chosen: dict[str, float] = {}
    for part in {module.part for module in modules}:
        wanted = {m.scale * m.rank for m in modules if m.part == part and DOWN in m.tensors and m.rank}
        stated = all(m.alpha is not None for m in modules if m.part == part and DOWN in m.tensors)
        if wanted:
            ranks = [m.rank for m in modules if m.part == part and DOWN in m.tensors and m.rank]
            chosen[part] = wanted.pop() if len(wanted) == 1 and stated else float(max(ranks))
    return [_with_alpha(m, chosen[m.part]) if DOWN in m.tensors else m for m in modules]


def _with_alpha(module: Module, alpha: float) -> Module:
    assert module.rank is not None
    own, up = module.scale * module.rank, module.tensors[UP]
    if own != alpha:
        up = (up.float() * (own / alpha)).to(up.dtype)
    return replace(module, tensors={**module.tensors, UP: up, ALPHA: alpha_tensor(alpha)})
