"""Metadata of trained files: the values that kohya's scripts would write for the same training."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.lora_file.lora_samples import TINY
from tests.trainer.training.test_settings import train_one_step
from tools.write_checkpoint import folder_weights, write
from trainer.config import TrainConfig
from trainer.dataset.manifest import Item, Manifest
from trainer.headers.lora import recognise
from trainer.lora_file.dataset_metadata import BucketedImage
from trainer.lora_file.metadata import Training, metadata


def item(path: str, caption: str = "", **values: Any) -> Item:
    return Item(path=path, caption=caption, width=800, height=600, digest="", **values)


ITEMS = (
    item("/data/set/10_ink/a.png", "Ink, an owl", repeats=10),
    item("/data/set/10_ink/b.png", "ink, at night", repeats=10),
    item("/data/set/2_pen/c.png", "pen", repeats=2),
    item("/data/set/1_owl/d.png", "owl", role="class"),
    item("/data/set/10_ink/e.png", "secret", role="validation"),
)
MANIFEST = Manifest(folder="/data/set", items=ITEMS)
TRAINING = Training(
    base_file="noobai.safetensors",
    prediction_type="v_prediction",
    zero_terminal_snr=True,
    resolution=1024,
    precision="bfloat16",
    steps=100,
    pictures=22,
    started=1.0,
    finished=2.0,
    epochs=5,
    batches_per_epoch=6,
    processes=2,
    images=tuple(BucketedImage(i, (1152, 896) if i.repeats > 1 else (1024, 768)) for i in ITEMS[:4]),
)


def entries(training: Training = TRAINING, **settings: Any) -> dict[str, str]:
    return metadata(dataclasses.replace(TrainConfig(), **settings), MANIFEST, training)


def test_hashes_of_the_base_and_of_a_separate_vae_have_the_names_of_kohya():
    with_hashes = dataclasses.replace(
        TRAINING, vae_file="fix.safetensors", hashes={"base": ("aa", "bb"), "vae": ("cc", "dd")}
    )
    written = {key: value for key, value in entries(with_hashes).items() if "model_" in key or "vae" in key}
    assert written == {
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_sd_model_name": "noobai.safetensors",
        "ss_sd_model_hash": "aa",
        "ss_new_sd_model_hash": "bb",
        "ss_vae_name": "fix.safetensors",
        "ss_vae_hash": "cc",
        "ss_new_vae_hash": "dd",
        "modelspec.sai_model_spec": "1.0.1",
    }
    without = entries()
    assert not [key for key in without if "hash" in key or "vae" in key]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"v_parameterization": "True", "zero_terminal_snr": "True"}),
        ({"batch": 3, "accumulation": 4}, {"total_batch_size": "24", "batch_size_per_device": "3"}),
        (
            {"flip": True, "colour_jitter": 0.1},
            {"flip_aug": "True", "color_aug": "True", "random_crop": "False"},
        ),
        ({"random_crop": True}, {"flip_aug": "False", "color_aug": "False", "random_crop": "True"}),
        (
            {"shuffle_tags": True, "keep_tokens": 2, "caption_dropout": 0.1, "tag_dropout": 0.2},
            {
                "shuffle_caption": "True",
                "keep_tokens": "2",
                "caption_dropout_rate": "0.1",
                "caption_tag_dropout_rate": "0.2",
            },
        ),
        ({}, {"enable_bucket": "True", "min_bucket_reso": "512", "max_bucket_reso": "2048"}),
        (
            {"bucket_min": 256, "bucket_max": 1536, "no_upscale": True},
            {"min_bucket_reso": "256", "max_bucket_reso": "1536", "bucket_no_upscale": "True"},
        ),
        ({}, {"resolution": "(1024, 1024)", "num_reg_images": "1", "num_validation_images": "1"}),
        ({"scale_weight_norms": 1.0}, {"scale_weight_norms": "1.0"}),
    ],
)
def test_settings_have_the_values_of_kohya(settings: dict[str, Any], expected: dict[str, str]):
    written = entries(**settings)
    assert {name: written[f"ss_{name}"] for name in expected} == expected


def test_buckets_count_repeats_and_state_the_mean_difference_of_aspect_ratios():
    info = json.loads(entries()["ss_bucket_info"])
    assert info["buckets"] == {
        "0": {"resolution": [1024, 768], "count": 1},
        "1": {"resolution": [1152, 896], "count": 22},
    }
    assert info["mean_img_ar_error"] == pytest.approx(3 / 4 * (4 / 3 - 1152 / 896))


def test_names_of_folders_and_tags_are_written_only_with_save_captions():
    private = json.dumps(entries(save_captions=False))
    assert not any(word in private for word in ("10_ink", "owl", "night", "/data"))
    written = entries(save_captions=True)
    assert json.loads(written["ss_tag_frequency"]) == {
        "10_ink": {"ink": 2, "an owl": 1, "at night": 1},
        "2_pen": {"pen": 1},
    }
    folders = {"10_ink": {"n_repeats": 10, "img_count": 2}, "2_pen": {"n_repeats": 2, "img_count": 1}}
    assert json.loads(written["ss_dataset_dirs"]) == folders
    assert json.loads(written["ss_reg_dataset_dirs"]) == {"1_owl": {"n_repeats": 1, "img_count": 1}}
    (dataset,) = json.loads(written["ss_datasets"])
    assert dataset["resolution"] == [1024, 1024]
    assert dataset["num_train_images"] == 22
    assert [(s["image_dir"], s["n_repeats"], s["is_reg"]) for s in dataset["subsets"]] == [
        ("10_ink", 10, False),
        ("2_pen", 2, False),
        ("1_owl", 1, True),
    ]
    assert "/data" not in json.dumps(written)
    assert "secret" not in json.dumps(written)


@pytest.mark.filterwarnings("ignore")
def test_a_training_on_a_single_file_states_its_name_and_hashes(tmp_path: Path):
    base = tmp_path / "tiny-copy.safetensors"
    write(base, TINY, folder_weights(TINY), dtype=torch.float16)
    finished = train_one_step(tmp_path / "run", base=str(base))
    written = recognise(finished.lora_file).metadata
    data = base.read_bytes()
    assert written["ss_sd_model_name"] == "tiny-copy.safetensors"
    assert written["ss_sd_model_hash"] == hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]
    assert written["ss_new_sd_model_hash"] == hashlib.sha256(data).hexdigest()
    assert written["ss_v_parameterization"] == "True", "as the bundled base was trained"
    assert not [key for key in written if "vae" in key], "its VAE is in the same file"
    (cached,) = (finished.path.parent / ".cache" / "hashes").iterdir()
    assert cached.read_text() == written["ss_new_sd_model_hash"]
