"""The writer: names for SDXL 1.0, hashes, the round trip through a file, and the loader of diffusers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.conftest import MODELS
from trainer.adapter.lora import Adapter, LayerSpec
from trainer.adapter.targets import linear_paths
from trainer.errors import LoraFileError
from trainer.lora_file.attach import attach_lora, changed_parts
from trainer.lora_file.describe import describe
from trainer.lora_file.metadata import with_hashes
from trainer.lora_file.module_names import kohya_name
from trainer.lora_file.reader import read_modules
from trainer.lora_file.writer import save_lora
from trainer.sdxl.base import ORIGINAL, open_base
from trainer.sdxl.unet_names import sgm_path
from trainer.sdxl.weights import build

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base():
    return open_base("tiny-sdxl", MODELS)


@pytest.fixture(scope="module")
def true_sdxl() -> UNet2DConditionModel:
    """SDXL 1.0's UNet without its weights."""
    return build("unet", ORIGINAL)


def test_true_sdxl_has_the_modules_that_kohya_names(true_sdxl):
    assert sum(p.numel() for p in true_sdxl.parameters()) == 2_567_463_684
    assert len(linear_paths("unet", true_sdxl)) == 560
    names = {kohya_name("unet", path) for path in linear_paths("unet", true_sdxl, feed_forward=True)}
    assert len(names) == 722
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q" in names
    assert "lora_unet_middle_block_1_transformer_blocks_9_attn2_to_out_0" in names
    assert "lora_unet_output_blocks_5_1_proj_in" in names
    assert "lora_unet_input_blocks_8_1_transformer_blocks_9_ff_net_0_proj" in names


def test_every_weight_of_true_sdxl_has_one_original_name(true_sdxl):
    modules = {name.rpartition(".")[0] for name, _ in true_sdxl.named_parameters()}
    assert len({sgm_path(module) for module in modules}) == len(modules)
    assert sgm_path("down_blocks.0.downsamplers.0.conv") == "input_blocks.3.0.op"
    assert sgm_path("up_blocks.1.upsamplers.0.conv") == "output_blocks.5.2.conv"
    assert sgm_path("mid_block.resnets.1.conv1") == "middle_block.2.in_layers.2"


def test_names_of_text_encoders_contain_text_model():
    name = kohya_name("text_encoder", "encoder.layers.0.self_attn.q_proj")
    assert name == "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    assert (
        kohya_name("text_encoder_2", "text_model.encoder.layers.31.mlp.fc2")
        == "lora_te2_text_model_encoder_layers_31_mlp_fc2"
    )


def adapted(alpha: float = 6.0) -> tuple[Adapter, dict]:
    base = open_base("tiny-sdxl", MODELS)
    encoders = base.text_encoders(CPU, torch.float32)
    models = {
        "unet": base.unet(CPU, torch.float32),
        "text_encoder": encoders[0],
        "text_encoder_2": encoders[1],
    }
    adapter, generator = Adapter(), torch.Generator().manual_seed(2)
    for part, model in models.items():
        adapter.attach(part, model, dict.fromkeys(linear_paths(part, model), LayerSpec(rank=4, alpha=alpha)))
    adapter.init_weights(0)
    with torch.no_grad():
        for _, _, layer in adapter.walk():
            up = layer.tensors()["up"]
            up.copy_(0.02 * torch.randn(up.shape, generator=generator))
    return adapter, models


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_a_saved_file_is_read_back_with_the_same_change(format: str, tmp_path: Path):
    adapter, _ = adapted()
    save_lora(tmp_path / "a.safetensors", adapter, {}, format=format)
    assert changed_parts(tmp_path / "a.safetensors") == {"unet", "text_encoder", "text_encoder_2"}
    _, fresh = adapted()
    for model in fresh.values():
        for path in [n for n, m in model.named_modules() if type(m).__name__ == "LoraLinear"]:
            model.set_submodule(path, model.get_submodule(path).base)
    again = attach_lora(tmp_path / "a.safetensors", fresh)
    for (_, _, mine), (_, _, loaded) in zip(adapter.walk(), again.walk(), strict=True):
        torch.testing.assert_close(loaded.change(), mine.change(), rtol=5e-3, atol=1e-5)


