"""bake and extract: a LoRA in the weights of a base, and the LoRA of the difference of two bases."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from tests.trainer.lora_file.lora_samples import (
    ATTENTION,
    CONVOLUTION,
    TINY,
    Place,
    assert_same,
    changed_by_diffusers,
    changes_of,
    write_lora,
)
from tools.write_checkpoint import folder_weights, write
from trainer.errors import BaseError, LoraFileError
from trainer.lora_file.base_weights import base_weights
from trainer.lora_file.edit.bake import bake
from trainer.lora_file.edit.extract import extract


@pytest.fixture(scope="module")
def small(places) -> dict[Place, tuple[int, ...]]:
    """Some layers of every kind and part."""
    kinds = (".attn2.to_v", ".mlp.fc2", ".self_attn.")
    chosen = {place: shape for place, shape in places.items() if any(kind in place[1] for kind in kinds)}
    return {
        **chosen,
        ("unet", CONVOLUTION): places["unet", CONVOLUTION],
        ("unet", "conv_out"): places["unet", "conv_out"],
    }


@pytest.mark.filterwarnings("ignore")
def test_a_baked_base_equals_the_one_that_diffusers_fuses(small, tmp_path: Path, caplog):
    write_lora(tmp_path / "a.safetensors", small)
    theirs = changed_by_diffusers({tmp_path / "a.safetensors": 0.75}, small, caplog)
    assert bake(tmp_path / "a.safetensors", tmp_path / "baked", TINY, 0.75) == len(small)
    before, after = base_weights(TINY), base_weights(tmp_path / "baked")
    for part, path in small:
        exact = before[part].tensor(path).float().flatten(1) + theirs[part, path]
        torch.testing.assert_close(after[part].tensor(path).flatten(1), exact.half(), rtol=1e-3, atol=1e-4)
    StableDiffusionXLPipeline.from_pretrained(
        tmp_path / "baked", local_files_only=True
    )  # still a whole folder


def test_baking_changes_only_the_bytes_of_adapted_layers(small, tmp_path: Path):
    write_lora(tmp_path / "a.safetensors", small)
    bake(tmp_path / "a.safetensors", tmp_path / "still", TINY, 0.0)
    bake(tmp_path / "a.safetensors", tmp_path / "baked", TINY)
    files = [path.relative_to(TINY) for path in TINY.rglob("*") if path.is_file()]
    assert all((tmp_path / "still" / file).read_bytes() == (TINY / file).read_bytes() for file in files), (
        "strength 0 is the base"
    )
    for file in (file for file in files if file.suffix == ".safetensors"):
        old, new = load_file(TINY / file), load_file(tmp_path / "baked" / file)
        changed = {key for key in old if not torch.equal(old[key], new[key])}
        part = file.parts[0]
        assert {key.removesuffix(".weight").removeprefix("text_model.") for key in changed} == {
            path for p, path in small if p == part
        }
        assert all(new[key].dtype == old[key].dtype for key in old)


def test_a_single_file_checkpoint_is_baked_like_its_folder(small, tmp_path: Path):
    write_lora(tmp_path / "a.safetensors", small)
    write(tmp_path / "tiny.safetensors", TINY, folder_weights(TINY), dtype=torch.float16)
    bake(tmp_path / "a.safetensors", tmp_path / "folder", TINY)
    bake(tmp_path / "a.safetensors", tmp_path / "baked.safetensors", tmp_path / "tiny.safetensors")
    single, folder = base_weights(tmp_path / "baked.safetensors"), base_weights(tmp_path / "folder")
    for part, weights in folder.items():
        assert set(single[part].places) == set(weights.places)
        for path in weights.places:
            assert torch.equal(single[part].tensor(path), weights.tensor(path)), (part, path)


def test_baking_replaces_no_file_and_leaves_no_partial_output(small, tmp_path: Path):
    write_lora(tmp_path / "a.safetensors", small)
    (tmp_path / "there").mkdir()
    with pytest.raises(LoraFileError, match="exists; choose another name"):
        bake(tmp_path / "a.safetensors", tmp_path / "there", TINY)
    with pytest.raises(LoraFileError, match="lower strength"):
        bake(tmp_path / "a.safetensors", tmp_path / "overflown", TINY, 1e9)
    write_lora(tmp_path / "big.safetensors", {("unet", ATTENTION): (1280, 2048)})
    with pytest.raises(LoraFileError, match="another shape"):
        bake(tmp_path / "big.safetensors", tmp_path / "out", TINY)
    deep = ("unet", "mid_block.attentions.0.transformer_blocks.9.attn2.to_k")
    write_lora(tmp_path / "deep.safetensors", {deep: (1280, 2048)})
    with pytest.raises(LoraFileError, match="choose its base"):
        bake(tmp_path / "deep.safetensors", tmp_path / "out", TINY)
    assert {path.name for path in tmp_path.iterdir()} == {
        "a.safetensors",
        "big.safetensors",
        "deep.safetensors",
        "there",
    }


def test_a_baked_lora_is_extracted_again(small, tmp_path: Path):
    changes = write_lora(tmp_path / "a.safetensors", small, rank=lambda n: 2)
    bake(tmp_path / "a.safetensors", tmp_path / "tuned", TINY)
    layers = extract(TINY, tmp_path / "tuned", tmp_path / "b.safetensors", rank=2, text_encoders=True)
    assert {(module.part, module.path) for module in layers} == set(small)
    # What is lost is the rounding of the baked fp16 weights, which no rank 2 holds.
    assert all(module.share > 0.99 for module in layers)
    assert_same(changes_of(tmp_path / "b.safetensors"), changes, atol=3e-3)
    only_unet = extract(TINY, tmp_path / "tuned", tmp_path / "c.safetensors", rank=2)
    assert {module.part for module in only_unet} == {"unet"}


def test_a_difference_is_extracted_across_folder_and_single_file(small, tmp_path: Path):
    write_lora(tmp_path / "a.safetensors", small)
    bake(tmp_path / "a.safetensors", tmp_path / "tuned", TINY)
    write(tmp_path / "tuned.safetensors", TINY, folder_weights(tmp_path / "tuned"), dtype=torch.float16)
    extract(TINY, tmp_path / "tuned", tmp_path / "b.safetensors", rank=3, text_encoders=True)
    extract(TINY, tmp_path / "tuned.safetensors", tmp_path / "c.safetensors", rank=3, text_encoders=True)
    b, c = load_file(tmp_path / "b.safetensors"), load_file(tmp_path / "c.safetensors")
    assert set(b) == set(c)
    assert all(torch.equal(b[key], c[key]) for key in b)


def test_equal_or_unlike_checkpoints_are_refused(tmp_path: Path):
    with pytest.raises(LoraFileError, match="nothing to extract"):
        extract(TINY, TINY, tmp_path / "b.safetensors", rank=2)
    shutil.copytree(TINY, tmp_path / "other")
    file = tmp_path / "other" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors[f"{ATTENTION}.weight"] = torch.zeros(112, 200)
    save_file(tensors, file)
    with pytest.raises(LoraFileError, match="one family"):
        extract(TINY, tmp_path / "other", tmp_path / "b.safetensors", rank=2)
    with pytest.raises(BaseError, match="whole diffusers folder"):
        extract(TINY, tmp_path, tmp_path / "b.safetensors", rank=2)


def test_a_baked_checkpoint_has_its_own_title_and_hash(small, tmp_path: Path):
    write_lora(tmp_path / "ink.safetensors", small)
    write(tmp_path / "plain.safetensors", TINY, folder_weights(TINY), dtype=torch.float16)
    of_base = {
        "modelspec.title": "The base",
        "modelspec.hash_sha256": "0xbase",
        "sshs_model_hash": "base",
        "sshs_legacy_hash": "base",
        "modelspec.thumbnail": "a picture of the base",
        "modelspec.author": "the maker of the base",
        "modelspec.prediction_type": "v",
    }
    save_file(load_file(tmp_path / "plain.safetensors"), tmp_path / "base.safetensors", metadata=of_base)
    for name in ("plain", "base"):
        baked = tmp_path / f"{name}-ink.safetensors"
        bake(tmp_path / "ink.safetensors", baked, tmp_path / f"{name}.safetensors")
        data = baked.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8:start])["__metadata__"]
        assert metadata["modelspec.title"] == f"{name}-ink"
        assert metadata["modelspec.hash_sha256"] == f"0x{hashlib.sha256(data[start:]).hexdigest()}"
        assert metadata["modelspec.merged_from"] == f"{name}, ink"
        load_file(baked)
    assert metadata["sshs_model_hash"] == hashlib.sha256(data[start:]).hexdigest()
    assert metadata["modelspec.author"] == "the maker of the base"
    assert metadata["modelspec.prediction_type"] == "v"
    assert not {"sshs_legacy_hash", "modelspec.thumbnail"} & set(metadata)
    base_bytes = (tmp_path / "base.safetensors").read_bytes()
    assert (
        f"0x{hashlib.sha256(base_bytes[-(len(data) - start) :]).hexdigest()}"
        != metadata["modelspec.hash_sha256"]
    )


def test_a_part_of_a_folder_that_states_a_hash_gets_its_own(small, tmp_path: Path):
    write_lora(tmp_path / "ink.safetensors", small)
    shutil.copytree(TINY, tmp_path / "base")
    part = "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(tmp_path / "base" / part)
    save_file(tensors, tmp_path / "base" / part, metadata={"modelspec.hash_sha256": "0xbase"})
    (tmp_path / "base" / part).chmod(0o444)
    bake(tmp_path / "ink.safetensors", tmp_path / "out", tmp_path / "base")
    data = (tmp_path / "out" / part).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8:start])["__metadata__"]
    assert metadata["modelspec.title"] == "out"
    assert metadata["modelspec.hash_sha256"] == f"0x{hashlib.sha256(data[start:]).hexdigest()}"
