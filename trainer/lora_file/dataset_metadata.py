"""kohya's `ss_*` entries about pictures, buckets, captions and augmentation.

Names of folders and captions are written only where the settings ask for them (`save_captions`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import TrainConfig
from trainer.dataset.manifest import Item, Manifest

Size = tuple[int, int]


@dataclass(frozen=True)
class BucketedImage:
    """An image of a training with the (width, height) of its bucket in px."""

    item: Item
    bucket: Size


def dataset_entries(
    config: TrainConfig, manifest: Manifest, images: Sequence[BucketedImage], resolution: int
) -> dict[str, Any]:
    """Entries of `train_network.py` that hold for any dataset, by name without `ss_`.

    Args:
        images: every image, once for each resolution.
        resolution: side in px.
    """
    return {
        "num_reg_images": sum(item.repeats for item in manifest.items if item.role == "class"),
        "num_validation_images": len(manifest.validation_items),
        "resolution": f"({resolution}, {resolution})",
        "enable_bucket": True,
        "bucket_no_upscale": config.no_upscale,
        "min_bucket_reso": config.bucket_min or resolution // 2,
        "max_bucket_reso": config.bucket_max or resolution * 2,
        "bucket_info": json.dumps(bucket_info(images)),
        "cache_latents": True,
        "flip_aug": config.flip,
        "color_aug": config.colour_jitter > 0,
        "random_crop": config.random_crop,
        "face_crop_aug_range": None,
        "shuffle_caption": config.shuffle_tags,
        "keep_tokens": config.keep_tokens,
        "caption_dropout_rate": config.caption_dropout,
        "caption_dropout_every_n_epochs": 0,
        "caption_tag_dropout_rate": config.tag_dropout,
    }


def bucket_info(images: Iterable[BucketedImage]) -> dict[str, Any]:
    """Number of images of each bucket with repeats, and the mean difference of aspect ratios without them."""
    counts: Counter[Size] = Counter()
    errors = []
    for image in images:
        width, height = image.bucket
        counts[image.bucket] += image.item.repeats
        errors.append(abs(width / height - image.item.width / image.item.height))
    buckets = {
        str(number): {"resolution": list(bucket), "count": counts[bucket]}
        for number, bucket in enumerate(sorted(counts))
    }
    return {"buckets": buckets, "mean_img_ar_error": sum(errors) / len(errors) if errors else 0.0}


def caption_entries(config: TrainConfig, manifest: Manifest, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Entries with the names of folders and the tags of captions, by name without `ss_`.

    Tags are in lower case, as kohya counts them.

    Args:
        entries: the result of `dataset_entries`, of which `datasets` repeats some.
    """
    training = [item for item in manifest.items if item.role == "train"]
    subsets = _subsets(training)
    frequency: dict[str, Counter[str]] = {}
    for item in training:
        tags = [tag.strip().lower() for tag in item.caption.split(",") if tag.strip()]
        frequency.setdefault(Path(item.path).parent.name, Counter()).update(tags)
    dataset = {
        "is_dreambooth": True,
        "batch_size_per_device": config.batch,
        "num_train_images": sum(item.repeats for item in training),
        "num_reg_images": entries["num_reg_images"],
        "resolution": json.loads(entries["resolution"].replace("(", "[").replace(")", "]")),
        "enable_bucket": True,
        "min_bucket_reso": entries["min_bucket_reso"],
        "max_bucket_reso": entries["max_bucket_reso"],
        "tag_frequency": frequency,
        "bucket_info": json.loads(entries["bucket_info"]),
        "subsets": [
            {
                **subset,
                "image_dir": name,
                "class_tokens": None,
                "is_reg": is_class,
                "color_aug": entries["color_aug"],
                "flip_aug": entries["flip_aug"],
                "random_crop": entries["random_crop"],
                "shuffle_caption": entries["shuffle_caption"],
                "keep_tokens": entries["keep_tokens"],
                "enable_wildcard": config.wildcards,
                "caption_prefix": config.caption_prefix or None,
                "caption_suffix": config.caption_suffix or None,
            }
            for is_class, folders in ((False, subsets), (True, _subsets(_class_images(manifest))))
            for name, subset in folders.items()
        ],
    }
    return {
        "tag_frequency": json.dumps(frequency, ensure_ascii=False),
        "dataset_dirs": json.dumps(subsets, ensure_ascii=False),
        "reg_dataset_dirs": json.dumps(_subsets(_class_images(manifest)), ensure_ascii=False),
        "datasets": json.dumps([dataset], ensure_ascii=False),
    }


def _class_images(manifest: Manifest) -> list[Item]:
    return [item for item in manifest.items if item.role == "class"]


def _subsets(items: Iterable[Item]) -> dict[str, dict[str, int]]:
    """{folder: {n_repeats, img_count}}; further repeats in it are `folder (2)` and so on, as in kohya."""
    counts = Counter((Path(item.path).parent.name, item.repeats) for item in items)
    subsets: dict[str, dict[str, int]] = {}
    for (folder, repeats), count in counts.items():
        name, number = folder, 2
        while name in subsets:
            name, number = f"{folder} ({number})", number + 1
        subsets[name] = {"n_repeats": repeats, "img_count": count}
    return subsets
