"""The reader and convert: every spelling is read, and a new file has the same change, also in diffusers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from lycoris.functional import loha, lokr
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.trainer.lora_file.lora_samples import (
    ATTENTION,
    CONVOLUTION,
    METADATA,
    TINY,
    Place,
    assert_same,
    changed_by_diffusers,
    changes_of,
    shape_of,
    write_lora,
)
from trainer.errors import LoraFileError
from trainer.lora_file.base_weights import base_weights
from trainer.lora_file.edit.bake import bake
from trainer.lora_file.edit.convert import convert
from trainer.lora_file.edit.resize import resize
from trainer.lora_file.module_names import accepted_names, kohya_name
from trainer.lora_file.reader import read_modules
from trainer.lora_file.sdxl_modules import sdxl

FORMS = ("kohya", "kohya-diffusers", "diffusers")


def test_the_modules_of_sdxl_are_those_that_diffusers_and_transformers_build():
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            attention_head_dim=(5, 10, 20),  # pyright: ignore[reportArgumentType]
            cross_attention_dim=2048,
            transformer_layers_per_block=(1, 2, 10),  # pyright: ignore[reportArgumentType]
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        )
        first = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
            )
        )
        second = CLIPTextModelWithProjection(
            CLIPTextConfig(
                hidden_size=1280,
                intermediate_size=5120,
                num_hidden_layers=32,
                num_attention_heads=20,
                projection_dim=1280,
            )
        )
    for part, model in (("unet", unet), ("text_encoder", first), ("text_encoder_2", second)):
        weights = {
            name.removesuffix(".weight"): p
            for name, p in model.named_parameters()
            if name.endswith(".weight")
        }
        assert {
            name.removeprefix("text_model."): tuple(p.shape) for name, p in weights.items()
        } == sdxl().shapes[part]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
def test_diffusers_reads_every_module_of_a_converted_file_with_the_same_change(
    form: str, places, tmp_path: Path, caplog
):
    # add_embedding in diffusers' block names is beyond diffusers' own conversion; `lora check` says so.
    places = {place: shape for place, shape in places.items() if "add_embedding" not in place[1]}
    # Ranks and alphas differ within a part, which diffusers reads wrongly in the original file.
    changes = write_lora(
        tmp_path / "a.safetensors", places, rank=lambda n: 2 + n % 3, alpha=lambda n: 1.0 + n % 2
    )
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", form)
    assert_same(changed_by_diffusers({tmp_path / "b.safetensors": 1.0}, places, caplog), changes, atol=1e-4)


def test_diffusers_reads_several_alphas_of_a_part_wrongly_until_the_file_is_converted(
    places, tmp_path: Path, caplog
):
    """The reason for one alpha in each part; this test fails once diffusers reads several alphas right."""
    some = {place: shape for place, shape in places.items() if ".attn1." in place[1]}
    changes = write_lora(tmp_path / "a.safetensors", some, alpha=lambda n: 1.0 + n % 2)
    with pytest.warns(RuntimeWarning):
        wrong = changed_by_diffusers({tmp_path / "a.safetensors": 1.0}, some, caplog)
    with pytest.raises(AssertionError):
        assert_same(wrong, changes, atol=1e-4)


@pytest.mark.parametrize("start", FORMS)
@pytest.mark.parametrize("end", FORMS)
def test_a_file_converted_there_and_back_changes_the_base_as_before(
    start: str, end: str, places, tmp_path: Path
):
    changes = write_lora(
        tmp_path / "a.safetensors",
        places,
        rank=lambda n: 1 + n % 4,
        alpha=lambda n: None if n % 5 == 0 else 1.0,
    )
    for number, (source, form) in enumerate((("a", start), ("0", end), ("1", "kohya"))):
        convert(tmp_path / f"{source}.safetensors", tmp_path / f"{number}.safetensors", form)
    assert_same(changes_of(tmp_path / "2.safetensors"), changes)
    names = {key.partition(".")[0] for key in load_file(tmp_path / "2.safetensors")}
    assert names == {kohya_name(*place) for place in places}


@pytest.mark.parametrize("spelling", range(5))
def test_every_spelling_in_use_is_read(spelling: int, places, tmp_path: Path):
    def naming(part: str, path: str) -> str:
        names = accepted_names(part, path)
        return names[min(spelling, len(names) - 1)]

    changes = write_lora(tmp_path / "a.safetensors", places, naming=naming)
    assert_same(changes_of(tmp_path / "a.safetensors"), changes)


def test_names_of_old_diffusers_and_of_sd15_trainers_are_read(tmp_path: Path):
    block, layer = (
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1",
        "text_model.encoder.layers.0.self_attn.q_proj",
    )
    up, down = torch.randn(96, 2), torch.randn(2, 96)
    pairs = {
        f"unet.{block}.processor.to_out_lora": ("up.weight", "down.weight"),
        f"unet.{block}.to_q": ("lora.up.weight", "lora.down.weight"),
        f"text_encoder.{layer}": ("lora_linear_layer.up.weight", "lora_linear_layer.down.weight"),
        "lora_te_text_model_encoder_layers_1_mlp_fc1": ("lora_up.weight", "lora_down.weight"),
    }
    save_file(
        {
            f"{name}.{end}": tensor.clone()
            for name, ends in pairs.items()
            for end, tensor in zip(ends, (up, down), strict=True)
        },
        tmp_path / "a.safetensors",
    )
    assert {(m.part, m.path) for m in read_modules(tmp_path / "a.safetensors").modules} == {
        ("unet", f"{block}.to_out.0"),
        ("unet", f"{block}.to_q"),
        ("text_encoder", "encoder.layers.0.self_attn.q_proj"),
        ("text_encoder", "encoder.layers.1.mlp.fc1"),
    }


def test_metadata_is_kept_and_hashes_are_those_of_the_new_tensors(places, tmp_path: Path):
    write_lora(
        tmp_path / "a.safetensors",
        places,
        metadata={**METADATA, "sshs_model_hash": "stale", "lora_adapter_metadata": "{}"},
    )
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "kohya-diffusers")
    data = (tmp_path / "b.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8:start])["__metadata__"]
    assert {key: metadata[key] for key in METADATA} == METADATA
    assert metadata["ss_network_dim"] == "3"
    assert metadata["ss_network_alpha"] == "2"
    assert metadata["sshs_model_hash"] == hashlib.sha256(data[start:]).hexdigest()
    assert "lora_adapter_metadata" not in metadata, "diffusers refuses it beside .alpha"


def test_a_file_without_metadata_is_not_hidden_by_a1111_after_conversion(places, tmp_path: Path):
    write_lora(tmp_path / "a.safetensors", places, metadata={})
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "kohya")
    with safe_open(tmp_path / "b.safetensors", framework="pt") as file:
        assert file.metadata()["ss_base_model_version"].startswith("sdxl_")


@pytest.mark.filterwarnings("ignore")
def test_alpha_in_the_header_of_diffusers_own_file_is_applied(tmp_path: Path):
    unet = UNet2DConditionModel.from_pretrained(TINY / "unet", local_files_only=True)
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["to_q"],
        alpha_pattern={"mid_block.attentions.0.transformer_blocks.0.attn1.to_q": 2},
    )
    unet.add_adapter(config)
    for name, parameter in unet.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    StableDiffusionXLPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=dict(get_peft_model_state_dict(unet)),
        unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
        weight_name="a.safetensors",
    )
    expected = {
        ("unet", name): module.get_delta_weight("default").detach()
        for name, module in unet.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert_same(changes_of(tmp_path / "a.safetensors"), expected)


def dora_file(path: Path, places: Mapping[Place, tuple[int, ...]], *, rows: bool) -> None:
    write_lora(path, places)
    tensors, generator = load_file(path), torch.Generator().manual_seed(3)
    for place, shape in places.items():
        size = (shape[0], 1) if rows else (1, shape[1])
        tensors[f"{kohya_name(*place)}.dora_scale"] = 0.5 + torch.rand(size, generator=generator)
    save_file(tensors, path, metadata=METADATA)


@pytest.mark.filterwarnings("ignore")
def test_a_dora_of_rows_is_pefts_after_conversion_and_the_same_when_baked(places, tmp_path: Path, caplog):
    some = {place: shape for place, shape in places.items() if place[0] == "unet" and ".attn2." in place[1]}
    dora_file(tmp_path / "a.safetensors", some, rows=True)
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "diffusers")
    theirs = changed_by_diffusers({tmp_path / "b.safetensors": 1.0}, some, caplog)
    convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", "kohya")
    bake(tmp_path / "c.safetensors", tmp_path / "baked", TINY)
    before, after = base_weights(TINY)["unet"], base_weights(tmp_path / "baked")["unet"]
    for part, path in some:
        ours = after.tensor(path).float() - before.tensor(path).float()
        torch.testing.assert_close(ours, theirs[part, path], rtol=2e-3, atol=2e-3)  # fp16 weights


def test_a_dora_of_columns_is_refused_for_diffusers_and_baked_by_its_formula(tmp_path: Path):
    place = ("unet", ATTENTION)
    weight = base_weights(TINY)["unet"].tensor(ATTENTION).float()
    dora_file(tmp_path / "a.safetensors", {place: tuple(weight.shape)}, rows=False)
    with pytest.raises(LoraFileError, match="lora resize --base BASE"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "diffusers")
    bake(tmp_path / "a.safetensors", tmp_path / "baked", TINY, 0.5)
    (module,) = read_modules(tmp_path / "a.safetensors").modules
    up, down = module.matrices()
    merged = weight + 2 / 3 * up @ down
    decomposed = module.tensors["dora_scale"] * merged / merged.pow(2).sum(0, keepdim=True).sqrt()
    torch.testing.assert_close(
        base_weights(tmp_path / "baked")["unet"].tensor(ATTENTION),
        ((weight + decomposed) / 2).half(),
        rtol=2e-3,
        atol=1e-4,
    )


def loha_and_lokr(path: Path) -> dict[Place, torch.Tensor]:
    """A file with a LoHa and a LoKr module; their changes as LyCORIS computes them."""
    generator = torch.Generator().manual_seed(4)
    out, inputs = shape_of(ATTENTION)
    w1a, w1b, w2a, w2b = (
        0.3 * torch.randn(*s, generator=generator) for s in ((out, 2), (2, inputs), (out, 2), (2, inputs))
    )
    first, second = kohya_name("unet", ATTENTION), kohya_name("unet", CONVOLUTION)
    o, i = shape_of(CONVOLUTION)[:2]
    w1, left, right = (
        torch.randn(4, 4, generator=generator),
        torch.randn(o // 4, 2, generator=generator),
        torch.randn(2, i // 4 * 9, generator=generator),
    )
    save_file(
        {
            f"{first}.hada_w1_a": w1a,
            f"{first}.hada_w1_b": w1b,
            f"{first}.hada_w2_a": w2a,
            f"{first}.hada_w2_b": w2b,
            f"{first}.alpha": torch.tensor(1.0),
            f"{second}.lokr_w1": w1,
            f"{second}.lokr_w2_a": left,
            f"{second}.lokr_w2_b": right,
            f"{second}.alpha": torch.tensor(1.0),
        },
        path,
        metadata=METADATA,
    )
    kronecker = lokr.diff_weight(
        w1, None, None, None, left, right.reshape(2, i // 4, 3, 3), None, gamma=1.0
    )  # alpha: it divides by the rank
    scale: Any = torch.tensor(0.5)  # LyCORIS declares a float and requires a tensor
    return {
        ("unet", ATTENTION): loha.diff_weight(w1b, w1a, w2b, w2a, None, None, gamma=scale),
        ("unet", CONVOLUTION): kronecker.reshape(o, i, 3, 3),
    }


def test_loha_and_lokr_change_the_base_as_lycoris_does_and_become_plain_loras(tmp_path: Path):
    changes = loha_and_lokr(tmp_path / "a.safetensors")
    assert_same(changes_of(tmp_path / "a.safetensors"), changes, atol=1e-5)
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "kohya-diffusers")
    assert_same(changes_of(tmp_path / "b.safetensors"), changes, atol=1e-5)
    resize(tmp_path / "a.safetensors", tmp_path / "c.safetensors", energy=1)
    assert {module.kind for module in read_modules(tmp_path / "c.safetensors").modules} == {"LoRA", "LoCon"}
    assert_same(changes_of(tmp_path / "c.safetensors"), changes, atol=1e-4)
    bake(tmp_path / "a.safetensors", tmp_path / "baked", TINY)
    for _, path in changes:
        new, old = (
            base_weights(folder)["unet"].tensor(path).float() for folder in (tmp_path / "baked", TINY)
        )
        torch.testing.assert_close(new - old, changes["unet", path].reshape(old.shape), rtol=2e-3, atol=5e-3)


def test_diffusers_form_of_a_loha_is_refused_in_a_sentence(tmp_path: Path):
    loha_and_lokr(tmp_path / "a.safetensors")
    with pytest.raises(LoraFileError, match=r"holds a Lo(Ha|Kr) .* diffusers' files have no form"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "diffusers")


def test_a_module_under_two_spellings_is_refused(tmp_path: Path):
    names = accepted_names("unet", ATTENTION)
    save_file(
        {
            f"{name}.{end}": torch.zeros(2, 2)
            for name in names[:2]
            for end in ("lora_up.weight", "lora_down.weight")
        },
        tmp_path / "a.safetensors",
    )
    with pytest.raises(LoraFileError, match="twice"):
        read_modules(tmp_path / "a.safetensors")
