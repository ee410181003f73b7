"""The scale alpha / R of a LoRA file, which programs keep in four places.

    place                           written by                  applies to
    1 `.alpha` beside the matrices  kohya, LyCORIS, OneTrainer  its module
    2 `lora_adapter_metadata`       diffusers, SimpleTuner      modules of the parts that it names
    3 `ss_network_alpha`            kohya                       modules with kohya's names, if no module has 1
    4 `adapter_config.json`         PEFT, beside the file       a file of PEFT (`base_model.model.` names)

The first place that applies to a module wins; without any, alpha = R (scale 1). 2 and 3 are in the header of
the file.

3 is limited in two ways. Beside `.alpha` it only repeats what the training used, and is wrong after a resize.
Files with PEFT's names have no alpha by definition: their writers, `lora convert --to diffusers` among them,
multiply the scale into lora_B and keep kohya's metadata as a record of the training.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.errors import LoraFileError
from trainer.headers.lora import PEFT_WEIGHTS, bundled_notice, lora_path, recognise
from trainer.headers.safetensors import Header
from trainer.lora_file.modules import PART_LABELS, LoraModule
from trainer.lora_file.tensor_names import ALPHA, DOWN

METADATA_KEY = "lora_adapter_metadata"
PEFT_CONFIG = "adapter_config.json"
_PEFT_PREFIX = "base_model.model."
_ALPHA_KEYS = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha"}  # by the type of PEFT's adapter
_CHANGED_BASES = ("pissa", "olora", "corda", "lora_ga", "loftq")
_MOST_CONFIG_BYTES = 4 << 20
_MOST_EXPRESSIONS = 100  # of a pattern table; PEFT and diffusers write plain names, one for each module


@dataclass(frozen=True)
class _PeftScale:
    """Alpha as a PEFT configuration states it, for one part."""

    alpha: float
    alphas: _Patterns
    is_rank_stabilised: bool  # scale alpha / sqrt(R) (Kalajdzievski 2023)
    rank: int | None = None  # stated rank; None: not compared with the file
    ranks: _Patterns | None = None

    def alpha_of(self, module: LoraModule) -> float:
        """The alpha that gives the scale of the configuration as alpha / R."""
        assert module.rank
        alpha = self.alphas.value(module.path, self.alpha)
        return alpha * math.sqrt(module.rank) if self.is_rank_stabilised else alpha


@dataclass(frozen=True)
class Scales:
    """The alphas that a file keeps apart from its matrices."""

    file: Path
    from_metadata: Mapping[str, _PeftScale]  # by part
    kohya_alpha: float | None
    kohya_conv_alpha: float | None
    from_config: _PeftScale | None
    misses_config: bool  # PEFT's own file without the configuration beside it

    def source(self, module: LoraModule, name: str) -> str | None:
        """The place where the alpha of a module that has no `.alpha` is stored, or None for scale 1.

        Args:
            name: the module's name as the file spells it.
        """
        if not module.rank:
            return None
        if module.part in self.from_metadata and DOWN in module.tensors:
            return METADATA_KEY
        if self.kohya_alpha is not None and name.startswith("lora_"):
            return "ss_network_alpha"
        return PEFT_CONFIG if self.from_config else None

    def applied(self, module: LoraModule, name: str) -> LoraModule:
        """The module with its alpha among the tensors.

        Raises:
            LoraFileError: the configuration states another rank than that of the matrices.
        """
        source = None if ALPHA in module.tensors else self.source(module, name)
        if source is None:
            return self._whole_lokr_of_peft(module)
        if source == METADATA_KEY:
            alpha = self.from_metadata[module.part].alpha_of(module)
        elif source == PEFT_CONFIG:
            assert self.from_config
            self._expect_rank(module, self.from_config)
            alpha = self.from_config.alpha_of(module)
        else:
            is_spatial = any(side > 1 for side in module.kernel)
            alpha = self.kohya_conv_alpha if is_spatial and self.kohya_conv_alpha is not None else None
            alpha = self.kohya_alpha if alpha is None else alpha
        assert alpha is not None
        return module.with_alpha(alpha)

    def _whole_lokr_of_peft(self, module: LoraModule) -> LoraModule:
        """The module with PEFT's scale in its first factor, if it is a LoKr of whole factors.

        LyCORIS gives such a LoKr scale 1 and ignores its alpha. PEFT scales it by alpha / r.
        """
        config = self.from_config
        if config is None or config.rank is None or not {"lokr_w1", "lokr_w2"} <= set(module.tensors):
            return module
        rank = config.ranks.value(module.path, config.rank) if config.ranks else config.rank
        scale = config.alphas.value(module.path, config.alpha) / rank
        first = module.tensors["lokr_w1"].float() * scale
        return replace(module, tensors={**module.tensors, "lokr_w1": first})

    def _expect_rank(self, module: LoraModule, config: _PeftScale) -> None:
        """Raises LoraFileError unless the rank of the matrices is the one that the configuration states."""
        if config.rank is None or config.ranks is None:
            return
        stated = config.ranks.value(module.path, config.rank)
        if stated != module.rank:
            raise LoraFileError(
                f"{PEFT_CONFIG} beside {self.file.name} states rank {stated:g} for {module.path}, and its "
                f"matrices have rank {module.rank}; put the {PEFT_CONFIG} of this file beside it"
            )


def read_scales(file: Path, header: Header) -> Scales:
    """Reads the scale from the header of a file and from the configuration beside it.

    Raises:
        LoraFileError: one of them is damaged, or describes an adapter that is not read.
    """
    is_peft = file.name == PEFT_WEIGHTS or all(_PEFT_PREFIX in key for key in header.tensors)
    config = file.with_name(PEFT_CONFIG)
    has_config = is_peft and config.is_file()
    has_alpha = any(key.endswith(".alpha") for key in header.tensors)
    from_metadata = _from_metadata(file, header.metadata)
    alpha, conv_alpha = (None, None) if has_alpha else _kohya_alphas(header.metadata)
    return Scales(
        file,
        from_metadata,
        alpha,
        conv_alpha,
        _from_config(file, config) if has_config else None,
        misses_config=is_peft and not has_config and not has_alpha and not from_metadata,
    )


def scale_notice(file: Path, header: Header) -> str:
    """A sentence for a file of PEFT without its configuration, which has the scale; "" for other files."""
    if not read_scales(file, header).misses_config:
        return ""
    return (
        f"{file.name} is a file of PEFT, which keeps its scale in {PEFT_CONFIG}; that is not beside it, "
        "so scale 1 is used and the LoRA may be too strong or too weak"
    )


def file_notice(file: Path) -> str:
    """The sentences of `bundled_notice` and `scale_notice` for a file, or ""."""
    file = lora_path(file)
    header = recognise(file)
    notices = bundled_notice(file, header.tensors), scale_notice(file, header)
    return "; ".join(filter(None, notices))


def _from_metadata(file: Path, metadata: Mapping[str, str]) -> dict[str, _PeftScale]:
    """PEFT configurations by part.

    diffusers writes those of a pipeline into one header entry with a prefix for each part, and that of a UNet
    alone (`save_lora_adapter`) without a prefix.
    """
    scales = {}
    try:
        config = _json_object(metadata.get(METADATA_KEY, ""))
        prefixes = {part: f"{part}." for part in PART_LABELS}
        if "unet.lora_alpha" not in config:
            prefixes["unet"] = ""
        for part, prefix in prefixes.items():
            alpha = config.get(f"{prefix}lora_alpha")
            if alpha is not None:
                patterns = _Patterns.of(config.get(f"{prefix}alpha_pattern"))
                scales[part] = _PeftScale(_number(alpha), patterns, bool(config.get(f"{prefix}use_rslora")))
    except (ValueError, TypeError, AttributeError, RecursionError, re.error, OverflowError):
        raise LoraFileError(f"{file.name} has damaged {METADATA_KEY} in its header; save it again") from None
    return scales


def _json_object(text: str) -> Any:
    """JSON of an entry, {} for an empty one. Some programs write JSON as a string inside of JSON.

    Raises:
        ValueError, RecursionError: the text is no JSON.
    """
    text = text.strip().removeprefix("\ufeff")
    parsed = {} if text in ("", "None") else json.loads(text)
    if isinstance(parsed, str):
        parsed = json.loads(parsed)
    return {} if parsed is None else parsed


def _kohya_alphas(metadata: Mapping[str, str]) -> tuple[float | None, float | None]:
    """(alpha, alpha of convolutions with a kernel) of kohya's metadata; None where it has no number."""
    try:
        arguments = _json_object(metadata.get("ss_network_args", ""))
    except (ValueError, RecursionError):
        arguments = {}
    conv_alpha = arguments.get("conv_alpha") if isinstance(arguments, dict) else None
    stated = metadata.get("ss_network_alpha"), conv_alpha
    alphas: list[float | None] = []
    for value in stated:
        try:
            alphas.append(_number(value))
        except (ValueError, TypeError, OverflowError):
            alphas.append(None)  # "None" or "Dynamic"
    return alphas[0], alphas[1]


