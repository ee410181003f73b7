"""Sentences by BLIP, BLIP-2 or Florence-2, from the classes of transformers: a model's own programs are never run."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from trainer.captioning_config import DETAILS, CaptionOptions, Describe
from trainer.errors import CaptionerError
from trainer.hardware.device import find_device, resolve_dtype
from trainer.headers.captioner import BLIP, BLIP_2, FLORENCE_2, Captioner

_TASKS: dict[str, str] = dict(
    zip(DETAILS, ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>"), strict=True)
)
_BEAMS = 3  # what Florence-2's own settings say


def load_describer(captioner: Captioner, options: CaptionOptions) -> Describe:
    """Pictures to sentences; the same pictures give the same ones. Raises CaptionerError."""
    device = find_device()
    model, processor = _loaded(captioner, resolve_dtype("auto", device))
    model.to(device).eval()
    # BLIP has 512 places for tokens, the others more than can be asked for.
    longest = min(
        options.max_length,
        getattr(model.config.text_config, "max_position_embeddings", options.max_length + 1) - 1,
    )
    prompt = _TASKS[options.detail] if captioner.kind == FLORENCE_2 else None

    def describe(pictures: list[Image.Image]) -> list[str]:
        asked = {"text": [prompt] * len(pictures)} if prompt else {}
        try:
            inputs = processor(images=pictures, return_tensors="pt", **asked).to(device, model.dtype)
            with torch.inference_mode():
                written = model.generate(
                    **inputs,
                    max_new_tokens=longest,
                    num_beams=_BEAMS,
                    no_repeat_ngram_size=3,
                    do_sample=False,
                )
        except torch.OutOfMemoryError:
            raise CaptionerError(
                "the device's memory does not suffice; take a smaller batch, such as 1"
            ) from None
        texts = processor.batch_decode(written, skip_special_tokens=True)
        padding = processor.tokenizer.pad_token_id
        full = [len(row) >= longest and int(row[-1]) != padding for row in written]
        return [
            whole_sentences(text.strip()) if is_full else text.strip()
            for text, is_full in zip(texts, full, strict=True)
        ]

    return describe


def _loaded(captioner: Captioner, dtype: torch.dtype) -> tuple[Any, Any]:
    """(model, processor), on the CPU. Raises CaptionerError."""
    import transformers

    transformers.utils.logging.disable_progress_bar()  # of the weights; it would run through ours
    classes = {
        BLIP: (transformers.BlipForConditionalGeneration, transformers.BlipProcessor),
        BLIP_2: (transformers.Blip2ForConditionalGeneration, transformers.Blip2Processor),
        FLORENCE_2: (transformers.Florence2ForConditionalGeneration, transformers.Florence2Processor),
    }
    model_class, processor_class = classes[captioner.kind]
    name = captioner.name
    try:
        processor = processor_class.from_pretrained(
            captioner.path, local_files_only=True, trust_remote_code=False
        )
        model, info = model_class.from_pretrained(
            captioner.path,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except torch.OutOfMemoryError:
        raise CaptionerError(f"memory does not suffice to load {name}; take a smaller model") from None
    except Exception as error:  # damaged or odd files raise nearly anything
        raise CaptionerError(
            f"{name} can't be loaded as {captioner.kind} ({type(error).__name__}); download it again"
        ) from error
    # Buffers and tied names may be missing from old files; weights may not.
    missing = {weight for weight, _ in model.named_parameters()} & set(info["missing_keys"])
    if missing:
        raise CaptionerError(
            f"{name} lacks {len(missing)} weights of a {captioner.kind}; get it in the form of transformers"
        )
    return model, processor


def whole_sentences(text: str) -> str:
    """A text that was cut at its longest length, up to its last whole sentence; all of it when there is none."""
    if text.endswith((".", "!", "?")):
        return text
    end = max(text.rfind(mark) for mark in (". ", "! ", "? "))
    return text[: end + 1] if end > 0 else text
