"""Hashes of model files, compared with their definition in kohya's scripts."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from trainer.headers.model_hashes import HashesInBackground, file_hash, short_hash


def test_hashes_are_those_of_the_window_and_of_the_whole_file(tmp_path: Path):
    data = os.urandom(0x120000)
    (tmp_path / "a.safetensors").write_bytes(data)
    assert short_hash(tmp_path / "a.safetensors") == hashlib.sha256(data[1048576:1114112]).hexdigest()[:8]
    assert file_hash(tmp_path / "a.safetensors") == hashlib.sha256(data).hexdigest()
    (tmp_path / "small").write_bytes(b"x")
    assert short_hash(tmp_path / "small") == "e3b0c442", "the hash of nothing, as in kohya's scripts"


def test_a_hash_is_read_from_the_cache_until_the_file_changes(tmp_path: Path, monkeypatch):
    file, cache = tmp_path / "a.safetensors", tmp_path / "cache"
    file.write_bytes(b"one")
    first = file_hash(file, cache)
    (entry,) = (cache / "hashes").iterdir()
    assert entry.read_text() == first == hashlib.sha256(b"one").hexdigest()
    entry.write_text("0" * 64)
    assert file_hash(file, cache) == "0" * 64, "read from the cache"
    entry.write_text("damaged")
    assert file_hash(file, cache) == first
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert file_hash(file, cache) == hashlib.sha256(b"two").hexdigest()


def test_hashes_in_the_background_leave_out_files_that_cannot_be_read(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"one")
    hashes = HashesInBackground({"base": tmp_path / "a", "vae": tmp_path / "b"}, tmp_path / "cache").result()
    assert hashes == {"base": (short_hash(tmp_path / "a"), hashlib.sha256(b"one").hexdigest())}