def _from_config(file: Path, path: Path) -> _PeftScale:
    """The scale of PEFT's own configuration file."""
    damaged = LoraFileError(
        f"{PEFT_CONFIG} beside {file.name} is damaged or has no lora_alpha; copy it again from its maker"
    )
    try:
        if path.stat().st_size > _MOST_CONFIG_BYTES:
            raise damaged
        config = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise LoraFileError(
            f"{PEFT_CONFIG} beside {file.name} can't be read ({error.strerror}); copy it again"
        ) from None
    except (ValueError, RecursionError):
        raise damaged from None
    config = config if isinstance(config, dict) else {}
    alpha_key = _expect_read_by_others(file, config)
    try:
        rank = config.get("r")
        return _PeftScale(
            _number(config.get(alpha_key)),
            _Patterns.of(config.get("alpha_pattern")),
            bool(config.get("use_rslora")),
            None if rank is None else int(_number(rank)),
            _Patterns.of(config.get("rank_pattern")),
        )
    except (ValueError, TypeError, AttributeError, OverflowError, re.error):
        raise damaged from None


def _expect_read_by_others(file: Path, config: Mapping[str, Any]) -> str:
    """The entry that has the alpha of a configuration.

    Raises:
        LoraFileError: PEFT alone reads the adapter, or it belongs to a base that PEFT changed.
    """
    kind = config.get("peft_type", "LORA")
    if kind not in _ALPHA_KEYS:
        raise LoraFileError(
            f"{PEFT_CONFIG} beside {file.name} describes an adapter of type {str(kind)[:40]}, and of PEFT "
            f"only {', '.join(_ALPHA_KEYS)} are read; convert it to kohya's format in the program that made it"
        )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_CHANGED_BASES):
        raise LoraFileError(
            f"{PEFT_CONFIG} beside {file.name} has init_lora_weights = {start[:40]}, so the adapter belongs to a "
            "base whose weights PEFT changed; save it with path_initial_model_for_weight_conversion"
        )
    return _ALPHA_KEYS[kind]


