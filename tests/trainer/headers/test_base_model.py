"""Base models: SDXL checkpoints and folders open offline; other files are refused in a sentence that names
them.
"""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.conftest import INK, MODELS, SMALLEST
from tools.write_checkpoint import folder_weights, random_weights, write
from trainer.__main__ import main
from trainer.errors import BaseError
from trainer.headers.base_model import TEXT_1, TEXT_2, UNET, list_base_models, read_checkpoint
from trainer.headers.safetensors import read_header
from trainer.sdxl.base import ORIGINAL, open_base
from trainer.sdxl.ldm_names import ldm_source
from trainer.sdxl.weight_files import PARTS
from trainer.sdxl.weights import build

CPU = torch.device("cpu")
TINY = MODELS / "tiny-sdxl"


@pytest.fixture(scope="module")
def single_file(tmp_path_factory) -> Path:
    """The bundled base as a single file in the original layout."""
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    write(path, TINY, folder_weights(TINY), dtype=torch.float16)
    return path


def parts(base) -> dict[str, dict[str, torch.Tensor]]:
    first, second = base.text_encoders(CPU, torch.float32)
    models = {
        "unet": base.unet(CPU, torch.float32),
        "vae": base.vae(CPU),
        "text_encoder": first,
        "text_encoder_2": second,
    }
    return {part: model.state_dict() for part, model in models.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_bundled_configuration_has_the_parameter_counts_of_sdxl():
    counts = {part: sum(p.numel() for p in build(part, ORIGINAL).parameters()) for part in PARTS}
    assert counts == {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    }


def test_every_weight_of_sdxl_has_one_key_in_a_checkpoint():
    """Stability's file has 2,515 tensors; two of them, position_ids and logit_scale, are not loaded."""
    keys: dict[str, set] = {}
    for part in PARTS:
        for name in build(part, ORIGINAL).state_dict():
            source = ldm_source(part, name)
            keys.setdefault(source.key, set()).add(source.third)
    assert len(keys) == 2513
    assert all(thirds in ({None}, {0, 1, 2}) for thirds in keys.values())


def test_a_single_file_is_read_as_diffusers_reads_it(single_file):
    """Every weight is bit-equal to that of an independent implementation."""
    theirs = StableDiffusionXLPipeline.from_single_file(
        str(single_file), config=str(TINY), local_files_only=True, torch_dtype=torch.float32
    )
    ours = parts(open_base(str(single_file), MODELS))
    for part in PARTS:
        assert same(ours[part], getattr(theirs, part).state_dict()), part


def test_a_folder_is_read_as_diffusers_reads_it():
    theirs = StableDiffusionXLPipeline.from_pretrained(TINY, local_files_only=True, torch_dtype=torch.float32)
    ours = parts(open_base("tiny-sdxl", MODELS))
    for part in PARTS:
        assert same(ours[part], getattr(theirs, part).state_dict()), part


def test_training_on_a_single_file_gives_the_lora_of_the_folder(single_file, tmp_path):
    pictures = tmp_path / "art"
    pictures.mkdir()
    for picture in ("owl", "star", "key"):
        shutil.copy(INK / f"{picture}.png", pictures)
    weights = []
    for name, base in (("folder", "tiny-sdxl"), ("file", str(single_file))):
        out = tmp_path / name
        arguments = [
            "train",
            str(pictures),
            "--base",
            base,
            "--steps",
            "2",
            "--name",
            "ink",
            "--output",
            str(out),
        ]
        assert run(*arguments, *SMALLEST) == 0
        weights.append(load_file(out / "ink.safetensors"))
    assert same(*weights)


def test_a_part_is_loaded_in_the_requested_precision(single_file):
    unet: Any = open_base(str(single_file), MODELS).unet(CPU, torch.bfloat16)
    assert {tensor.dtype for tensor in unet.state_dict().values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("markers", "metadata", "prediction", "terminal"),
    [
        ((), {}, None, False),
        (("v_pred",), {}, "v_prediction", False),
        (("v_pred", "ztsnr"), {"modelspec.prediction_type": "epsilon"}, "v_prediction", True),
        ((), {"modelspec.prediction_type": "v"}, "v_prediction", False),
        ((), {"modelspec.prediction_type": "epsilon"}, "epsilon", False),
        ((), {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, "v_prediction", True),
    ],
)
def test_the_prediction_type_is_read_from_the_file(markers, metadata, prediction, terminal, tmp_path):
    path = tmp_path / "noob.safetensors"
    write(path, TINY, random_weights(0), dtype=torch.float16, markers=markers, metadata=metadata)
    checkpoint = read_checkpoint(path)
    assert (checkpoint.prediction_type, checkpoint.zero_terminal_snr) == (prediction, terminal)
    scheduler: Any = open_base(str(path), MODELS).scheduler()
    assert scheduler.config.prediction_type == (
        prediction or "v_prediction"
    )  # from the bundled base's folder
    assert scheduler.config.rescale_betas_zero_snr == terminal
    assert (float(scheduler.alphas_cumprod[-1]) < 1e-6) == terminal


def test_a_checkpoint_without_a_vae_uses_one_beside_it_or_is_refused(tmp_path):
    path = tmp_path / "bare.safetensors"
    write(
        path,
        TINY,
        folder_weights(TINY),
        dtype=torch.float16,
        parts=("unet", "text_encoder", "text_encoder_2"),
    )
    with pytest.raises(BaseError, match=r"no VAE; put sdxl_vae\.safetensors beside it"):
        open_base(str(path), MODELS).vae(CPU)
    write(tmp_path / "sdxl_vae.safetensors", TINY, folder_weights(TINY), dtype=torch.float16, parts=("vae",))
    beside: Any = open_base(str(path), MODELS).vae(CPU)
    bundled: Any = open_base("tiny-sdxl", MODELS).vae(CPU)
    assert same(beside.state_dict(), bundled.state_dict())


def test_a_checkpoint_that_lacks_a_weight_is_refused_with_the_weights_name(single_file, tmp_path):
    tensors = load_file(single_file)
    del tensors[UNET + "middle_block.0.in_layers.2.weight"]
    save_file(tensors, tmp_path / "torn.safetensors")
    with pytest.raises(
        BaseError,
        match=r"torn.safetensors lacks model\.diffusion_model\.middle_block\.0\.in_layers\.2\.weight",
    ):
        open_base(str(tmp_path / "torn.safetensors"), MODELS).unet(CPU, torch.float32)


def test_the_models_folder_lists_folders_and_checkpoints_only(single_file, tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    (models / "tiny-sdxl").symlink_to(TINY)
    (models / "mine.safetensors").symlink_to(single_file)
    save_file({"lora_unet_a.lora_down.weight": torch.zeros(1, 1)}, models / "lora.safetensors")
    (models / "notes.txt").write_text("hello")
    assert list_base_models(models) == ["tiny-sdxl", "mine.safetensors"]
    assert open_base("mine", models).name == "mine"


def half(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.float16)


WHOLE = {
    UNET + "input_blocks.0.0.weight": half(320, 4, 3, 3),
    UNET + "label_emb.0.0.weight": half(4, 2816),
    UNET + "middle_block.1.transformer_blocks.0.attn1.to_q.weight": half(2, 2),
    TEXT_1 + "a": half(1),
    TEXT_2 + "a": half(1),
}


def without(*starts: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in WHOLE.items() if not name.startswith(starts)}


WRONG_TENSORS = {
    "sd1": (
        {
            "cond_stage_model.transformer.text_model.x": half(1),
            UNET + "input_blocks.0.0.weight": half(320, 4, 3, 3),
        },
        "Stable Diffusion 1",
    ),
    "sd2": ({"cond_stage_model.model.transformer.resblocks.0.x": half(1)}, "Stable Diffusion 2"),
    "sd3": ({"model.diffusion_model.joint_blocks.0.x": half(1)}, "Stable Diffusion 3"),
    "flux": ({"double_blocks.0.img_attn.qkv.weight": half(1)}, "Flux"),
    "refiner": (
        {**without(UNET + "label", TEXT_1, TEXT_2), UNET + "label_emb.0.0.weight": half(4, 2560)},
        "refiner",
    ),
    "inpainting": ({**WHOLE, UNET + "input_blocks.0.0.weight": half(320, 9, 3, 3)}, "inpainting"),
    "pix2pix": ({**WHOLE, UNET + "input_blocks.0.0.weight": half(320, 8, 3, 3)}, "pix2pix"),
    "lora": ({"lora_unet_x.lora_down.weight": half(1, 1)}, "a LoRA"),
    "loha": ({"x.hada_w1_a": half(1, 1)}, "a LoRA"),
    "vae": ({"encoder.conv_in.weight": half(1), "decoder.conv_in.weight": half(1)}, "a VAE"),
    "controlnet": ({"control_model.input_blocks.0.0.weight": half(1)}, "ControlNet"),
    "embedding": ({"clip_g": half(1, 1280), "clip_l": half(1, 768)}, "embedding"),
    "unet": (without(TEXT_1, TEXT_2), "without its text encoders"),
    "one encoder": (without(TEXT_2), "without its text encoders"),
    "folder part": ({"down_blocks.0.resnets.0.conv1.weight": half(1)}, "whole folder"),
    "distilled": (without(UNET + "middle"), "distilled"),
    "nothing": ({}, "empty"),
    "strange": ({"hello": half(1)}, "no SDXL model"),
    "narrow": ({**WHOLE, UNET + "input_blocks.0.0.weight": half(64, 4, 3, 3)}, "not of SDXL's shape"),
}


@pytest.mark.parametrize("kind", WRONG_TENSORS)
def test_other_models_are_refused_with_their_kind(kind, tmp_path, capfd):
    tensors, words = WRONG_TENSORS[kind]
    save_file(tensors, tmp_path / "x.safetensors")
    assert run("base", "check", str(tmp_path / "x.safetensors")) == 1
    message = capfd.readouterr().err.strip()
    assert words in message
    assert message.startswith("impasto: x.safetensors")
    assert "\n" not in message
    assert "Traceback" not in message


def header(text: bytes, tail: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + tail


def one(low: int, high: int, shape: list[int], dtype: str = "F16") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [low, high]}


WRONG_BYTES = {
    "empty": (b"", "not a .safetensors"),
    "text": (b"hello, I am a model", "not a .safetensors"),
    "html": (b"<!DOCTYPE html><html>not checkpoint</html>", "not a .safetensors"),
    "pickle": (pickle.dumps({"state_dict": list(range(100))}), "pickle"),
    "zip": (b"PK\x03\x04" + b"x" * 40, "pickle or zip"),
    "gguf": (b"GGUF" + b"\x03" * 40, "GGUF"),
    "huge header": (struct.pack("<Q", 1 << 60) + b"{}", "not a .safetensors"),
    "cut header": (struct.pack("<Q", 500) + b"{}", "not a .safetensors"),
    "bad json": (header(b"{nope}"), "not a .safetensors"),
    "deep json": (header(b"[" * 100_000), "not a .safetensors"),
    "a list": (header(b"[1, 2]"), "damaged header"),
    "overlap": (
        header(json.dumps({"a": one(0, 4, [2]), "b": one(2, 6, [2])}).encode(), b"123456"),
        "overlap",
    ),
    "gap": (
        header(json.dumps({"a": one(0, 4, [2]), "b": one(6, 10, [2])}).encode(), b"1234567890"),
        "overlap or leave gaps",
    ),
    "wrong size": (header(json.dumps({"a": one(0, 4, [99])}).encode(), b"1234"), "damaged header"),
    "negative": (header(json.dumps({"a": one(-4, 4, [4])}).encode(), b"1234"), "damaged header"),
    "truncated": (header(json.dumps({"a": one(0, 400, [200])}).encode(), b"1234"), "396 bytes are missing"),
    "too long": (header(json.dumps({"a": one(0, 4, [2])}).encode(), b"1234567"), "3 bytes too many"),
}


@pytest.mark.parametrize("kind", WRONG_BYTES)
def test_a_damaged_or_foreign_file_is_refused_in_one_sentence(kind, tmp_path, capfd):
    data, words = WRONG_BYTES[kind]
    (tmp_path / "x.safetensors").write_bytes(data)
    assert run("base", "check", str(tmp_path / "x.safetensors")) == 1
    message = capfd.readouterr().err.strip()
    assert words in message
    assert "\n" not in message
    assert "Traceback" not in message


def test_pickle_files_are_never_opened(tmp_path, capfd):
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    assert run("base", "check", str(tmp_path / "x.ckpt")) == 1
    assert "pickle file" in capfd.readouterr().err


def assert_read_or_refused(path: Path) -> None:
    message = path.name
    try:
        read_header(path, BaseError)
    except BaseError as error:
        message = str(error)
    finally:
        path.unlink()
    assert message.startswith(path.name)


@given(st.binary(max_size=300))
def test_the_header_reader_refuses_any_other_bytes(data):
    path = Path("/tmp") / f"impasto-header-{len(data)}.safetensors"
    path.write_bytes(data)
    assert_read_or_refused(path)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["a", "dtype", "shape", "data_offsets", "__metadata__", "F16"]),
                inner,
                max_size=4,
            )
        ),
    )
)
def test_the_header_reader_refuses_any_other_json(tree):
    path = Path("/tmp") / "impasto-header-json.safetensors"
    path.write_bytes(header(json.dumps(tree).encode(), b"12"))
    assert_read_or_refused(path)


def run(*arguments: str) -> int:
    import sys

    previous, sys.argv = sys.argv, ["trainer", *arguments]
    try:
        return main()
    finally:
        sys.argv = previous