def test_the_kohya_file_is_what_other_tools_expect(tmp_path: Path):
    adapter, _ = adapted()
    save_lora(tmp_path / "a.safetensors", adapter, {"ss_base_model_version": "sdxl_base_v1-0"})
    tensors = load_file(tmp_path / "a.safetensors")
    assert all(
        key.startswith(
            (
                "lora_unet_input",
                "lora_unet_mid",
                "lora_unet_output",
                "lora_te1_text_model_",
                "lora_te2_text_model_",
            )
        )
        for key in tensors
    )
    assert all(t.dtype == torch.float16 for t in tensors.values())
    alphas = [t for key, t in tensors.items() if key.endswith(".alpha")]
    assert len(alphas) * 3 == len(tensors)
    assert all(t.shape == () and t.item() == 6.0 for t in alphas)


def test_hashes_are_right_on_the_final_bytes(ink_run: Path, tmp_path: Path):
    data = (ink_run / "ink.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8:start])["__metadata__"]
    tensor_hash = hashlib.sha256(data[start:]).hexdigest()
    assert metadata["sshs_model_hash"] == tensor_hash
    assert metadata["modelspec.hash_sha256"] == "0x" + tensor_hash
    # Kohya's legacy hash is of 64 KiB at 1 MiB of the file as it is with the ss_* metadata alone.
    with safe_open(ink_run / "ink.safetensors", framework="pt") as file:
        kohya_only = {key: value for key, value in file.metadata().items() if key.startswith("ss_")}
    save_file(load_file(ink_run / "ink.safetensors"), tmp_path / "kohya.safetensors", metadata=kohya_only)
    window = (tmp_path / "kohya.safetensors").read_bytes()[0x100000:0x110000]
    assert metadata["sshs_legacy_hash"] == hashlib.sha256(window).hexdigest()[:8]


def test_the_legacy_hash_of_a_file_beyond_one_mebibyte_depends_on_its_values():
    hashes = set()
    for value in (0.0, 1.0):
        metadata = with_hashes(
            {"a.lora_up.weight": torch.full((1024, 1024), value, dtype=torch.float16)},
            {"ss_output_name": "a"},
        )
        hashes.add(metadata["sshs_legacy_hash"])
    assert len(hashes) == 2


def test_metadata_has_the_entries_of_tools_and_no_captions_or_folder_names(ink_run: Path):
    with safe_open(ink_run / "ink.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    assert metadata["ss_v2"] == "False"
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert metadata["modelspec.trigger_phrase"] == "ink"
    assert metadata["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    assert metadata["ss_network_dim"] == "16"
    assert float(metadata["ss_network_alpha"]) == 16
    assert not {"ss_tag_frequency", "ss_dataset_dirs", "ss_datasets", "lora_adapter_metadata"} & set(metadata)
    assert "ink-emoji" not in json.dumps(metadata)
    assert "umbrella" not in json.dumps(metadata)
    assert sum(map(len, metadata.values())) < 1 << 20


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
@pytest.mark.filterwarnings("ignore")
def test_diffusers_loads_it_with_the_same_effect(format: str, tmp_path: Path):
    adapter, models = adapted()
    save_lora(tmp_path / "a.safetensors", adapter, {"ss_base_model_version": "sdxl_base_v1-0"}, format=format)
    pipe = StableDiffusionXLPipeline.from_pretrained(
        MODELS / "tiny-sdxl", torch_dtype=torch.float32, local_files_only=True
    )
    pipe.load_lora_weights(str(tmp_path / "a.safetensors"))
    loaded = {n for n, _ in pipe.unet.named_modules() if n.endswith("lora_A.default_0")}
    assert len(loaded) == len(adapter.layers["unet"])
    theirs = pipe.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2.to_k")
    ours = adapter.layers["unet"]["mid_block.attentions.0.transformer_blocks.0.attn2.to_k"]
    x = torch.randn(1, 3, ours.base.weight.shape[1])
    torch.testing.assert_close(theirs(x), ours(x), rtol=5e-3, atol=5e-4)
    prompt = "a cat"
    ids = pipe.tokenizer_2(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(
            pipe.text_encoder_2(ids)[0], models["text_encoder_2"](ids)[0], rtol=2e-2, atol=5e-3
        )


def test_a_module_that_the_base_lacks_raises_an_error(ink_run: Path, tmp_path: Path):
    tensors = load_file(ink_run / "ink.safetensors")
    name = next(key for key in tensors if key.endswith(".alpha")).removesuffix(".alpha")
    moved = {
        key.replace(name, "lora_unet_input_blocks_99_1_attn1_to_q"): tensor for key, tensor in tensors.items()
    }
    save_file(moved, tmp_path / "other.safetensors")
    with pytest.raises(LoraFileError, match="input_blocks_99"):
        attach_lora(
            tmp_path / "other.safetensors", {"unet": open_base("tiny-sdxl", MODELS).unet(CPU, torch.float32)}
        )


@pytest.mark.parametrize(
    "content",
    [b"", b"short", b"\x80\x04\x95" + b"x" * 100, b"\xff" * 64, (10).to_bytes(8, "little") + b"not json!!"],
)
def test_a_file_of_another_kind_is_refused_in_a_sentence(content: bytes, tmp_path: Path):
    path = tmp_path / "evil.safetensors"
    path.write_bytes(content)
    with pytest.raises(LoraFileError, match=r"evil\.safetensors"):
        read_modules(path)


def test_inspect_describes_parts_ranks_and_metadata(ink_run: Path):
    described = dict(describe(ink_run / "ink.safetensors"))
    assert "rank 16, alpha 16" in described["UNet"]
    assert described["modelspec.trigger_phrase"] == "ink"


# Files that others made.


def one(
    path: Path,
    tensors: dict[str, torch.Tensor],
    name: str = "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q",
) -> Path:
    save_file({f"{name}.{key}": tensor for key, tensor in tensors.items()}, path / "f.safetensors")
    return path / "f.safetensors"


@pytest.mark.parametrize(
    "spelling",
    [
        "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q.lora_{}.weight",
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_{}.weight",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_{}.weight",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora.{}.weight",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.{}.weight",
        "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_{}.weight",
    ],
)
def test_every_spelling_of_a_layer_is_found(base, spelling: str, tmp_path: Path):
    sides = ("A", "B") if spelling.startswith(("unet", "base")) and "lora_{}" in spelling else ("down", "up")
    tensors = {spelling.format(sides[0]): torch.randn(4, 112), spelling.format(sides[1]): torch.randn(112, 4)}
    save_file(tensors, tmp_path / "a.safetensors")
    adapter = attach_lora(tmp_path / "a.safetensors", {"unet": base.unet(CPU, torch.float32)})
    assert list(adapter.layers["unet"]) == ["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"]


@pytest.mark.parametrize(
    ("tensors", "word"),
    [
        ({"lora_down.weight": torch.ones(4, 112)}, "no up matrix"),
        (
            {"lora_down.weight": torch.ones(4, 112), "lora_up.weight": torch.ones(112, 5)},
            "don't fit each other",
        ),
        ({"lora_down.weight": torch.ones(4, 111), "lora_up.weight": torch.ones(112, 4)}, "another shape"),
        (
            {"lora_down.weight": torch.ones(0, 112), "lora_up.weight": torch.ones(112, 0)},
            "don't fit each other",
        ),
        (
            {"lora_down.weight": torch.ones(4, 112, dtype=torch.int8), "lora_up.weight": torch.ones(112, 4)},
            "as I8",
        ),
        (
            {"lora_down.weight": torch.ones(4, 112), "lora_up.weight": torch.full((112, 4), torch.nan)},
            "no numbers",
        ),
        (
            {
                "lora_down.weight": torch.ones(4, 112),
                "lora_up.weight": torch.ones(112, 4),
                "alpha": torch.ones(2),
            },
            "several numbers",
        ),
        (
            {
                "lora_down.weight": torch.ones(4, 112),
                "lora_up.weight": torch.ones(112, 4),
                "alpha": torch.tensor(torch.inf),
            },
            "no numbers",
        ),
        (
            {
                "lora_down.weight": torch.ones(4, 112),
                "lora_up.weight": torch.ones(112, 4),
                "dora_scale": torch.ones(7),
            },
            "dora_scale of shape",
        ),
        (
            {
                "hada_w1_a": torch.ones(112, 4),
                "hada_w1_b": torch.ones(4, 112),
                "hada_w2_a": torch.ones(112, 4),
            },
            "no hada_w2_b",
        ),
        ({"lokr_w1": torch.ones(1000, 1000), "lokr_w2": torch.ones(1000, 1000)}, "don't fit each other"),
        ({"lokr_w1": torch.ones(8, 8), "lokr_w2_a": torch.ones(14, 2)}, "no lokr_w2"),
        (
            {"lora_mid.weight": torch.ones(4, 4, 3, 3), "lora_down.weight": torch.ones(4, 112)},
            "no up matrix",
        ),
        ({"oft_blocks": torch.ones(4, 4)}, "OFT or BOFT"),
        ({"alpha": torch.ones(())}, "no part of a LoRA"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else value,
)
def test_matrices_that_do_not_fit_are_refused_in_a_sentence(base, tensors, word: str, tmp_path: Path):
    unet = base.unet(CPU, torch.float32)
    names = [name for name, _ in unet.named_modules()]
    with pytest.raises(LoraFileError, match=word) as error:
        attach_lora(one(tmp_path, tensors), {"unet": unet})
    assert "\n" not in str(error.value)
    assert [name for name, _ in unet.named_modules()] == names


@given(data=st.data())
def test_a_damaged_file_is_refused_and_never_crashes(data, tmp_path_factory):
    path = one(
        tmp_path_factory.mktemp("f"),
        {"lora_down.weight": torch.ones(4, 8), "lora_up.weight": torch.ones(8, 4)},
    )
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(300, len(content) - 1)))] = data.draw(st.integers(0, 255))
    path.write_bytes(
        content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    )
    message = "f.safetensors"
    try:
        read_modules(path)
        dict(describe(path))
    except LoraFileError as error:
        message = str(error)
    assert "f.safetensors" in message


@pytest.mark.parametrize(
    "header",
    [
        '{"a.lora_down.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},"a.lora_up.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[2,6]}}',
        '{"a.lora_down.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4294967296]}}',
        '{"a.lora_down.weight":{"dtype":"F12","shape":[1,1],"data_offsets":[0,8]}}',
        '{"a.lora_down.weight":{"dtype":"F32","shape":[-1,1],"data_offsets":[0,8]}}',
        '{"a.lora_down.weight":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}',
        '{"__metadata__":{"a":1},"a.lora_down.weight":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}}',
        "[" * 100_000,
        "[]",
        "{}",
    ],
    ids=[
        "overlap",
        "beyond the end",
        "odd dtype",
        "negative",
        "overflow",
        "metadata",
        "deep",
        "list",
        "empty",
    ],
)
def test_a_hostile_header_is_refused_in_a_sentence(header: str, tmp_path: Path):
    path = tmp_path / "h.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(8))
    with pytest.raises(LoraFileError, match=r"h\.safetensors"):
        read_modules(path)