def _number(value: Any) -> float:
    """A finite number. Raises ValueError or TypeError for anything else."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


@dataclass(frozen=True)
class _Patterns:
    """A table of PEFT from regular expressions for the end of a module path to values; the first match wins.

    The file is not trusted: an expression such as `(a+)+b` takes hours on one path. Plain names, which is
    what PEFT and diffusers write, are looked up without matching; other expressions must be of a form that
    ends soon.

    Attributes:
        names: (position in the table, value) by name; `^` begins a name that is the complete path.
        expressions: (position in the table, expression, value) of the others.
    """

    names: Mapping[str, tuple[int, float]]
    expressions: tuple[tuple[int, re.Pattern[str], float], ...]

    @staticmethod
    def of(table: Any) -> _Patterns:
        """Raises ValueError, TypeError, AttributeError, OverflowError or re.error for a damaged table."""
        names: dict[str, tuple[int, float]] = {}
        expressions = []
        for position, (pattern, value) in enumerate((table or {}).items()):
            anchor = "^" if pattern.startswith("^") else ""
            name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".").removeprefix("text_model.")
            if re.fullmatch(r"[\w.]+", name):
                names.setdefault(anchor + name, (position, _number(value)))
            elif _ends_soon(pattern) and len(expressions) < _MOST_EXPRESSIONS:
                expressions.append((position, re.compile(rf"(?:.*\.)?(?:{pattern})"), _number(value)))
            else:
                raise ValueError
        return _Patterns(names, tuple(expressions))

    def value(self, path: str, default: float) -> float:
        """The value of the first pattern that matches `path`, with or without `text_model.` before it."""
        parts = path.split(".")
        ends = [f"^{path}", *(".".join(parts[start:]) for start in range(len(parts)))]
        matches = [self.names[end] for end in ends if end in self.names]
        matches += [
            (position, value)
            for position, expression, value in self.expressions
            if expression.fullmatch(path) or expression.fullmatch(f"text_model.{path}")
        ]
        return min(matches)[1] if matches else default


def _ends_soon(pattern: str) -> bool:
    """True for an expression without repeated groups and with few repetitions, so that matching is cheap."""
    repeats = len(re.findall(r"[*+{?]", pattern))
    return len(pattern) <= 300 and repeats <= 2 and not re.search(r"\)[*+{?]|\\\d", pattern)
