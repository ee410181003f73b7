"""The benchmarks run, compare with the right floor, and can be read again."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from benchmarks import __main__ as benchmarks
from benchmarks import commands, recipe, training
from benchmarks.bases import wide_unet
from benchmarks.report import Figure, file_stem, save, table
from benchmarks.step import Case, PeftSteps, Steps
from trainer.sdxl.base import ORIGINAL
from trainer.sdxl.weights import build


def test_a_case_is_measured_beside_its_floor():
    """In this process: a process of its own would load torch again."""
    case = Case(base="bundled", resolution=64, steps=1)
    steps = Steps(case)
    before = [vector.detach().clone() for vector in steps.adapter.vectors()]
    found = steps.seconds()
    assert any(
        not torch.equal(vector, kept) for vector, kept in zip(steps.adapter.vectors(), before, strict=True)
    )  # it learns
    speed, memory = training._figures(case, [{**found, "peak": 3e9, "rate": 1e11}])
    assert speed.unit == "pictures/s"
    assert speed.value == pytest.approx(1 / found["seconds"], rel=1e-6)
    assert speed.floor is not None
    assert speed.ratio == pytest.approx(speed.value / speed.floor)
    assert memory.value == 3.0
    assert memory.unit == "GB"


def test_pefts_step_is_made_by_peft_and_compared_with_ours():
    ours = Case(base="bundled", resolution=64, steps=1)
    theirs = dataclasses.replace(ours, way="peft")
    steps = PeftSteps(theirs)
    assert {weight.dtype for weight in steps.masters} == {torch.float32}
    assert len(steps.masters) == 2 * len(Steps(ours).adapter.layers["unet"])
    before = [weight.detach().clone() for weight in steps.masters]
    steps.step()
    steps.step()
    assert any(not torch.equal(weight, kept) for weight, kept in zip(steps.masters, before, strict=True))
    run = {"seconds": 3.0, "peak": 2e9}
    speed, memory = training._against_peft({ours: [{**run, "seconds": 2.0, "peak": 1e9}], theirs: [run]})
    assert speed.value == 1.5
    assert memory.ratio == 0.5


def test_a_case_that_can_not_run_is_left_out_and_told(capsys):
    assert training._in_child(Case(base="no-such-base", resolution=64)) is None
    assert "left out: no-such-base 64 px" in capsys.readouterr().err


def test_the_wide_base_has_sdxls_layout():
    facts = {**json.loads((ORIGINAL / "unet" / "config.json").read_text()), **wide_unet(64)}
    with torch.device("meta"):
        ours: Any = UNet2DConditionModel.from_config(facts)
    true = build("unet", ORIGINAL)
    assert [name for name, _ in ours.named_modules()] == [name for name, _ in true.named_modules()]
    assert ours.config["block_out_channels"] == [64, 128, 256]
    assert sum(p.numel() for p in ours.parameters()) == pytest.approx(94e6, rel=0.01)


def test_results_are_saved_as_numbers_a_table_and_a_picture(tmp_path: Path):
    words = "CPU (2 threads), AMD EPYC, 2 cores, 24 GiB"
    figures = [
        Figure(group="training", what="a", value=2.0, unit="pictures/s", floor=8.0),
        Figure(group="memory", what="b", value=1.5, unit="GB"),
    ]
    written = save(figures, words, tmp_path)
    assert written.name == "cpu-amd-epyc-2-cores.md"
    assert file_stem(words) == written.stem
    assert "| a | 2 pictures/s | 8 pictures/s | 0.25 |" in written.read_text()
    assert table(figures) in written.read_text()
    kept = json.loads(written.with_suffix(".json").read_text())
    assert kept["machine"] == words
    assert [row["ratio"] for row in kept["figures"]] == [0.25, None]
    assert Image.open(written.with_suffix(".png")).size[0] == 900
    # Another day, one group alone: it is renewed, the other stays.
    save([Figure(group="training", what="a", value=4.0, unit="pictures/s", floor=8.0)], words, tmp_path)
    assert "| a | 4 pictures/s | 8 pictures/s | 0.50 |" in written.read_text()
    assert "| b | 1.5 GB |" in written.read_text()


def test_another_trainer_is_timed_by_the_difference_of_two_lengths(monkeypatch, tmp_path: Path):
    """Each step of this one sleeps for 0.02 s after a start of 0.2 s that must not count."""
    script = tmp_path / "other.py"
    script.write_text(
        "import sys, time\ntime.sleep(0.2 + 0.02 * int(sys.argv[1]))\n"
        "assert sys.argv[2].endswith('ink-emoji')\n"
    )
    ours = "import time; time.sleep(0.2 + 0.01 * {steps})"
    monkeypatch.setattr(
        recipe,
        "own_command",
        lambda folder, base, out, steps, more: [sys.executable, "-c", ours.format(steps=steps)],
    )
    command = f"{sys.executable} {script} {{steps}} {{folder}}"
    found = recipe.against(command, Path("base"), steps=(5, 45), repeat=1, more=[])
    by_name = {figure.what: figure for figure in found}
    assert by_name["seconds a step: the other"].value == pytest.approx(0.02, rel=0.5)
    assert by_name["times as fast"].value == pytest.approx(2, rel=0.5)
    assert by_name["peak memory: the other"].value > 0.001


def test_a_command_that_fails_is_an_error(tmp_path: Path):
    with pytest.raises(Exception, match="non-zero exit status 3"):
        recipe.watched([sys.executable, "-c", "raise SystemExit(3)"])


def test_a_smoke_run_measures_caching_and_saves_it(tmp_path: Path, capsys):
    benchmarks.main(["--quick", "--only", "caching", "--out", str(tmp_path)])
    assert "| **caching** |" in capsys.readouterr().out
    (kept,) = tmp_path.glob("*.json")
    (row,) = json.loads(kept.read_text())["figures"]
    assert row["what"] == "4 pictures of 128 px"
    assert row["value"] > 0
    assert row["floor"] > 0


def test_commands_are_compared_with_the_start_of_python(tmp_path: Path):
    figures = commands.figures(tmp_path, repeat=1)
    assert [figure.what.split(",")[0] for figure in figures] == [
        "python -m trainer lora inspect",
        "python -m trainer lora check",
        "python -m trainer base check",
        "python -m trainer dataset check of 24 pictures",
        "python -m trainer device",
    ]
    assert all(figure.ratio and figure.ratio > 1 for figure in figures)
