"""Files of other kinds and damaged LoRA files: each is refused in one sentence, and none does harm."""

from __future__ import annotations

import io
import json
import pickle
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save

from tests.trainer.lora_file.lora_samples import ATTENTION, METADATA, TINY, by_command_line
from trainer.headers.lora import recognise
from trainer.lora_file.module_names import kohya_name


def _header(entries: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _lora(
    name: str, down: tuple[int, ...], up: tuple[int, ...], dtype: torch.dtype = torch.float16
) -> dict[str, torch.Tensor]:
    return {
        f"{name}.lora_down.weight": torch.ones(down, dtype=dtype),
        f"{name}.lora_up.weight": torch.ones(up, dtype=dtype),
    }


def _picture(kind: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, kind)
    return data.getvalue()


def _zip() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    return data.getvalue()


def _pytorch() -> bytes:
    data = io.BytesIO()
    torch.save({"a": torch.ones(2)}, data)
    return data.getvalue()


MIDDLE = kohya_name("unet", ATTENTION)
GOOD = save(_lora(MIDDLE, (2, 144), (112, 2)), METADATA)
_F16 = {"dtype": "F16", "shape": [2, 2]}

WRONG: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "text": (b"Dies ist kein LoRA.\n", "text file"),
    "json": (b'{"a": 1}', "text file"),
    "web page": (b"<!DOCTYPE html><html>Sign in</html>", "web page"),
    "zip": (_zip(), "zip archive"),
    "pytorch": (_pytorch(), "zip archive"),
    "pickle": (pickle.dumps({"a": [1, 2, 3]}), "pickle"),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"),
    "gguf": (b"GGUF" + bytes(60), "GGUF"),
    "png": (_picture("PNG"), "PNG"),
    "jpeg": (_picture("JPEG"), "JPEG"),
    "zeros": (bytes(4096), "not a .safetensors"),
    "truncated": (GOOD[:-50], "bytes are missing"),
    "truncated header": (GOOD[:40], "only the beginning"),
    "too long": (GOOD + b"more", "bytes too many"),
    "giant header": (_header({}, length=1 << 62), "not a .safetensors"),
    "large header": (struct.pack("<Q", 90 << 20) + b"{}", "only the beginning"),
    "bad json": (struct.pack("<Q", 10) + b"{not json!", "not a .safetensors"),
    "deep json": (struct.pack("<Q", 200000) + b"[" * 200000, "not a .safetensors"),
    "json list": (_header([1, 2]), "damaged header"),
    "overlapping": (
        _header(
            {
                f"{MIDDLE}.lora_up.weight": {**_F16, "data_offsets": [0, 8]},
                f"{MIDDLE}.lora_down.weight": {**_F16, "data_offsets": [4, 12]},
            },
            bytes(12),
        ),
        "overlap",
    ),
    "negative offsets": (_header({"a": {**_F16, "data_offsets": [-8, 0]}}, bytes(8)), "damaged header"),
    "wrong size": (
        _header({"a": {"dtype": "F16", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 8]}}, bytes(8)),
        "damaged header",
    ),
    "unknown dtype": (
        _header(
            {f"{MIDDLE}.lora_up.weight": {"dtype": "F7", "shape": [2, 2], "data_offsets": [0, 8]}}, bytes(8)
        ),
        "F7",
    ),
    "metadata is a list": (
        _header({"__metadata__": [1], "a": {**_F16, "data_offsets": [0, 8]}}, bytes(8)),
        "damaged",
    ),
    "half a character": (
        _header(
            {
                f"{MIDDLE}\ud800.lora_up.weight": {**_F16, "data_offsets": [0, 8]},
            },
            bytes(8),
        ),
        "damaged header",
    ),
    "no tensors": (_header({"__metadata__": {"format": "pt"}}), "holds no tensors"),
    "sd15 lora": (
        save(_lora("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", (4, 768), (1280, 4))),
        "Stable Diffusion 1.5",
    ),
    "sd2 lora": (
        save(_lora("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", (4, 1024), (1280, 4))),
        "Stable Diffusion 2",
    ),
    "sd15 blocks": (
        save(
            _lora("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k", (4, 320), (320, 4))
        ),
        "1.5 or 2",
    ),
    "flux lora": (save(_lora("lora_unet_double_blocks_0_img_attn_qkv", (4, 3072), (9216, 4))), "Flux"),
    "flux lora of diffusers": (
        save(_lora("transformer.single_transformer_blocks.0.attn.to_q", (4, 3072), (3072, 4))),
        "Flux",
    ),
    "sd3 lora": (
        save(_lora("transformer.transformer_blocks.0.attn.to_q", (4, 1536), (1536, 4))),
        "Stable Diffusion 3",
    ),
    "checkpoint": (
        save(
            {
                "model.diffusion_model.out.2.weight": torch.ones(4),
                "first_stage_model.encoder.conv_in.weight": torch.ones(4),
            }
        ),
        "checkpoint",
    ),
    "unet": ((TINY / "unet" / "diffusion_pytorch_model.safetensors").read_bytes(), "whole UNet"),
    "text encoder": ((TINY / "text_encoder_2" / "model.safetensors").read_bytes(), "text encoder"),
    "vae": ((TINY / "vae" / "diffusion_pytorch_model.safetensors").read_bytes(), "VAE"),
    "embedding": (save({"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)}), "textual inversion"),
    "embedding for sd15": (save({"emb_params": torch.ones(2, 768)}), "textual inversion"),
    "controlnet": (save({"control_model.input_blocks.0.0.weight": torch.ones(4)}), "ControlNet"),
    "only alpha": (save({f"{MIDDLE}.alpha": torch.tensor(1.0)}), "no part of a LoRA"),
    "something else": (save({"weight": torch.ones(4), "bias": torch.ones(4)}), "no part of a LoRA"),
    "whole numbers": (save(_lora(MIDDLE, (2, 144), (112, 2), torch.int8)), "not as fractions"),
}

# Headers of LoRA files, so `lora check` reports on them; the commands that write another file refuse them.
BROKEN: dict[str, tuple[bytes, str]] = {
    "nan": (
        save(
            {**_lora(MIDDLE, (2, 144), (112, 2)), f"{MIDDLE}.lora_up.weight": torch.full((112, 2), torch.nan)}
        ),
        "no numbers",
    ),
    "missing up": (save({f"{MIDDLE}.lora_down.weight": torch.ones(2, 144)}), "no up matrix"),
    "missing down": (save({f"{MIDDLE}.lora_up.weight": torch.ones(112, 2)}), "no down matrix"),
    "ranks differ": (save(_lora(MIDDLE, (2, 144), (112, 3))), "don't fit"),
    "no dimensions": (save(_lora(MIDDLE, (), ())), "don't fit"),
    "rank 0": (save(_lora(MIDDLE, (0, 144), (112, 0))), "don't fit"),
    "half a loha": (
        save({f"{MIDDLE}.hada_w1_a": torch.ones(112, 2), f"{MIDDLE}.hada_w1_b": torch.ones(2, 144)}),
        "hada",
    ),
    "unknown module": (save(_lora("lora_unet_nothing", (2, 144), (112, 2))), "no module of SDXL"),
    "alpha of several numbers": (
        save({**_lora(MIDDLE, (2, 144), (112, 2)), f"{MIDDLE}.alpha": torch.ones(3)}),
        "alpha of several",
    ),
    "dora of a wrong length": (
        save({**_lora(MIDDLE, (2, 144), (112, 2)), f"{MIDDLE}.dora_scale": torch.ones(7, 1)}),
        "dora_scale",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("command", ["check", "inspect", "convert"])
def test_a_wrong_file_is_named_in_one_sentence(command: str, kind: str, tmp_path: Path, monkeypatch, capsys):
    content, word = WRONG[kind]
    (tmp_path / "wrong.safetensors").write_bytes(content)
    more = [tmp_path / "out.safetensors", "--to", "kohya"] if command == "convert" else []
    status, out, err = by_command_line(
        ["lora", command, tmp_path / "wrong.safetensors", *more], monkeypatch, capsys
    )
    assert status == 1
    assert not out
    assert err.startswith("impasto: wrong.safetensors ")
    assert err.count("\n") == 1
    assert word in err
    assert ";" in err
    assert len(err) < 300
    assert "unexpected error" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.safetensors"]


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_lora_is_refused_in_a_sentence_and_reported_by_check(
    kind: str, tmp_path: Path, monkeypatch, capsys
):
    content, word = BROKEN[kind]
    file, out = tmp_path / "wrong.safetensors", tmp_path / "out.safetensors"
    file.write_bytes(content)
    for arguments in (
        ["convert", file, out, "--to", "kohya"],
        ["merge", out, file],
        ["resize", file, out, "--rank", "1"],
        ["bake", file, tmp_path / "base"],
    ):
        status, _, err = by_command_line(["lora", *arguments], monkeypatch, capsys)
        assert status == 1, arguments
        assert err.count("\n") == 1, err
        assert err.startswith("impasto: "), err
        assert "unexpected error" not in err, err
        assert word in err, err
    status, report, err = by_command_line(["lora", "check", file], monkeypatch, capsys)
    assert "unexpected error" not in err, err
    assert status == 1 or kind == "alpha of several numbers", report
    assert report or err.count("\n") == 1


PEFT = {
    f"unet.{ATTENTION}.lora_A.weight": torch.ones(2, 144),
    f"unet.{ATTENTION}.lora_B.weight": torch.ones(112, 2),
}


@pytest.mark.parametrize(
    "text",
    [
        "[1]",
        '{"unet.lora_alpha": "x"}',
        '{"unet.lora_alpha": 2, "unet.alpha_pattern": [1]}',
        '{"unet.lora_alpha": 2, "unet.alpha_pattern": {"(": 1}}',
    ],
)
@pytest.mark.parametrize("command", ["convert", "merge", "resize"])
def test_damaged_peft_metadata_is_refused_in_a_sentence(
    command: str, text: str, tmp_path: Path, monkeypatch, capsys
):
    file, out = tmp_path / "a.safetensors", tmp_path / "out.safetensors"
    file.write_bytes(save(PEFT, {"lora_adapter_metadata": text}))
    arguments = {
        "convert": [file, out, "--to", "kohya"],
        "merge": [out, file],
        "resize": [file, out, "--rank", "1"],
    }[command]
    status, _, err = by_command_line(["lora", command, *arguments], monkeypatch, capsys)
    assert status == 1
    assert err == "impasto: a.safetensors has damaged lora_adapter_metadata in its header; save it again\n"
    assert not out.exists()


def test_a_change_that_overflows_is_not_resized(tmp_path: Path, monkeypatch, capsys):
    huge = {key: tensor * 1e30 for key, tensor in _lora(MIDDLE, (2, 144), (112, 2), torch.float32).items()}
    (tmp_path / "a.safetensors").write_bytes(save({**huge, f"{MIDDLE}.alpha": torch.tensor(1e30)}))
    status, _, err = by_command_line(
        ["lora", "resize", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--rank", "1"],
        monkeypatch,
        capsys,
    )
    assert status == 1
    assert "are too large; use an earlier checkpoint" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize(
    ("out", "why"),
    [("x" * 300 + ".safetensors", "File name too long"), ("a.safetensors/b.safetensors", "a.safetensors")],
)
def test_an_output_name_that_can_not_be_written_is_refused_in_a_sentence(
    out: str, why: str, tmp_path: Path, monkeypatch, capsys
):
    (tmp_path / "a.safetensors").write_bytes(GOOD)
    status, _, err = by_command_line(
        ["lora", "convert", tmp_path / "a.safetensors", tmp_path / out, "--to", "kohya"], monkeypatch, capsys
    )
    assert status == 1
    assert why in err
    assert err.endswith("; choose another name or folder\n")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_folder_and_a_missing_file_are_named_as_such(tmp_path: Path, monkeypatch, capsys):
    for path, word in ((tmp_path, "is a folder"), (tmp_path / "gone.safetensors", "does not exist")):
        status, _, err = by_command_line(["lora", "check", path], monkeypatch, capsys)
        assert status == 1
        assert word in err
        assert err.count("\n") == 1


def test_a_long_hostile_key_is_refused_or_read_in_linear_time(tmp_path: Path):
    """A quadratic expression takes hours for the 15 MB that a header may have."""
    key = "attn2.to_k." * 100_000 + "lora_up.weight"
    (tmp_path / "a.safetensors").write_bytes(save({key: torch.ones(2, 2)}))
    started = time.perf_counter()
    recognise(tmp_path / "a.safetensors")
    assert time.perf_counter() - started < 10


def test_no_code_of_a_pickle_runs(tmp_path: Path, monkeypatch, capsys):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "evil.safetensors").write_bytes(pickle.dumps(Evil()))
    status, _, err = by_command_line(["lora", "check", tmp_path / "evil.safetensors"], monkeypatch, capsys)
    assert status == 1
    assert "pickle" in err
    assert not (tmp_path / "ran").exists()
