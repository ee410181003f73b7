"""Precomputation of latents and text embeddings, from the cache on disk where it has them.

The VAE and the text encoders are loaded only when something is missing, and leave memory with the end of each
call.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from trainer.config import TrainConfig
from trainer.dataset.augmentations import (
    Augmentation,
    augmentations_of,
    mask_of,
    mask_weights,
)
from trainer.dataset.buckets import Placement, crop_notice, small_buckets_notice
from trainer.dataset.caption_rules import CaptionRules
from trainer.dataset.folder import mask_file
from trainer.dataset.manifest import Item
from trainer.dataset.pictures import open_picture
from trainer.errors import DatasetError
from trainer.prompt_syntax import prompt_notes
from trainer.runs.commands import CommandInbox
from trainer.runs.inputs import Inputs, listed, open_inputs
from trainer.runs.run import Run
from trainer.sdxl.base import Base
from trainer.sdxl.latents import encode_image, to_pixels
from trainer.sdxl.protocols import Tokenizer, Vae
from trainer.sdxl.text import WINDOW, Conditioning, PromptEncoding, encode, truncated_tokens
from trainer.training.batches import Batches
from trainer.training.examples import LatentDataset, TrainingExample, placements
from trainer.training.feature_cache import FeatureCache, Latents, MaskKind
from trainer.training.prefetch import BackgroundWriter, prefetch
from trainer.training.preflight import check_masks
from trainer.training.samples import NumberedConfigs, sample_prompts_of
from trainer.training.text_conditioning import (
    MAX_CACHED_PROMPTS,
    TextConditioner,
    TextModels,
    caption_encoding,
    sample_encoding,
    training_captions,
)

_HIDDEN = (
    "nothing is trained from {names}, where the mask is black in the whole trained area; paint the parts to train "
    "white, or remove the mask or the picture"
)
_UNUSED_MASKS = "the mask files of {names} are not used, because mask is {mask}; set mask to file to train on their white areas"
_MAX_TRUNCATED, _SHOWN_END = 20, 60  # captions reported one by one; characters at each side of a long end
_ENCODERS_STAY = (
    f"the captions have more than {MAX_CACHED_PROMPTS} variants, so the text encoders stay in memory "
    "and encode them step by step"
)


@dataclass(frozen=True)
class _Prepared:
    """An augmentation of an image: its cached latents, or else the image to encode, and its mask."""

    augmentation: Augmentation
    source: Latents | Image.Image
    mask: torch.Tensor | None  # (1, 1, H/8, W/8) in [0, 1]


@dataclass(frozen=True)
class FeatureExtractor:
    """Precomputes features for one training; a stop command ends it early, with the features so far."""

    run: Run
    config: TrainConfig
    base: Base
    cache: FeatureCache
    device: torch.device
    inbox: CommandInbox
    inputs: Inputs

    def latents(self, items: tuple[Item, ...]) -> LatentDataset:
        """Returns the posteriors of all images in all their augmentations.

        Images that can't be read are left out, with a `problem` event each.

        Raises:
            DatasetError: no image is left, or none has a mask where masks are set.
        """
        if not self.inputs.is_continued:  # later, the cache has the masks
            check_masks(self.config, items)
        encoder = _LatentEncoder(self.base, self.device, self.cache.tile)
        planned = placements(self.config, self.base, items)
        placed = [placement for _, placement in planned[: len(items)]]
        notice = crop_notice([item.name for item in items], placed)
        if notice:
            self.run.emit("problem", message=notice)
        buckets = [(placement.bucket, item.repeats) for item, placement in planned]
        notice = small_buckets_notice(buckets, self.config.batch)
        if notice:
            self.run.emit("problem", message=notice)
        result: list[tuple[Item, tuple[TrainingExample, ...]]] = []
        prepared = prefetch(lambda pair: self._prepare(*pair), planned)
        with contextlib.closing(prepared), BackgroundWriter() as writer:
            for number, ((item, _), future) in enumerate(prepared, start=1):
                if self.inbox.stop_requested():
                    break
                examples = self._examples(item, future, encoder, writer)
                if examples is None:
                    continue
                result.append((item, examples))
                self.run.emit("stage", stage="caching pictures", done=number, total=len(planned))
        if not result and not self.inbox.stop_requested():
            raise DatasetError("none of the pictures can be read any more; put them back and start again")
        hidden = [item.name for item, examples in result if all(map(_is_hidden, examples))]
        if hidden:
            self.run.emit("problem", message=_HIDDEN.format(names=listed(hidden)))
        readable = tuple(item for item, _ in result)
        return LatentDataset(readable, tuple(examples for _, examples in result), self.base.latent_scaling)

    def validation_latents(self, items: tuple[Item, ...]) -> LatentDataset:
        """Returns the posteriors of the validation images, each once and without augmentation."""
        if not items:
            return LatentDataset((), (), self.base.latent_scaling)
        plain = dataclasses.replace(
            self.config,
            mask="none",
            flip=False,
            random_crop=False,
            colour_jitter=0.0,
            resolutions=self.config.resolutions[:1],
            batch=1,
        )
        return dataclasses.replace(self, config=plain).latents(items)

    def text(self, prompts: set[str], encoding: PromptEncoding) -> dict[str, Conditioning]:
        """Returns the conditioning of each prompt."""
        models = TextModels(self.base, self.device)

        def compute(prompt: str) -> Conditioning:
            with torch.inference_mode():
                return encode([prompt], models.tokenizers, models.encoders, encoding)

        result = {}
        for number, prompt in enumerate(sorted(prompts), start=1):
            if self.inbox.stop_requested():
                break
            result[prompt] = self.cache.text(prompt, encoding, lambda prompt=prompt: compute(prompt))
            self.run.emit("stage", stage="caching captions", done=number, total=len(prompts))
        return result

    def _prepare(self, item: Item, placement: Placement) -> list[_Prepared]:
        """Reads what the cache has of an image, and the image and its mask where something is missing.

        Raises:
            DatasetError: the image or its mask has changed or can't be read.
            OSError: the image is missing.
        """
        image, mask, prepared = None, None, []
        digest = self._mask_digest(item)
        for augmentation in augmentations_of(self.config, item, placement):
            source: Latents | Image.Image | None = self.cache.load_latents(item, augmentation)
            if source is None:
                image = image or _open_unchanged(item)
                source = augmentation.apply(image)
            weights = None
            if digest:
                kind = MaskKind(digest, self.base.latent_factor, self.config.mask_outside)
                weights = self.cache.load_mask(kind, augmentation)
                if weights is None:
                    mask = mask or _open_mask(self.config, item, digest)
                    cells = mask_weights(mask, augmentation, cell=kind.cell, outside=kind.outside)
                    weights = self.cache.store_mask(kind, augmentation, torch.from_numpy(cells)[None, None])
            prepared.append(_Prepared(augmentation, source, weights))
        return prepared

    def _mask_digest(self, item: Item) -> str:
        """Returns the identity of an image's mask at the training's start; "" without a mask."""
        if self.config.mask == "none" or item.role == "class":
            return ""
        return f"alpha {item.digest}" if self.config.mask == "alpha" else self.inputs.mask_digest(item)

    def _examples(
        self, item: Item, future: Future[list[_Prepared]], encoder: _LatentEncoder, writer: BackgroundWriter
    ) -> tuple[TrainingExample, ...] | None:
        """Returns the examples of an image, or None, with a `problem` event, when it can't be read."""
        try:
            prepared = future.result()
        except DatasetError as error:
            self.run.emit("problem", message=str(error))
            return None
        except OSError:
            self.run.emit("problem", message=f"{item.name} is missing, so it is left out")
            return None
        examples = []
        for one in prepared:
            source, augmentation = one.source, one.augmentation
            latents = encoder.posterior(source) if isinstance(source, Image.Image) else source
            if latents is not source:
                writer.submit(self.cache.store_latents, item, augmentation, latents)
            examples.append(TrainingExample(item, augmentation, *latents, one.mask))
        return tuple(examples)


