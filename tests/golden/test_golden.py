"""Golden files: the present code computes, resumes and opens what version 0.1 recorded.

The trainings run in one process with the kernels that every machine has (`cases.PINNED`). Tensors are
compared byte for byte if architecture and packages are those of the recording, and otherwise with a
tolerance, which a warning reports.
"""

from __future__ import annotations

import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.golden import cases, record, true_sdxl
from tests.golden.cases import CASES, OPENED, PLACEHOLDER, RECORDED, RUN_CASE, Done

LOSS = 1e-6  # largest difference of a loss
# Largest relative difference of a tensor where bytes can't be compared: a CPU's own kernels differ by 2e-4
# from the pinned ones, since a last bit of the loss can move a matrix in fp16 by one rounding step.
TENSOR = 1e-3
PICTURE = 1.0  # largest mean difference of a picture, in levels of 255


@dataclass(frozen=True)
class Results:
    """Files that the commands of the golden tests wrote into `folder`, and their exit statuses."""

    folder: Path
    done: dict[str, Done]

    def run(self, name: str) -> Path:
        """The directory of a run; asserts that its command succeeded."""
        ended = self.done[name]
        assert ended.status == 0, ended.err
        return self.folder / "runs" / name.partition(" ")[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Trains all cases, resumes the recorded runs and opens the recorded files."""
    folder = tmp_path_factory.mktemp("golden")
    dataset, runs = cases.make_dataset(folder / "dataset"), folder / "runs"
    commands = {f"train {case}": cases.train_command(case, dataset, runs / case) for case in CASES}
    for name in ("stopped", "finished"):
        shutil.copytree(RECORDED / "runs" / name, runs / name)
        cases.relocate(runs / name, PLACEHOLDER, str(dataset))
        commands[f"resume {name}"] = cases.Command(arguments=["resume", str(runs / name)])
    files = {
        case: shutil.copyfile(RECORDED / "files" / f"{case}.safetensors", folder / f"{case}.safetensors")
        for case in OPENED
    }
    commands |= record.file_commands(files, folder)
    return Results(folder, cases.run_commands(commands, folder))


def assert_tensors_as_recorded(found: Path, digest: str, recorded: Path) -> None:
    """Compares digests, or values where another version or architecture computes other last bits."""
    before, now = cases.read_json(RECORDED / "versions.json"), cases.versions()
    if now == before:
        assert cases.tensor_digest(found) == digest, (
            f"largest difference {cases.largest_difference(found, recorded):.2g}"
        )
        return
    warnings.warn(
        f"{found.name} is compared to {TENSOR:g}, not by digest: recorded with {before}, found {now}",
        stacklevel=2,
    )
    assert cases.largest_difference(found, recorded) <= TENSOR


@pytest.mark.parametrize("case", CASES)
def test_loss_curves_equal_the_recorded_ones(case: str, results: Results):
    found = cases.curves(results.run(f"train {case}"))
    recorded = cases.read_json(RECORDED / "curves.json")[case]
    assert len(recorded["loss"]) == cases.STEPS
    for kind in ("loss", "validation"):
        np.testing.assert_allclose(found[kind], recorded[kind], rtol=0, atol=LOSS)


@pytest.mark.parametrize("case", CASES)
def test_trained_tensors_equal_the_recorded_ones(case: str, results: Results):
    found = results.run(f"train {case}") / f"{case}.safetensors"
    digest = cases.read_json(RECORDED / "digests.json")[case]
    assert_tensors_as_recorded(found, digest, RECORDED / "files" / found.name)


def test_recorded_files_hold_the_tensors_of_the_recorded_digests():
    digests = cases.read_json(RECORDED / "digests.json")
    assert {
        case: cases.tensor_digest(RECORDED / "files" / f"{case}.safetensors") for case in CASES
    }.items() <= digests.items()


@pytest.mark.parametrize("name", ["stopped", "finished"])
def test_a_recorded_run_resumes_to_the_tensors_of_the_uninterrupted_one(name: str, results: Results):
    run = results.run(f"resume {name}")
    digest = cases.read_json(RECORDED / "digests.json")[RUN_CASE]
    assert_tensors_as_recorded(
        run / f"{RUN_CASE}.safetensors", digest, RECORDED / "files" / f"{RUN_CASE}.safetensors"
    )


def test_a_recorded_stopped_run_continues_from_its_checkpoint(results: Results):
    before, found = cases.curves(RECORDED / "runs" / "stopped"), cases.curves(results.run("resume stopped"))
    whole = cases.read_json(RECORDED / "curves.json")[RUN_CASE]
    done = len(before["loss"])
    assert 0 < done < cases.STEPS
    # Version 0.1 divided the loss of a batch that is not full by the full batch size.
    whole["loss"] = before["loss"] + whole["loss"][done:]
    for kind in ("loss", "validation"):
        np.testing.assert_allclose(found[kind], whole[kind], rtol=0, atol=LOSS)


@pytest.mark.parametrize("case", OPENED)
def test_recorded_files_open_in_inspect_and_check(case: str, results: Results):
    statuses = cases.read_json(RECORDED / "statuses.json")
    for command in (f"inspect {case}", f"check {case}"):
        ended = results.done[command]
        assert ended.status == statuses[command], ended.err
        assert ended.out


@pytest.mark.parametrize("case", OPENED)
def test_recorded_files_generate_the_recorded_picture(case: str, results: Results):
    ended = results.done[f"preview {case}"]
    assert ended.status == 0, ended.err
    found, recorded = (
        np.asarray(Image.open(path).convert("RGB"), dtype=np.float32)
        for path in (record.preview_of(results.folder, case), RECORDED / "previews" / f"{case}.png")
    )
    assert np.abs(found - recorded).mean() < PICTURE


@pytest.mark.parametrize("form", record.CONVERTED)
def test_recorded_files_convert_to_the_recorded_tensors(form: str, results: Results):
    ended = results.done[f"convert {form}"]
    assert ended.status == 0, ended.err
    assert (
        cases.tensor_digest(results.folder / f"{form}.safetensors")
        == cases.read_json(RECORDED / "digests.json")[form]
    )


@pytest.mark.parametrize("name", true_sdxl.LISTS)
def test_keys_and_shapes_for_true_sdxl_equal_the_recorded_ones(name: str):
    recorded = (RECORDED / "true-sdxl" / f"{name}.txt").read_text(encoding="utf-8")
    assert true_sdxl.key_list(true_sdxl.LISTS[name]).splitlines() == recorded.splitlines()
