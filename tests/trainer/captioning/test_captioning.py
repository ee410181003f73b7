"""Captioning by a model: caption files, existing captions, and what remains after a stop."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import MODELS, ROOT
from tests.trainer.captioning.captioner_samples import (
    SIDE,
    WORDS,
    WRONG_FOLDERS,
    blip,
    blip_2,
    florence_2,
    hub,
    many,
    texts,
    write_tagger,
)
from trainer.__main__ import main
from trainer.captioning.fetch import select_files
from trainer.captioning.folder import load_captioner
from trainer.captioning.sentences import whole_sentences
from trainer.captioning.tags import preprocess, tag_text
from trainer.captioning_config import CaptionOptions, options_for, options_from
from trainer.dataset.folder import sidecar_caption
from trainer.errors import CaptionerError, ConfigError, DatasetError, RunError
from trainer.headers.base_model import list_base_models
from trainer.headers.captioner import BLIP, BLIP_2, FLORENCE_2, WD_TAGGER, list_captioners, open_captioner
from trainer.runs import captioning_job as job
from trainer.runs import events
from trainer.workers.captioning import work


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A models folder with a captioner of each kind, a folder without a model, and a base model."""
    models = tmp_path_factory.mktemp("models")
    (models / "tiny-sdxl").symlink_to(MODELS / "tiny-sdxl")
    captioners = models / "captioners"
    write_tagger(captioners / "tagger")
    for name, make in (("blip", blip), ("blip-2", blip_2), ("florence", florence_2)):
        torch.manual_seed(2)
        for part in make():
            part.save_pretrained(captioners / name)
    (captioners / "notes").mkdir()
    (captioners / "notes" / "read.me").write_text("no model")
    return models


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for colour in ("red", "blue"):
        Image.new("RGB", (24, 24), colour).save(folder / f"{colour}.png")
    return folder


@pytest.fixture
def caption(models: Path, monkeypatch, capsys):
    """Runs `python -m trainer dataset caption ...` in this process; returns (status, stdout, stderr)."""

    def call(folder: Path, *arguments: str | Path, model: str | Path = "tagger") -> tuple[int, str, str]:
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        command = ["dataset", "caption", folder, "--model", model, "--models", models, *arguments]
        monkeypatch.setattr(sys, "argv", ["trainer", *map(str, command)])
        capsys.readouterr()
        try:
            status = main()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_tags_are_sorted_by_probability_with_characters_first(caption, pictures: Path):
    status, out, err = caption(pictures)
    assert status == 0
    assert "2 captions" in out
    assert "Traceback" not in err
    assert texts(pictures) == {
        "red.txt": "ink (series), red, long hair, o_o",
        "blue.txt": "ink (series), blue, long hair, o_o",
    }


def test_thresholds_prefix_suffix_trigger_and_excluded_tags_are_applied(caption, pictures: Path):
    options = [
        "--general-threshold",
        "0.15",
        "--character-threshold",
        "0.79",
        "--exclude-tags",
        "o_o, Long Hair",
        "--exclude-tags",
        "blue",
    ]
    caption(pictures, *options, "--prefix", "drawing of", "--suffix", "on paper", "--trigger", "inkish")
    assert texts(pictures) == {
        "red.txt": "inkish, drawing of ink (series), nearly ink, red, faint on paper",
        "blue.txt": "inkish, drawing of ink (series), nearly ink, faint on paper",
    }


@given(words=st.lists(st.from_regex(r"[a-z]{2,8}", fullmatch=True), min_size=1, max_size=4))
def test_underscores_between_words_become_spaces(words: list[str]):
    assert tag_text("_".join(words)) == " ".join(words)


@pytest.mark.parametrize(
    "face", ["0_0", "(o)_(o)", "+_+", "._.", "<|>_<|>", "=_=", ">_<", ">_o", "^_^", "|_|", "||_||", "u_u"]
)
def test_faces_keep_their_underscore(face: str):
    assert tag_text(face) == face


def test_a_picture_is_put_on_a_white_square_in_blue_green_red():
    taken = preprocess(Image.new("RGB", (32, 16), (255, 10, 0)), 32)
    assert taken.shape == (32, 32, 3)
    assert taken.dtype == np.float32
    assert (taken[:8] == 255).all()
    assert (taken[24:] == 255).all()
    assert (taken[8:24] == (0, 10, 255)).all()
    assert preprocess(Image.new("RGB", (30, 10), "red"), SIDE).shape == (SIDE, SIDE, 3)


