"""Captions in sentences by BLIP, BLIP-2 or Florence-2, with the model classes of transformers.

Code that is part of a model's repository is never executed (`trust_remote_code=False`).
"""

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
)  # prompts of Florence-2
_BEAMS = 3  # as in Florence-2's generation settings


def load_describer(captioner: Captioner, options: CaptionOptions) -> Describe:
    """Returns a function from pictures to sentences; equal pictures give equal sentences. Raises
    CaptionerError.
    """
    device = find_device()
    model, processor = _load(captioner, resolve_dtype("auto", device))
    model.to(device).eval()
    # BLIP's text decoder has 512 positions; the other models have more than any allowed `max_length`.
    positions = getattr(model.config.text_config, "max_position_embeddings", options.max_length + 1)
    max_tokens = min(options.max_length, positions - 1)
    prompt = _TASKS[options.detail] if captioner.kind == FLORENCE_2 else None

    def describe(pictures: list[Image.Image]) -> list[str]:
        prompts = {"text": [prompt] * len(pictures)} if prompt else {}
        try:
            inputs = processor(images=pictures, return_tensors="pt", **prompts).to(device, model.dtype)
            with torch.inference_mode():
                tokens = model.generate(
                    **inputs,
                    max_new_tokens=max_tokens,
                    num_beams=_BEAMS,
                    no_repeat_ngram_size=3,
                    do_sample=False,
                )
        except torch.OutOfMemoryError:
            raise CaptionerError("not enough memory on the device; use a smaller batch, such as 1") from None
        texts = [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]
        padding = processor.tokenizer.pad_token_id
        is_cut = [len(row) >= max_tokens and int(row[-1]) != padding for row in tokens]
        return [whole_sentences(text) if cut else text for text, cut in zip(texts, is_cut, strict=True)]

    return describe


def _load(captioner: Captioner, dtype: torch.dtype) -> tuple[Any, Any]:
    """Returns (model, processor) on the CPU. Raises CaptionerError."""
    import transformers

    # The progress bar of loading weights would be printed into the progress bar of captioning.
    transformers.utils.logging.disable_progress_bar()
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
        raise CaptionerError(f"not enough memory to load {name}; choose a smaller model") from None
    except Exception as error:  # transformers raises nearly anything for damaged or unusual files
        raise CaptionerError(
            f"{name} can't be loaded as {captioner.kind} ({type(error).__name__}); download it again"
        ) from error
    # Old files can lack buffers and tied names, which are created; a missing parameter would be random.
    missing = {weight for weight, _ in model.named_parameters()} & set(info["missing_keys"])
    if missing:
        raise CaptionerError(
            f"{name} lacks {len(missing)} weights of a {captioner.kind}; get the version for transformers"
        )
    return model, processor


def whole_sentences(text: str) -> str:
    """Returns a text without its incomplete last sentence; the whole text if no sentence is complete."""
    if text.endswith((".", "!", "?")):
        return text
    end = max(text.rfind(mark) for mark in (". ", "! ", "? "))
    return text[: end + 1] if end > 0 else text