class _LatentEncoder:
    """The VAE's encoder, loaded when the first image is missing from the cache."""

    def __init__(self, base: Base, device: torch.device, tile: int) -> None:
        self.base, self.device, self.tile = base, device, tile
        self.vae: Vae | None = None

    def posterior(self, image: Image.Image) -> Latents:
        """Returns mean and log-variance of an image."""
        if self.vae is None:
            self.vae = self.base.vae(self.device)
        return encode_image(self.vae, to_pixels(image), self.tile)


def _open_unchanged(item: Item) -> Image.Image:
    """Opens an image. Raises DatasetError when its bytes are not those of the manifest."""
    if hashlib.sha256(Path(item.path).read_bytes()).hexdigest() != item.digest:
        raise DatasetError(
            f"{item.name} has changed since the training was set up, so it is left out; start a new training"
        )
    return open_picture(Path(item.path))


def _is_hidden(example: TrainingExample) -> bool:
    """Returns whether an example's mask has no weight anywhere."""
    return example.mask is not None and not bool(example.mask.any())


def _open_mask(config: TrainConfig, item: Item, digest: str) -> Image.Image:
    """Opens an image's mask; an opaque image is white everywhere.

    Args:
        digest: SHA-256 of the mask file at the training's start, or `alpha` and that of the image.

    Raises:
        DatasetError: the mask or the image has changed or can't be used.
    """
    path = Path(item.path) if config.mask == "alpha" else mask_file(Path(item.path))
    if path is None or hashlib.sha256(path.read_bytes()).hexdigest() != digest.removeprefix("alpha "):
        raise DatasetError(
            f"the mask of {item.name} has changed since the training began and is not in the cache, so the "
            "picture is left out; start a new training"
        )
    try:
        return mask_of(config, item) or Image.new("L", (item.width, item.height), 255)
    except DatasetError as error:
        raise DatasetError(f"{item.name} is left out: {error}") from None


