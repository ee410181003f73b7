"""How each network is written in a file: the endings of its tensors' names, and what kohya's metadata calls it."""

from __future__ import annotations

import json
import re
from typing import Any

from trainer.config import TrainConfig, block_values

# Role -> every ending in use, kohya's and LyCORIS's first: it is the one that is written.
ENDINGS = {
    "down": (
        ".lora_down.weight",
        ".lora_A.weight",
        ".lora.down.weight",
        ".lora_linear_layer.down.weight",
        ".lora_A.default.weight",
    ),
    "up": (
        ".lora_up.weight",
        ".lora_B.weight",
        ".lora.up.weight",
        ".lora_linear_layer.up.weight",
        ".lora_B.default.weight",
    ),
    "mid": (".lora_mid.weight",),
    "alpha": (".alpha",),
    "dora_scale": (
        ".dora_scale",
        ".lora_magnitude_vector",
        ".lora_magnitude_vector.weight",
        ".lora_magnitude_vector.default.weight",
    ),
    **{
        role: (f".{role}",)
        for role in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
    },
    **{
        role: (f".{role}",)
        for role in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
    },
    "diff": (".diff",),
}
_PROCESSOR = re.compile(r"\.processor\.to_(q|k|v|out)_lora\.(down|up)\.weight$")  # diffusers before 0.22


def split_key(key: str) -> tuple[str, str] | None:
    """(module, role) of a tensor's name; None when it is part of no network."""
    if match := _PROCESSOR.search(key):
        key = (
            f"{key[: match.start()]}.to_{match[1]}{'.0' if match[1] == 'out' else ''}.lora.{match[2]}.weight"
        )
    key = key.removeprefix("base_model.model.")  # PEFT's own files
    for role, endings in ENDINGS.items():
        for ending in endings:
            if key.endswith(ending):
                return key.removesuffix(ending), role
    return None


def ending(role: str) -> str:
    return ENDINGS[role][0]


def network_facts(config: TrainConfig) -> dict[str, Any]:
    """`network_module`, `network_dim`, `network_alpha`, `network_dropout` and `network_args` of kohya's metadata."""
    stabiliser = config.rank**0.5 if config.rank_stabilised else 1
    return {
        "network_module": "networks.lora" if config.network in ("lora", "locon") else "lycoris.kohya",
        "network_dim": config.rank,
        "network_alpha": config.alpha * stabiliser,
        "network_dropout": config.network_dropout or None,
        "network_args": json.dumps({name: str(value) for name, value in _arguments(config).items() if value}),
    }


def _arguments(config: TrainConfig) -> dict[str, Any]:
    """What kohya's `--network_args` would have to say; what is off is left out."""
    algorithm: dict[str, Any] = {
        "dora": {"algo": "lora", "dora_wd": True, "wd_on_output": "False"},
        "loha": {"algo": "loha"},
        "lokr": {"algo": "lokr", "factor": config.lokr_factor or -1},
    }.get(config.network, {})
    return {
        **algorithm,
        **(
            {"conv_dim": config.conv_rank, "conv_alpha": config.conv_alpha}
            if config.network == "locon"
            else {}
        ),
        "block_dims": ",".join(f"{value:g}" for value in block_values(config.block_ranks)),
        "rank_dropout": config.rank_dropout,
        "module_dropout": config.module_dropout,
        "loraplus_lr_ratio": config.lora_plus_ratio if config.lora_plus_ratio != 1 else None,
        "rs_lora": config.rank_stabilised,
    }
