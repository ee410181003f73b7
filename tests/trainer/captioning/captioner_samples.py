"""Samples for tests of captioning: tiny models, folders without a model, and a server that imitates the
hub.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from transformers import (
    BartTokenizer,
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPImageProcessorPil,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GPT2Tokenizer,
)

SIDE = 16  # px; real taggers use 448
# (name, category, weights of red, green and blue, bias): the picture's mean colour decides.
TAGS = [
    ("general", 9, (0, 0, 0), 0.99),
    ("red", 0, (1, -1, 0), 0.0),
    ("blue", 0, (0, -1, 1), 0.0),
    ("long_hair", 0, (0, 0, 0), 0.5),
    ("o_o", 0, (0, 0, 0), 0.4),
    ("faint", 0, (0, 0, 0), 0.2),
    ("ink_(series)", 4, (0, 0, 0), 0.86),
    ("nearly_ink", 4, (0, 0, 0), 0.8),
]
WORDS = ["a", "red", "blue", "cat", "sits", "on", "the", "mat", ".", "by", "house"]


def write_tagger(folder: Path, *, batch: int | str = "N", tags=TAGS) -> Path:
    """Writes a network with the inputs and outputs of a WD tagger, whose tags depend on the mean colour."""
    folder.mkdir(parents=True)
    weights = np.array([(b, g, r) for _, _, (r, g, b), _ in TAGS], dtype=np.float32).T / 255
    biases = np.array([bias for *_, bias in TAGS], dtype=np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["product"]),
        helper.make_node("Add", ["product", "biases"], ["output"]),
    ]
    taken = helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, SIDE, SIDE, 3])
    given_ = helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, len(TAGS)])
    numbers = [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(biases, "biases")]
    graph = helper.make_graph(nodes, "tagger", [taken], [given_], numbers)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8),
        folder / "model.onnx",
    )
    with (folder / "selected_tags.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["tag_id", "name", "category", "count"])
        rows.writerows([(number, name, category, 1) for number, (name, category, *_) in enumerate(tags)])
    return folder


SIZE = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "initializer_range": 1.0,
}
LETTERS = {
    word: n
    for n, word in enumerate(
        ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *("." if w == "." else f"Ġ{w}" for w in WORDS)]
    )
}
VISION = {**SIZE, "image_size": 32, "patch_size": 16}


def blip() -> tuple:
    vocab = {word: n for n, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    ids = {"bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
    text = {**SIZE, **ids, "vocab_size": len(vocab), "encoder_hidden_size": 16, "max_position_embeddings": 64}
    images = BlipImageProcessorPil(size={"height": 32, "width": 32})
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=VISION))
    model.text_decoder.cls.predictions.bias.data[
        :5
    ] = -1e4  # special tokens are never generated, so captions reach the maximum length
    return model, BlipProcessor(images, BertTokenizer(vocab=vocab))


def blip_2() -> tuple:
    special = {
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    }
    tokenizer = GPT2Tokenizer(vocab=dict(LETTERS), merges=[], **special)  # pyright: ignore[reportArgumentType]
    processor = Blip2Processor(
        BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer, num_query_tokens=2
    )
    text = {
        "model_type": "opt",
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "ffn_dim": 16,
        "init_std": 1.0,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }
    former = {**SIZE, "encoder_hidden_size": 16, "vocab_size": 20}
    config = Blip2Config(
        vision_config=VISION,
        qformer_config=former,
        text_config=text,
        num_query_tokens=2,
        image_token_index=len(tokenizer) - 1,
    )
    return Blip2ForConditionalGeneration(config), processor


def florence_2() -> tuple:
    tokenizer = BartTokenizer(vocab=dict(LETTERS), merges=[], extra_special_tokens={"image_token": "<image>"})
    vision = {
        "depths": (1, 1),
        "patch_size": (7, 3),
        "patch_stride": (4, 2),
        "patch_padding": (3, 1),
        "patch_prenorm": (False, True),
        "embed_dim": (8, 16),
        "num_heads": (2, 2),
        "num_groups": (2, 2),
        "window_size": 2,
        "projection_dim": 16,
        "initializer_range": 1.0,
    }
    text = {
        "model_type": "bart",
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "init_std": 1.0,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 64,
    }
    images = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    # 4 x 4 positions and their mean
    images.image_seq_length = 17  # pyright: ignore[reportAttributeAccessIssue]
    config = Florence2Config(
        text_config=text,
        vision_config=vision,
        image_token_id=tokenizer.image_token_id,
        initializer_range=1.0,  # pyright: ignore[reportCallIssue]
    )
    model = Florence2ForConditionalGeneration(config)
    model.generation_config.begin_suppress_tokens = [0, 1, 2, 3, 4]  # at least one word before the end
    return model, Florence2Processor(images, tokenizer)


def many(tmp_path: Path, count: int) -> Path:
    """A folder of red pictures 000.png, 001.png, ..."""
    folder = tmp_path / "many"
    folder.mkdir()
    Image.new("RGB", (24, 24), "red").save(folder / "000.png")
    for number in range(1, count):
        os.link(folder / "000.png", folder / f"{number:03}.png")
    return folder


def texts(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8").strip()
        for path in folder.rglob("*.txt")
        if path.is_file()
    }


def config_only(folder: Path, **content) -> None:
    (folder / "config.json").write_text(json.dumps(content))


def pickled(folder: Path) -> None:
    config_only(folder, model_type="blip")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}.")


def programmed(folder: Path) -> None:
    config_only(folder, model_type="florence2", auto_map={"AutoModel": "modeling_florence2.Florence2"})
    (folder / "model.safetensors").write_bytes(b"")


def cut_short(folder: Path) -> None:
    config_only(folder, model_type="blip")
    (folder / "model.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{}")


def without_tags(folder: Path) -> None:
    write_tagger(folder / "t")
    (folder / "t" / "model.onnx").rename(folder / "model.onnx")


def with_other_tags(folder: Path) -> None:
    write_tagger(folder / "t", tags=TAGS[1:])
    for path in (folder / "t").iterdir():
        path.rename(folder / path.name)


def with_odd_tags(folder: Path) -> None:
    with_other_tags(folder)
    (folder / "selected_tags.csv").write_text("tag\nred\n")


def with_odd_network(folder: Path) -> None:
    with_other_tags(folder)
    (folder / "model.onnx").write_bytes(b"no network")


def with_lost_weights(folder: Path) -> None:
    torch.manual_seed(0)
    model, processor = blip()
    kept = {name: tensor for name, tensor in model.state_dict().items() if "vision_model.encoder" not in name}
    model.save_pretrained(folder, state_dict=kept)
    processor.save_pretrained(folder)


# (function that fills a folder, part of the message that refuses it)
WRONG_FOLDERS = [
    (lambda folder: None, "no captioning model"),
    (lambda folder: config_only(folder, model_type="llava"), "model of type llava, which is not supported"),
    (
        lambda folder: config_only(folder, model_type="blip", architectures=["BlipForQuestionAnswering"]),
        "another task",
    ),
    (lambda folder: config_only(folder, model_type="blip"), "no weights"),
    (lambda folder: (folder / "config.json").write_text("{"), "config.json that can't be read"),
    (pickled, "can run programs when opened"),
    (programmed, "needs a program of its own"),
    (cut_short, "model.safetensors"),
    (without_tags, "no selected_tags.csv"),
    (with_other_tags, "does not fit"),
    (with_odd_tags, "selected_tags.csv of model can't be read"),
    (with_odd_network, "model.onnx of model can't be opened"),
    (with_lost_weights, "lacks"),
]


@contextlib.contextmanager
def hub(repository: str, folder: Path) -> Iterator[str]:
    """Serves one repository as the hub does; yields the address."""
    names, commit = sorted(path.name for path in folder.iterdir()), "0" * 40
    content = {
        "id": repository,
        "sha": commit,
        "siblings": [{"rfilename": name, "size": (folder / name).stat().st_size} for name in names],
    }
    file_list = [
        {"type": "file", "path": name, "oid": name, "size": (folder / name).stat().st_size} for name in names
    ]

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            name = path.rpartition("/")[2]
            body = (
                json.dumps(file_list if "/tree/" in path else content).encode()
                if path.startswith("/api/")
                else (folder / name).read_bytes()
            )
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{name}"')
            self.send_header("X-Repo-Commit", commit)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
