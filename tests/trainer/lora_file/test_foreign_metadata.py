"""Metadata of other programs, in any encoding and form, leaves a LoRA file readable."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.trainer.lora_file.lora_samples import ATTENTION, assert_same, changes_of, write_lora
from trainer.headers.lora import recognise
from trainer.lora_file.compatibility.check import check_file
from trainer.lora_file.describe import describe
from trainer.lora_file.edit.convert import convert
from trainer.lora_file.module_names import diffusers_name, kohya_name
from trainer.lora_file.reader import read_modules
from trainer.lora_file.tensor_names import ALPHA

PLACE = {("unet", ATTENTION): (112, 144)}
TITLE = "modelspec.title"


def with_header(path: Path, metadata: Any, encoding: str = "utf-8", *, escapes: bool = False) -> None:
    """Replaces the metadata of a file by JSON that the safetensors library may not write."""
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start]) | {"__metadata__": metadata}
    text = json.dumps(header, ensure_ascii=escapes).encode(encoding)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[start:])


@pytest.mark.parametrize(
    ("title", "encoding"),
    [
        ("Тушь и перо, рисунки пером", "cp1251"),
        ("水墨画の線を学習したモデルです", "cp932"),
        ("水墨画风格的线条训练模型", "gb18030"),
        ("Encre à l'œuvre, dessinée à la plume été", "cp1252"),
        ("墨 🖋 ink", "utf-8"),
    ],
)
def test_metadata_in_other_encodings_is_read_and_written_again(title: str, encoding: str, tmp_path: Path):
    changes = write_lora(tmp_path / "a.safetensors", PLACE)
    with_header(
        tmp_path / "a.safetensors", {TITLE: title, "ss_base_model_version": "sdxl_base_v1-0"}, encoding
    )
    assert recognise(tmp_path / "a.safetensors").metadata[TITLE] == title
    assert dict(describe(tmp_path / "a.safetensors"))[TITLE] == title
    assert_same(changes_of(tmp_path / "a.safetensors"), changes)
    assert check_file(tmp_path / "a.safetensors").file == "a.safetensors"
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "kohya")
    with safe_open(tmp_path / "b.safetensors", framework="pt") as file:
        assert file.metadata()[TITLE] == title


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"name": "ink", "tags": ["a", 1]}, '{"name": "ink", "tags": ["a", 1]}'),
        (1.5, "1.5"),
        (None, "null"),
        ("half \ud83d of a pair", "half \ufffd of a pair"),
        ("line 1\n\x1b[2Jline 2\x00\u202e", "line 1 [2Jline 2"),
    ],
)
def test_values_of_other_forms_are_shown_on_one_line(value: Any, text: str, tmp_path: Path):
    changes = write_lora(tmp_path / "a.safetensors", PLACE)
    with_header(tmp_path / "a.safetensors", {TITLE: value}, escapes=True)
    assert dict(describe(tmp_path / "a.safetensors"))[TITLE] == text
    assert_same(changes_of(tmp_path / "a.safetensors"), changes)


@pytest.mark.parametrize("wrap", [str, json.dumps, lambda text: f"\ufeff{text}"])
def test_a_scale_is_read_from_json_inside_of_json(wrap: Any, tmp_path: Path):
    in_header = {"lora_adapter_metadata": wrap(json.dumps({"unet.lora_alpha": 1.5, "unet.r": 3}))}
    of_kohya = {"ss_network_alpha": "1.5", "ss_network_args": wrap("{}")}
    for metadata, naming in ((in_header, diffusers_name), (of_kohya, kohya_name)):
        write_lora(tmp_path / "a.safetensors", PLACE, alpha=lambda n: None, metadata=metadata, naming=naming)
        (module,) = read_modules(tmp_path / "a.safetensors").modules
        assert module.tensors[ALPHA] == 1.5


@pytest.mark.parametrize("empty", ["", "null", "None", "{}"])
def test_an_empty_configuration_in_the_header_states_no_scale(empty: str, tmp_path: Path):
    changes = write_lora(tmp_path / "a.safetensors", PLACE, metadata={"lora_adapter_metadata": empty})
    assert_same(changes_of(tmp_path / "a.safetensors"), changes)