def test_a_tagger_that_takes_one_picture_at_a_time_is_given_one(caption, pictures: Path, tmp_path: Path):
    status, *_ = caption(pictures, "--batch", "2", model=write_tagger(tmp_path / "old", batch=1))
    assert status == 0
    assert len(texts(pictures)) == 2


@pytest.mark.parametrize(("name", "kind"), [("blip", BLIP), ("blip-2", BLIP_2), ("florence", FLORENCE_2)])
def test_sentences_depend_on_the_picture_and_not_on_the_batch(models: Path, name: str, kind: str):
    captioner = open_captioner(name, models)
    describe = load_captioner(captioner, options_from({"max_length": 12}))
    pictures = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue", "white", "black")]
    together = describe(pictures)
    assert captioner.kind == kind
    assert together == [describe([picture])[0] for picture in pictures]
    assert len(set(together)) > 1
    assert all(
        set(re.findall(r"[a-z]+", text)) <= set(WORDS) and not re.search(r"[<\[]", text) for text in together
    )


def test_max_length_makes_sentences_shorter(models: Path):
    red = [Image.new("RGB", (40, 30), "blue")]
    short, long = (
        load_captioner(open_captioner("blip", models), options_from({"max_length": n}))(red)[0]
        for n in (5, 40)
    )
    assert len(short.split()) <= 5 < len(long.split())


def test_detail_changes_the_captions_of_florence_2(models: Path):
    blue = [Image.new("RGB", (40, 30), "blue")]
    short, detailed = (
        load_captioner(open_captioner("florence", models), options_from({"detail": d}))(blue)[0]
        for d in ("short", "detailed")
    )
    assert short != detailed


def test_a_cut_caption_ends_with_its_last_complete_sentence():
    assert whole_sentences("A cat. It sits on the") == "A cat."
    assert whole_sentences("A cat. It sits.") == "A cat. It sits."
    assert whole_sentences("a cat that sits on the") == "a cat that sits on the"


def test_sentences_are_written_beside_the_pictures(caption, pictures: Path):
    status, out, _ = caption(pictures, "--trigger", "inkish", "--max-length", "12", model="florence")
    assert status == 0
    assert "Florence-2" in out
    assert set(texts(pictures)) == {"red.txt", "blue.txt"}
    assert all(text.startswith("inkish, ") for text in texts(pictures).values())


def test_existing_captions_are_kept_without_overwrite(caption, pictures: Path):
    for name, colour in (("own", "red"), ("kohya", "red"), ("listed", "red"), ("empty", "red")):
        Image.new("RGB", (24, 24), colour).save(pictures / f"{name}.png")
    (pictures / "own.txt").write_text("my cat\n")
    (pictures / "kohya.caption").write_text("my dog")
    (pictures / "empty.txt").write_text(" \n")
    (pictures / "metadata.jsonl").write_text(json.dumps({"file_name": "listed.png", "text": "my bird"}))
    assert caption(pictures)[0] == 0
    assert set(texts(pictures)) == {"own.txt", "empty.txt", "red.txt", "blue.txt"}
    assert sidecar_caption(pictures / "own.png") == "my cat"
    assert sidecar_caption(pictures / "kohya.png") == "my dog"
    assert sidecar_caption(pictures / "empty.png") == "ink (series), red, long hair, o_o"
    assert caption(pictures, "--only-missing")[1].startswith("0 captions")
    assert caption(pictures, "--overwrite")[1].startswith("6 captions")
    assert len(set(texts(pictures).values())) == 2
    assert sidecar_caption(pictures / "own.png") != "my cat"


def test_bad_pictures_are_named_and_skipped(caption, pictures: Path):
    (pictures / "broken.png").write_bytes(b"\x89PNG no more")
    Image.new("RGB", (24, 24), "red").save(pictures / "red.webp")
    (pictures / "10_cats").mkdir()
    Image.new("RGB", (24, 24), "red").save(pictures / "10_cats" / "tom.png")
    status, _, err = caption(pictures)
    message = " ".join(err.split())
    assert status == 0
    assert "broken.png can't be read as a picture" in message
    assert "red.webp would share its caption file with red.png" in message
    assert set(texts(pictures)) == {"red.txt", "blue.txt", "10_cats/tom.txt"}


