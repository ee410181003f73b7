"""Suffixes of tensor names by role, for every network and spelling.

A tensor name is a module name, in any spelling of `trainer.lora_file.module_names`, and a suffix:

    lora_unet_mid_block_..._to_q  .lora_down.weight     role `down` in kohya's form
    unet.mid_block....to_q        .lora_A.weight        role `down` in PEFT's form
"""

from __future__ import annotations

DOWN, UP, MID, ALPHA, DORA = "down", "up", "mid", "alpha", "dora_scale"
LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")

GLORA = ("a1", "a2", "b1", "b2")

# The suffix of kohya or LyCORIS comes first: it is the one that is written.
_SUFFIXES = {
    DOWN: (
        ".lora_down.weight",
        ".lora_A.weight",
        ".lora.down.weight",
        ".lora_linear_layer.down.weight",
        ".lora_A.default.weight",
        "_lora.down.weight",  # attention processors of diffusers before 0.22
    ),
    UP: (
        ".lora_up.weight",
        ".lora_B.weight",
        ".lora.up.weight",
        ".lora_linear_layer.up.weight",
        ".lora_B.default.weight",
        "_lora.up.weight",
    ),
    MID: (".lora_mid.weight",),
    ALPHA: (".alpha",),
    DORA: (
        ".dora_scale",
        ".lora_magnitude_vector",
        ".lora_magnitude_vector.weight",
        ".lora_magnitude_vector.default.weight",
    ),
}
_NAMED_BY_ROLE = (*LOHA, "hada_t1", "hada_t2", *LOKR, "lokr_t2", "diff")
# Tensors that LyCORIS and others write beside the networks read here. They are renamed and checked, but not
# computed with.
_OTHERS = (
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
    **{suffix: role for role, suffixes in _SUFFIXES.items() for suffix in suffixes},
    **{f".{role}": role for role in (*_NAMED_BY_ROLE, *_OTHERS)},
    **{f".{role}.weight": role for role in (*GLORA, "oft_R")},
}
_LONGEST_FIRST = sorted(_ROLES, key=len, reverse=True)  # `.weight` ends most of the others


def split_key(key: str) -> tuple[str, str, str] | None:
    """(module name as spelled, role, suffix) of a tensor name, or None for a tensor of no network."""
    for suffix in _LONGEST_FIRST:
        if key.endswith(suffix) and len(key) > len(suffix):
            return key.removesuffix(suffix), _ROLES[suffix], suffix
    return None


def suffix_of(role: str) -> str:
    """The suffix that kohya or LyCORIS writes for a role."""
    return f".{role}.weight" if role in (*GLORA, "oft_R") else suffixes_of(role)[0]


def suffixes_of(role: str) -> tuple[str, ...]:
    """All suffixes of a role, the one that is written first."""
    return _SUFFIXES.get(role, (f".{role}",))
