"""Text files in every encoding that people bring, and output on every code page."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from trainer.config import read_toml
from trainer.dataset.captions import read_metadata
from trainer.dataset.quick_scan import quick_scan
from trainer.dataset.scan import scan
from trainer.dataset.sources import scan_all
from trainer.text_files import decode, encoding_notes

CAPTIONS = {
    "cp1252": [
        "café, d’or",
        "Übung, schöne Straße",
        "a sign “hello” — a cat’s tail",
        "naïve",
        "a girl’s hat",
        "señora, niño",
        "Crème brûlée",
        "été",
        "un garçon déjà assis à côté d’une fenêtre",
        "ein Mädchen",
        "Größe",
        "la niña está aquí",
        "…a cat",
        "a “red” cat",
        "50° angle",
        "Pokémon",
        "a dog – running",
        "une fille à l’école",
        "¿qué?",
        "«ça va»",
        "© 2020 artist",
        "das große Haus, Bäume",
        "straße",
        "gatto, città",
        "perché è così",
        "coração, menina",
        "flicka på en äng",
        "a café in “Paris” – night",
        "Zoë’s cat",
        "El Niño",
        "Ångström",
        "smörgåsbord",
        "Beyoncé",
        "it’s 5 o’clock",
        "jalapeño",
        "façade",
        "naïve art",
        "rosé, déjà vu",
    ],
    "cp932": [
        "黒猫",
        "黒い猫が座っている",
        "1girl, solo, 猫耳, smile",
        "カタカナ, 女の子",
        "猫",
        "1girl, 黒髪, 制服",
        "白い背景",
        "笑顔",
        "1girl, solo, 笑顔",
        "女の子、青い目",
        "ねこ",
        "水彩画",
        "東京タワー",
        "夕焼け空",
        "woman, 猫, cat",
    ],
    "gb18030": [
        "黑猫坐在屋顶上",
        "黑猫",
        "少女",
        "一只猫, 白色背景",
        "1girl, 微笑, 长发",
        "水彩画",
        "夕阳下的城市",
        "蓝色的眼睛, 1girl",
    ],
    "big5": [
        "黑貓坐在屋頂上",
        "女孩, 藍色眼睛",
    ],
    "cp949": [
        "검은 고양이",
        "소녀, 미소",
        "고양이",
        "girl, 파란 눈",
    ],
    "cp1251": [
        "чёрный кот на крыше",
        "кот",
        "девушка, портрет",
        "портрет",
        "кошка",
        "1girl, девочка с котом",
    ],
    "koi8_r": [
        "чёрный кот",
    ],
    "cp1250": [
        "żółta łódź, kot",
        "zażółć gęślą jaźń",
        "kočka na střeše",
        "příliš žluťoučký kůň",
        "macska, szőke lány",
    ],
    "cp1253": [
        "μαύρη γάτα",
        "γάτα",
    ],
    "cp1255": [
        "חתול שחור",
    ],
    "cp1256": [
        "قطة سوداء",
    ],
    "cp1254": [
        "kara kedi, güneş ışığı",
    ],
    "cp874": [
        "แมวดำ",
    ],
}


UNICODE = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]


@pytest.mark.parametrize("encoding", CAPTIONS)
def test_captions_in_legacy_code_pages_are_read_rightly_and_reported(encoding: str) -> None:
    for caption in CAPTIONS[encoding]:
        decoded = decode(caption.encode(encoding))
        assert (decoded.text, decoded.is_guess) == (caption, True)


@pytest.mark.parametrize("encoding", UNICODE)
def test_unicode_is_read_exactly_with_and_without_a_mark(encoding: str) -> None:
    for text in ("a black cat", "café, 黒猫, 🐈\r\n", "a", "", "Übung\n"):
        decoded = decode(text.encode(encoding))
        assert (decoded.text, decoded.is_guess, decoded.is_damaged) == (text, False, False)


def test_big_endian_utf_16_with_a_mark_is_read() -> None:
    assert decode(b"\xfe\xff" + "a cat".encode("utf-16-be")).text == "a cat"


def test_damaged_utf_8_stays_utf_8_and_is_reported() -> None:
    decoded = decode("猫と犬と鳥".encode() + b"\xff")
    assert decoded.text.startswith("猫と犬と鳥")
    assert decoded.is_damaged


def test_a_zero_byte_in_utf_8_does_not_make_it_utf_16() -> None:
    for text in (
        "a cat\0 and dog",
        "a cat and dog\0",
        "\0 a cat and dog",
        "caf\u00e9\0 cat",
        "猫\0 and a small dog",
    ):
        decoded = decode(text.encode())
        assert (decoded.text, decoded.encoding, decoded.is_damaged) == (text, "utf-8", True)


def test_every_byte_string_has_a_reading() -> None:
    for data in (bytes(range(256)), b"\xff", b"\x81\x8d", b"\0\0\0"):
        assert isinstance(decode(data).text, str)


def test_a_guessed_encoding_is_reported_once_for_all_its_files(tmp_path: Path) -> None:
    for name in "abcde":
        (tmp_path / f"{name}.txt").write_bytes("黒猫".encode("cp932"))
    (note,) = encoding_notes((path.name, path) for path in sorted(tmp_path.iterdir()))
    assert note.startswith("a.txt, b.txt, c.txt and 2 more are not UTF-8; read as Japanese (Shift-JIS)")


def _picture(folder: Path, name: str) -> None:
    Image.new("RGB", (64, 64), "red").save(folder / name)


def test_a_dataset_in_several_encodings_is_read_and_noted_but_has_no_problem(tmp_path: Path) -> None:
    for name in "abc":
        _picture(tmp_path, f"{name}.png")
    (tmp_path / "a.txt").write_bytes("a black cat".encode("utf-16"))
    (tmp_path / "b.txt").write_bytes("café, d’or".encode("cp1252"))
    (tmp_path / "c.txt").write_bytes("黒猫".encode("cp932"))
    manifest = scan(tmp_path)
    assert [item.caption for item in manifest.items] == ["a black cat", "café, d’or", "黒猫"]
    assert [item.caption for item in quick_scan(tmp_path).items] == ["a black cat", "café, d’or", "黒猫"]
    assert manifest.problems == ()
    assert [note.split(" is ")[0] for note in manifest.notes] == ["b.txt", "c.txt"]
    assert type(manifest).from_json(manifest.to_json()) == manifest


def test_metadata_jsonl_in_utf_16_is_read(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_bytes('{"file_name": "a.png", "text": "猫"}\n'.encode("utf-16"))
    rows, problems = read_metadata(tmp_path / "metadata.jsonl")
    assert rows["a.png"].caption == "猫"
    assert not problems


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_toml_files_are_read_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_bytes('steps = 1\r\ntrigger = "café"\r\n'.encode(encoding))
    assert read_toml(settings) == {"steps": 1, "trigger": "café"}
    pictures = tmp_path / "été"
    pictures.mkdir()
    _picture(pictures, "a.png")
    (tmp_path / "folders.toml").write_bytes('[[folder]]\npath = "été"\n'.encode(encoding))
    manifest = scan_all([tmp_path / "folders.toml"])
    assert len(manifest.items) == 1
    assert bool(manifest.notes) == (encoding == "cp1252")


def test_output_on_a_legacy_code_page_escapes_what_it_lacks(tmp_path: Path) -> None:
    _picture(tmp_path, "猫.png")
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, "-m", "trainer", "dataset", "check", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="cp1252", timeout=120)
    assert done.returncode == 0, done.stderr
    assert "\\u732b.png: 64x64" in done.stdout