def test_a_folder_of_only_bad_pictures_fails(caption, tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    status, _, err = caption(tmp_path)
    assert status == 1
    assert "impasto: no picture of" in err
    assert not texts(tmp_path)
    (tmp_path / "broken.png").unlink()
    assert "holds no picture to caption" in caption(tmp_path)[2]


def test_a_picture_without_tags_above_the_thresholds_gets_no_caption(caption, pictures: Path):
    status, _, err = caption(pictures, "--general-threshold", "0.9", "--character-threshold", "1")
    assert status == 0
    assert set(texts(pictures)) == {"red.txt", "blue.txt"}
    (pictures / "red.txt").unlink()
    status, _, err = caption(
        pictures, "--general-threshold", "0.9", "--character-threshold", "1", "--exclude-tags", "red"
    )
    assert status == 1
    assert "lower the thresholds" in " ".join(err.split())
    assert set(texts(pictures)) == {"blue.txt"}


def start_job(path: Path, models: Path) -> threading.Thread:
    """Starts a job in a thread and waits until it has written a caption."""
    worker = threading.Thread(target=work, args=(path, models))
    worker.start()
    while worker.is_alive() and not view_of(path).captions:
        time.sleep(0.001)
    return worker


def create_job(tmp_path: Path, folder: Path, **options) -> Path:
    return job.create(tmp_path / "job", folder, "tagger", options_from(options)).path


def view_of(path: Path) -> job.CaptioningView:
    return job.fold(job.CaptioningView(), events.read(path / "events.jsonl")[0])


def test_a_job_reports_each_caption_after_it_is_on_disk(models: Path, pictures: Path, tmp_path: Path):
    path = create_job(tmp_path, pictures, trigger="inkish", exclude_tags=["o_o"])
    assert work(path, models) == "finished"
    view = view_of(path)
    assert (view.done, view.total, view.ended, view.problems) == (2, 2, "finished", ())
    assert view.captions == {
        "blue.png": "inkish, ink (series), blue, long hair",
        "red.png": "inkish, ink (series), red, long hair",
    }
    assert texts(pictures) == {name.replace(".png", ".txt"): text for name, text in view.captions.items()}
    with pytest.raises(RunError):
        job.create(path, pictures, "tagger", CaptionOptions())


def test_a_stopped_job_keeps_its_captions_and_continues_with_the_others(models: Path, tmp_path: Path):
    folder = many(tmp_path, 200)
    path = create_job(tmp_path, folder, overwrite=True, batch=1)
    worker = start_job(path, models)
    events.append(path / "commands.jsonl", "stop", sync=True)
    worker.join()
    stopped = view_of(path)
    assert stopped.ended == "stopped"
    assert 0 < len(stopped.captions) < 200
    assert len(texts(folder)) == len(stopped.captions)
    assert work(path, models) == "finished"
    captured = [
        event["name"] for event in events.read(path / "events.jsonl")[0] if event["kind"] == "captioned"
    ]
    assert sorted(captured) == [f"{number:03}.png" for number in range(200)]  # none twice
    assert (view_of(path).done, view_of(path).ended) == (200, "finished")


def test_a_caption_that_the_user_writes_during_the_job_is_kept(models: Path, tmp_path: Path):
    folder = many(tmp_path, 100)
    path = create_job(tmp_path, folder, batch=1)
    worker = start_job(path, models)
    (folder / "099.txt").write_text("my own")
    worker.join()
    assert texts(folder)["099.txt"] == "my own"
    assert len(texts(folder)) == 100
    assert view_of(path).ended == "finished"


def test_a_caption_that_the_user_edits_after_the_start_is_kept_with_overwrite_and_reported(
    models: Path, pictures: Path, tmp_path: Path
):
    for name in ("red", "blue"):
        (pictures / f"{name}.txt").write_text("old")
    path = create_job(tmp_path, pictures, overwrite=True)
    os.utime(path / "job.json", ns=(0, (pictures / "red.txt").stat().st_mtime_ns))
    later = (pictures / "red.txt").stat().st_mtime_ns + 1_000
    (pictures / "blue.txt").write_text("edited by hand\nin two lines")
    os.utime(pictures / "blue.txt", ns=(later, later))
    assert work(path, models) == "finished"
    assert texts(pictures)["blue.txt"] == "edited by hand\nin two lines"
    assert texts(pictures)["red.txt"] != "old"
    view = view_of(path)
    assert list(view.captions) == ["red.png"]
    assert [problem for problem in view.problems if "blue.png was edited" in problem]


def test_a_caption_file_from_the_future_is_not_taken_for_an_edit(
    models: Path, pictures: Path, tmp_path: Path
):
    (pictures / "red.txt").write_text("old")
    tomorrow = time.time_ns() + 86_400 * 10**9
    os.utime(pictures / "red.txt", ns=(tomorrow, tomorrow))
    assert work(create_job(tmp_path, pictures, overwrite=True), models) == "finished"
    assert texts(pictures)["red.txt"] != "old"


def test_a_caption_that_can_not_be_written_ends_the_job_with_a_message(
    models: Path, pictures: Path, tmp_path: Path
):
    (pictures / "red.txt").mkdir()
    path = create_job(tmp_path, pictures)
    with pytest.raises(DatasetError, match=r"red\.txt can't be written"):
        work(path, models)
    assert view_of(path).ended == "failed"
    assert list(view_of(path).captions) == ["blue.png"]


def test_a_failed_job_gives_the_reason_without_a_path(tmp_path: Path, models: Path, pictures: Path):
    path = job.create(tmp_path / "job", pictures, "gone", CaptionOptions()).path
    with pytest.raises(CaptionerError):
        work(path, models)
    view = view_of(path)
    assert view.ended == "failed"
    assert "gone" in view.message
    assert str(tmp_path) not in view.message
    (path / "job.json").write_text('{"folder": "x", "model": "y", "colour": 1}')
    with pytest.raises(ConfigError, match="colour"):
        work(path, models)
    with pytest.raises(RunError, match=r"job\.json"):
        work(tmp_path, models)


def test_sigterm_ends_after_the_current_batch_and_keeps_its_captions(models: Path, tmp_path: Path):
    folder = many(tmp_path, 400)
    command = [
        sys.executable,
        "-m",
        "trainer",
        "dataset",
        "caption",
        folder,
        "--model",
        models / "captioners" / "tagger",
        "--batch",
        "1",
    ]
    child = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while child.poll() is None and not texts(folder):
        time.sleep(0.005)
    child.send_signal(signal.SIGTERM)
    err = child.communicate()[1]
    assert child.returncode == 1
    assert "impasto: stopped after" in err
    assert "Traceback" not in err
    written = texts(folder)
    assert 0 < len(written) < 400
    assert set(written.values()) == {"ink (series), red, long hair, o_o"}
    assert not list(folder.glob(".tmp-*"))


def test_captioners_are_listed_with_their_kinds_and_bases_separately(models: Path):
    assert list_captioners(models) == {
        "blip": BLIP,
        "blip-2": BLIP_2,
        "florence": FLORENCE_2,
        "tagger": WD_TAGGER,
    }
    assert list_captioners(models / "nowhere") == {}
    assert list_base_models(models) == ["tiny-sdxl"]


@pytest.mark.parametrize(("make", "words"), WRONG_FOLDERS)
def test_a_folder_without_a_supported_model_is_refused_in_a_sentence(
    caption, pictures: Path, tmp_path: Path, make, words: str
):
    folder = tmp_path / "model"
    folder.mkdir()
    make(folder)
    status, _, err = caption(pictures, model=folder)
    message = [line for line in err.splitlines() if line.startswith("impasto: ")]
    assert status == 1
    assert len(message) == 1
    assert words in message[0]
    assert "Traceback" not in err
    assert not texts(pictures)


def test_a_program_in_a_models_folder_is_not_executed(caption, models: Path, pictures: Path, tmp_path: Path):
    folder = shutil.copytree(models / "captioners" / "florence", tmp_path / "florence")
    (folder / "own.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\nclass Own: pass\n"
    )
    for file, part in (
        ("processor_config", "AutoProcessor"),
        ("tokenizer_config", "AutoTokenizer"),
        ("generation_config", "AutoModel"),
    ):
        facts = json.loads((folder / f"{file}.json").read_text())
        named = ["own.Own", None] if part == "AutoTokenizer" else "own.Own"
        (folder / f"{file}.json").write_text(
            json.dumps({**facts, "auto_map": {part: named, "AutoImageProcessor": named}})
        )
    assert caption(pictures, model=folder)[0] == 0
    assert len(texts(pictures)) == 2
    assert not (tmp_path / "ran").exists()


def test_a_model_of_the_hub_is_not_downloaded_without_fetch(caption, pictures: Path, monkeypatch):
    def refuse(*arguments, **named):
        pytest.fail("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    status, _, err = caption(pictures, model="someone/a-tagger")
    assert status == 1
    assert "add --fetch" in err
    assert re.search(r"models\d*/captioners/a-tagger", err)


def test_a_model_in_the_local_cache_of_the_hub_is_used(models: Path, tmp_path: Path, monkeypatch):
    import huggingface_hub.constants

    commit = "0" * 40
    stored = tmp_path / "models--someone--a-tagger"
    write_tagger(stored / "snapshots" / commit)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert open_captioner("someone/a-tagger", models).kind == WD_TAGGER


def test_fetch_downloads_only_the_files_that_are_needed(pictures: Path, tmp_path: Path):
    served = write_tagger(tmp_path / "hub")
    (served / "weights.msgpack").write_bytes(b"not read")
    with hub("someone/a-tagger", served) as address:
        command = [
            "dataset",
            "caption",
            pictures,
            "--model",
            "someone/a-tagger",
            "--models",
            tmp_path / "models",
            "--fetch",
        ]
        surroundings = {
            **os.environ,
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        done = subprocess.run(
            [sys.executable, "-m", "trainer", *map(str, command)],
            cwd=ROOT,
            env=surroundings,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "models" / "captioners" / "someone--a-tagger"
    assert {path.name for path in folder.iterdir() if path.is_file()} == {"model.onnx", "selected_tags.csv"}
    assert len(texts(pictures)) == 2
    assert "2 captions by someone--a-tagger" in done.stdout


def test_only_the_needed_files_of_a_repository_are_selected():
    tagger = [
        "README.md",
        "config.json",
        "model.msgpack",
        "model.onnx",
        "model.safetensors",
        "selected_tags.csv",
    ]
    assert select_files(tagger, "x/y") == ([], ["model.onnx", "selected_tags.csv"])
    florence = [
        "README.md",
        "config.json",
        "tokenizer.json",
        "merges.txt",
        "model.safetensors",
        "pytorch_model.bin",
        "onnx/model.onnx",
    ]
    assert select_files(florence, "x/y") == (
        ["config.json", "tokenizer.json", "merges.txt"],
        ["model.safetensors"],
    )
    with pytest.raises(CaptionerError, match="no weights in"):
        select_files(["config.json", "pytorch_model.bin"], "x/y")


def test_every_option_exists_on_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["trainer", "dataset", "caption", "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    assert main() == 0
    shown = capsys.readouterr().out
    assert all(
        f"--{declared.name.replace('_', '-')}" in shown for declared in dataclasses.fields(CaptionOptions)
    )


def test_each_kind_of_model_lists_its_options():
    names = {
        kind: {declared.name for declared in options_for(kind)} for kind in (BLIP, FLORENCE_2, WD_TAGGER)
    }
    assert names[FLORENCE_2] - names[BLIP] == {"detail"}
    assert names[WD_TAGGER] - names[BLIP] == {"general_threshold", "character_threshold", "exclude_tags"}


@pytest.mark.parametrize(
    "values",
    [{"batch": 0}, {"detail": "very"}, {"general_threshold": 2}, {"colour": 1}, {"exclude_tags": "red"}],
)
def test_an_invalid_option_is_named(values: dict):
    with pytest.raises(ConfigError, match=next(iter(values))):
        options_from(values)


def test_a_missing_folder_is_named(models: Path, tmp_path: Path):
    path = job.create(tmp_path / "job", tmp_path / "gone", "tagger", CaptionOptions()).path
    with pytest.raises(DatasetError, match="gone is not a folder"):
        work(path, models)
