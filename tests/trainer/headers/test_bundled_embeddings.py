"""Embeddings in the file of a LoRA, as OneTrainer writes them: the LoRA is used, and a notice names them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.conftest import INK, MODELS, SMALLEST, trainer
from tests.trainer.lora_file.lora_samples import METADATA, assert_same, changes_of, pipeline, write_lora
from trainer.errors import LoraFileError
from trainer.headers.lora import recognise
from trainer.headers.sidecars import ENTRY
from trainer.lora_file.compatibility.check import check_file
from trainer.runs import events
from trainer.workers.lora_tools import work

NOTICE = (
    "also holds an embedding ('mein stil'), which is left out here; A1111 reads it where its name is in "
    "the prompt"
)


@pytest.fixture
def bundle(places, tmp_path: Path) -> Path:
    """A LoRA of the attention, with an embedding of both text encoders."""
    attention = {
        place: shape for place, shape in places.items() if ".attn" in place[1] or ".self_attn." in place[1]
    }
    write_lora(tmp_path / "plain.safetensors", attention)
    tensors = load_file(tmp_path / "plain.safetensors")
    embedding = {
        "bundle_emb.mein stil.clip_l": torch.randn(2, 64),
        "bundle_emb.mein stil.clip_g": torch.randn(2, 80),
    }
    save_file({**tensors, **embedding}, tmp_path / "bundle.safetensors", metadata=METADATA)
    return tmp_path / "bundle.safetensors"


def test_inspect_describes_the_lora_and_notes_the_embedding(bundle: Path):
    output = trainer("lora", "inspect", bundle).stdout
    assert "network: LoRA" in output
    assert f"note: bundle.safetensors {NOTICE}" in output


def test_check_knows_which_tools_read_the_embedding(bundle: Path):
    report = check_file(bundle, bases=MODELS)
    verdicts = {verdict.tool.split()[0]: verdict for verdict in report.verdicts}
    assert verdicts["A1111"].is_complete
    for tool in ("Forge", "ComfyUI", "InvokeAI", "sd-scripts"):
        (drop,) = verdicts[tool].drops
        assert drop.reason == "it reads no embedding out of a LoRA's file"
        assert len(drop.keys) == 2
    assert "lora convert leaves it out" in (verdicts["diffusers"].refusal or "")
    assert f"bundle.safetensors {NOTICE}" in report.warnings
    assert not report.faults


@pytest.mark.filterwarnings("ignore")
def test_diffusers_refuses_the_file_and_reads_the_converted_one(bundle: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="lora"):
        pipeline().load_lora_weights(str(bundle))
    done = trainer("lora", "convert", bundle, tmp_path / "out.safetensors", "--to", "kohya")
    assert NOTICE in done.stderr
    pipeline().load_lora_weights(str(tmp_path / "out.safetensors"))
    assert_same(changes_of(tmp_path / "out.safetensors"), changes_of(tmp_path / "plain.safetensors"))


def test_forge_refuses_many_embeddings(bundle: Path):
    more = {f"bundle_emb.word{n}.clip_l": torch.randn(1, 64) for n in range(12)}
    save_file({**load_file(bundle), **more}, bundle, metadata=METADATA)
    (forge,) = [verdict for verdict in check_file(bundle, bases=MODELS).verdicts if verdict.tool == "Forge"]
    assert "14 keys match nothing" in (forge.refusal or "")
    assert "'mein stil'" in trainer("lora", "inspect", bundle).stdout


def test_a_preview_uses_the_lora_and_prints_the_notice(bundle: Path, tmp_path: Path):
    more = ("--prompt", "a star", "--strengths", "0,1", "--steps", "1", "--size", "64x64")
    drawn = {}
    for name in ("bundle", "plain"):
        done = trainer("preview", tmp_path / f"{name}.safetensors", "--out-dir", tmp_path / name, *more)
        assert (NOTICE in done.stderr) == (name == "bundle")
        drawn[name] = np.asarray(Image.open(tmp_path / name / "p00_s1.00.png"))
    assert np.array_equal(drawn["bundle"], drawn["plain"])


def test_an_imported_file_has_the_notice_in_its_entry(bundle: Path, tmp_path: Path):
    folder = tmp_path / "entry"
    folder.mkdir()
    shutil.copy(bundle, folder)
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "job.json").write_text(
        json.dumps({"tool": "check", "source": str(folder / bundle.name)})
    )
    assert work(tmp_path / "job", MODELS) == "finished"
    entry = json.loads((folder / ENTRY).read_text())
    assert entry["problem"] == f"bundle.safetensors {NOTICE}"
    assert entry["takes"] == ["A1111 1.10"]


@pytest.mark.usefixtures("shared_cache")
def test_a_training_that_starts_from_the_file_reports_the_notice(bundle: Path, tmp_path: Path):
    unet = {key: tensor for key, tensor in load_file(bundle).items() if not key.startswith("lora_te")}
    save_file(unet, bundle, metadata=METADATA)
    settings = (
        "network=lora",
        "rank=3",
        "train_feed_forward=false",
        "checkpoint_every=1",
        f"start_from={bundle}",
    )
    chosen = [word for setting in settings for word in ("--set", setting)]
    trainer("train", INK, "--output", tmp_path / "run", "--steps", "1", *SMALLEST, *chosen)
    messages = [
        event["message"]
        for event in events.read(tmp_path / "run" / "events.jsonl")[0]
        if event["kind"] == "problem"
    ]
    assert any(NOTICE in message for message in messages)


def test_a_file_with_only_embeddings_is_refused(tmp_path: Path):
    save_file(
        {"bundle_emb.stil.clip_l": torch.randn(2, 64), "bundle_emb.stil.clip_g": torch.randn(2, 80)},
        tmp_path / "e.safetensors",
    )
    with pytest.raises(LoraFileError, match=r"e\.safetensors is an embedding"):
        recognise(tmp_path / "e.safetensors")