def _report_truncated(
    run: Run, captions: dict[str, str], tokenizer: Tokenizer, encoding: PromptEncoding
) -> None:
    """Emits a `problem` event for each caption that is too long, up to _MAX_TRUNCATED, and one for the others.

    It is called in every run, with cached captions and with trained text encoders too.

    Args:
        captions: name of a picture, by its caption.
    """
    cut = {caption: truncated_tokens(caption, tokenizer, encoding) for caption in captions}
    long = [caption for caption, (count, _) in cut.items() if count]
    for caption in long[:_MAX_TRUNCATED]:
        count, end = cut[caption]
        windows = encoding.windows + -(-count // WINDOW)
        shown = end if len(end) <= 2 * _SHOWN_END else f"{end[:_SHOWN_END]} … {end[-_SHOWN_END:]}"
        run.emit(
            "problem",
            message=f"the caption of {captions[caption]} is {count} tokens too long; its end is not read: "
            f"“{shown}” (caption_windows {windows} reads it)",
        )
    if len(long) > _MAX_TRUNCATED:
        run.emit(
            "problem", message=f"{len(long) - _MAX_TRUNCATED} more captions are too long for caption_windows"
        )


def feature_extractor(
    run: Run, base: Base, device: torch.device, inbox: CommandInbox, tile: int
) -> FeatureExtractor:
    """Returns an extractor with the cache beside a run.

    Emits a `problem` about inputs that changed since the run began, and one about masks that are not used.

    Args:
        tile: px, side of the tiles in which larger images are encoded; 0 encodes them whole.
    """
    cache = FeatureCache(run.path.parent / ".cache", base.fingerprint, tile)
    config, inputs = run.config, open_inputs(run)
    unused = [item.name for item in run.manifest.items if item.role == "train" and inputs.mask_digest(item)]
    if unused and config.mask != "file":
        run.emit("problem", message=_UNUSED_MASKS.format(names=listed(unused), mask=config.mask))
    return FeatureExtractor(run, config, base, cache, device, inbox, inputs)


@dataclass(frozen=True)
class UsedCaptions:
    """The captions that a training needs: of its first `positions` batches, and of its validation images."""

    rules: CaptionRules
    batches: Batches
    positions: int
    validation: LatentDataset

    def training(self) -> set[str] | None:
        """Returns the captions of the batches, or None when there are more than MAX_CACHED_PROMPTS."""
        return training_captions(self.rules, self.batches, self.positions)

    def names(self) -> dict[str, str]:
        """Returns the name of a picture by its caption, without random variation, for all captions."""
        items = (*self.batches.items, *self.validation.items)
        return {caption: item.name for item in reversed(items) for caption in self.rules.texts(item)}

    def fixed(self) -> set[str]:
        """Returns the captions of the validation images, and the empty one of caption dropout."""
        return {"", *(self.rules.fixed(item) for item in self.validation.items)}


def prepare_text(
    extractor: FeatureExtractor, captions: UsedCaptions, samplings: NumberedConfigs
) -> tuple[TextConditioner, TextConditioner]:
    """Returns the text conditioners of the training's captions and of its sample prompts.

    Without trained text encoders, all prompts are precomputed where they are few enough, and the encoders
    leave memory.
    """
    config, base = extractor.config, extractor.base
    sample_prompts = sample_prompts_of(samplings)
    for note in prompt_notes(config.sample_prompts):
        extractor.run.emit("problem", message=f"sample prompts: {note}")
    encoding = caption_encoding(config)
    _report_truncated(extractor.run, captions.names(), base.tokenizers()[0], encoding)
    encoding_of_samples = sample_encoding(config, sample_prompts, base.tokenizers()[0])
    is_trained = config.train_text_encoder_1 or config.train_text_encoder_2
    cached: dict[str, Conditioning] = {}
    cached_samples: dict[str, Conditioning] = {}
    needs_encoders = is_trained
    if not is_trained and captions.batches.items:
        used = captions.training()
        needs_encoders = used is None
        cached = extractor.text(captions.fixed() | (used or set()), encoding)
        cached_samples = extractor.text(sample_prompts, encoding_of_samples)
        if used is None:
            extractor.run.emit("problem", message=_ENCODERS_STAY)
    models = TextModels(base, extractor.device) if needs_encoders else None
    return (
        TextConditioner(cached, models, encoding, is_trained=is_trained),
        TextConditioner(cached_samples, models, encoding_of_samples, is_trained=is_trained),
    )
