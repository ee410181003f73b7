"""The worker for the page's LoRA tools, and changes of metadata, which leave every tensor unchanged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from tests.conftest import MODELS
from tests.trainer.lora_file.lora_samples import (
    ATTENTION,
    assert_same,
    by_command_line,
    changes_of,
    shape_of,
    write_lora,
)
from trainer.errors import LoraFileError, RunError
from trainer.headers.edit_metadata import Label, relabel
from trainer.headers.lora import recognise
from trainer.lora_file.metadata import with_hashes
from trainer.runs import events
from trainer.runs.run import Run
from trainer.training.export_checkpoint import export_checkpoint
from trainer.workers.lora_tools import work

PLACE = {("unet", ATTENTION): shape_of(ATTENTION)}


def run_job(folder: Path, **job) -> tuple[str, dict]:
    """Runs the worker on a job; returns (its outcome, its last event)."""
    folder.mkdir()
    (folder / "job.json").write_text(json.dumps(job))
    outcome = work(folder, MODELS)
    return outcome, events.read(folder / "events.jsonl")[0][-1]


@given(
    changes=st.dictionaries(
        st.sampled_from(["modelspec.title", "ss_training_comment", "x"]),
        st.none() | st.text(st.characters(codec="utf-8"), max_size=60),
    ),
    rank=st.sampled_from([1, 2000]),
)
def test_a_label_changes_no_tensor_and_renews_the_hashes(changes, rank: int, tmp_path_factory):
    path = tmp_path_factory.mktemp("label") / "a.safetensors"
    # With rank 2000 the file is long enough for the legacy hash to cover tensors.
    write_lora(path, PLACE, rank=lambda n: rank)
    tensors = load_file(path)
    metadata = relabel(path, {"sshs_legacy_hash": "stale"})
    metadata = relabel(path, changes)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == metadata
        assert set(file.keys()) == set(tensors)
        assert all(torch.equal(file.get_tensor(key), tensors[key]) for key in tensors)
    expected = with_hashes(
        tensors, {key: value for key, value in metadata.items() if not key.startswith("sshs_")}
    )
    assert metadata["sshs_legacy_hash"] == expected["sshs_legacy_hash"]


def test_a_label_survives_a_round_trip_through_the_file(tmp_path: Path):
    write_lora(tmp_path / "a.safetensors", PLACE)
    label = Label(
        title="Tinte",
        author="A",
        licence="CC0-1.0",
        description="two\nlines",
        tags="ink, wash",
        trigger="inkk",
        weight=0.8,
        own_work=True,
    )
    metadata = relabel(tmp_path / "a.safetensors", label.changes())
    assert Label.of(recognise(tmp_path / "a.safetensors").metadata) == label
    assert metadata["modelspec.usage_hint"] == "Put 'inkk' in the prompt. Strength 0.8."
    assert Label.of(relabel(tmp_path / "a.safetensors", Label().changes())) == Label()


def test_the_label_command_prints_and_changes_metadata(tmp_path: Path, monkeypatch, capsys):
    file = tmp_path / "a.safetensors"
    write_lora(file, PLACE)
    before = load_file(file)
    assert (
        by_command_line(
            ["lora", "label", file, "--title", " Tinte ", "--weight", "0.8", "--own-work"],
            monkeypatch,
            capsys,
        )[0]
        == 0
    )
    status, output, _ = by_command_line(["lora", "label", file, "--author", "A"], monkeypatch, capsys)
    assert status == 0
    assert {"title: Tinte", "author: A", "weight: 0.8", "own work: True"} <= set(output.splitlines())
    by_command_line(["lora", "label", file, "--title", "", "--no-own-work"], monkeypatch, capsys)
    assert Label.of(recognise(file).metadata) == Label(author="A", weight=0.8)
    before_bytes = file.read_bytes()
    status, _, err = by_command_line(["lora", "label", file, "--title", "x" * 3000], monkeypatch, capsys)
    assert status
    assert "shorten it" in err
    assert "Traceback" not in err
    assert file.read_bytes() == before_bytes
    assert all(torch.equal(tensor, load_file(file)[name]) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("title", "why"), [("a\0b", "no text"), ("a\udcff", "no text"), ("x" * 2001, "at most 2000")]
)
def test_a_text_that_no_file_can_hold_is_rejected_with_its_name(
    title: str, why: str, tmp_path: Path, monkeypatch, capsys
):
    write_lora(tmp_path / "a.safetensors", PLACE)
    before = (tmp_path / "a.safetensors").read_bytes()
    status, _, err = by_command_line(
        ["lora", "label", tmp_path / "a.safetensors", "--title", title], monkeypatch, capsys
    )
    assert status == 1
    assert err.startswith("impasto: title ")
    assert why in err
    assert err.count("\n") == 1
    assert (tmp_path / "a.safetensors").read_bytes() == before


def test_a_file_that_is_no_lora_is_not_changed(tmp_path: Path):
    (tmp_path / "a.safetensors").write_bytes(b"PK\3\4 no lora")
    with pytest.raises(LoraFileError):
        relabel(tmp_path / "a.safetensors", {"x": "y"})
    assert (tmp_path / "a.safetensors").read_bytes() == b"PK\3\4 no lora"
    assert not list(tmp_path.glob(".tmp-*"))


def test_the_export_of_the_last_checkpoint_equals_the_file_of_the_training(ink_run: Path, tmp_path: Path):
    run = Run(ink_run)
    export_checkpoint(run, 12, tmp_path / "a.safetensors", MODELS)
    ours, theirs = load_file(tmp_path / "a.safetensors"), load_file(run.lora_file)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert (
        recognise(tmp_path / "a.safetensors").metadata["sshs_model_hash"]
        == recognise(run.lora_file).metadata["sshs_model_hash"]
    )
    with pytest.raises(RunError, match="step 7"):
        export_checkpoint(run, 7, tmp_path / "b.safetensors", MODELS)


def test_a_chosen_checkpoint_becomes_a_checked_file_with_a_preferred_weight(ink_run: Path, tmp_path: Path):
    shutil.copytree(ink_run, tmp_path / "ink")
    outcome, _ = run_job(tmp_path / "job", tool="choose", run=str(tmp_path / "ink"), step=10, strength=0.8)
    choice = json.loads((tmp_path / "ink" / "choice.json").read_text())
    assert outcome == "finished"
    assert choice["file"] == "ink-10.safetensors"
    assert "ComfyUI 0.33" in choice["takes"]
    metadata = recognise(tmp_path / "ink" / "ink-10.safetensors").metadata
    assert Label.of(metadata).weight == 0.8
    assert metadata["ss_steps"] == "10"
    assert metadata["modelspec.trigger_phrase"] == "ink"
    # The file of the last step is that of the training itself; no copy is made.
    run_job(tmp_path / "again", tool="choose", run=str(tmp_path / "ink"), step=12, strength=1.0)
    assert json.loads((tmp_path / "ink" / "choice.json").read_text())["file"] == "ink.safetensors"


def test_files_are_merged_resized_converted_and_checked_into_entries(tmp_path: Path):
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    changes = [write_lora(path, PLACE, seed=seed, rank=lambda n: 4) for seed, path in enumerate((a, b))]
    out = {tool: str(tmp_path / tool / f"{tool}.safetensors") for tool in ("merge", "resize", "convert")}
    assert (
        run_job(
            tmp_path / "1",
            tool="merge",
            terms=[[str(a), 0.5], [str(b), -1.0]],
            method="concat",
            rank=0,
            out=out["merge"],
        )[0]
        == "finished"
    )
    expected = {place: 0.5 * changes[0][place] - changes[1][place] for place in PLACE}
    assert_same(changes_of(Path(out["merge"])), expected)
    assert run_job(tmp_path / "2", tool="resize", source=str(a), rank=2, out=out["resize"])[0] == "finished"
    assert (
        run_job(tmp_path / "3", tool="convert", source=str(a), form="diffusers", out=out["convert"])[0]
        == "finished"
    )
    entry = json.loads((tmp_path / "merge" / "entry.json").read_text())
    assert entry["origin"] == "merge"
    assert entry["of"] == ["a", "b"]
    assert "A1111 1.10" in entry["takes"]


def test_a_failed_tool_reports_the_reason_and_leaves_no_file(tmp_path: Path):
    write_lora(tmp_path / "a.safetensors", PLACE)
    job = {
        "tool": "merge",
        "terms": [[str(tmp_path / "a.safetensors"), 1.0], [str(tmp_path / "gone.safetensors"), 1.0]],
        "method": "concat",
    }
    outcome, last = run_job(tmp_path / "job", **job, out=str(tmp_path / "new" / "new.safetensors"))
    assert outcome == "failed"
    assert "gone.safetensors does not exist" in last["message"]
    assert not (tmp_path / "new").exists()


def test_an_imported_file_with_values_that_are_not_finite_has_a_problem_in_its_entry(tmp_path: Path):
    folder = tmp_path / "shelf"
    folder.mkdir()
    write_lora(folder / "shelf.safetensors", PLACE, alpha=lambda n: float("nan"))
    (folder / "entry.json").write_text(json.dumps({"origin": "import", "of": [], "takes": [], "made": 1.0}))
    assert run_job(tmp_path / "job", tool="check", source=str(folder / "shelf.safetensors"))[0] == "finished"
    entry = json.loads((folder / "entry.json").read_text())
    assert entry["origin"] == "import"
    assert entry["made"] == 1.0
    assert "no numbers" in entry["problem"]


def test_an_imported_file_that_is_deleted_before_its_check_is_not_created_again(tmp_path: Path):
    outcome, last = run_job(
        tmp_path / "job", tool="check", source=str(tmp_path / "brush" / "brush.safetensors")
    )
    assert outcome == "failed"
    assert "deleted" in last["message"]
    assert not (tmp_path / "brush").exists()
