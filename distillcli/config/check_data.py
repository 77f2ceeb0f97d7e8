"""Checks of the groups ``dataset`` and ``augment``.

Every refusal is a UserError of one line: key, value, fix.
"""

from __future__ import annotations

from pathlib import Path

from distillcli.config.datasets import DATASETS, known_dataset
from distillcli.config.ranges import at_least, check_ascending, check_existing, check_share, one_of
from distillcli.config.schema import AugmentConfig, DatasetConfig
from distillcli.errors import UserError

POLICIES = ("none", "randaugment", "trivial", "autoaugment_cifar")
ON_ERROR = ("raise", "skip")


def check_dataset(config: DatasetConfig) -> None:
    known = known_dataset(config.name)
    at_least("dataset.image_size", config.image_size, 8)
    at_least("dataset.channels", config.channels, 1)
    if config.channels not in (1, 3) and not known.any_channels:
        readers = " or ".join(f"dataset={name}" for name, other in DATASETS.items() if other.any_channels)
        raise UserError(
            f"dataset.channels={config.channels}: dataset={config.name} has images of 1 or 3 channels; for other "
            f"numbers use {readers}"
        )
    if not 0 <= config.val_fraction < 1:
        raise UserError(
            f"dataset.val_fraction={config.val_fraction}: must be at least 0 and below 1, e.g. 0.1; 0 trains on all"
        )
    if not 0 < config.crop_fraction <= 1:
        raise UserError(f"dataset.crop_fraction={config.crop_fraction}: must be above 0 and at most 1")
    check_share("dataset.labelled", config.labelled)
    check_share("dataset.label_noise", config.label_noise)
    one_of("dataset.on_error", config.on_error, ON_ERROR)
    at_least("dataset.split_seed", config.split_seed, 0)
    at_least("dataset.memory_gb", config.memory_gb, 0)
    at_least("dataset.classes", config.classes, 2)
    at_least("dataset.samples", config.samples, 2)
    for key, path in (("root", config.root), ("labels", config.labels), ("class_map", config.class_map)):
        if path is not None and key in known.keys and (known.local or key != "root"):
            check_existing(f"dataset.{key}", path)
    if config.name == "folder":
        _check_image_folder(config)


def _check_image_folder(config: DatasetConfig) -> None:
    root = config.root
    layout = "expected ROOT/train/CLASS/*.jpg with ROOT/val/CLASS/*.jpg, or ROOT/CLASS/*.jpg"
    if root is None:
        raise UserError(f"dataset.root is missing: dataset=folder needs dataset.root=PATH; {layout}")
    if not Path(root).is_dir():
        raise UserError(f"dataset.root={root}: is a file, not a folder; {layout}")
    if config.labels is None and not any(entry.is_dir() for entry in Path(root).iterdir()):
        raise UserError(f"dataset.root={root}: has no class folders; {layout}, or dataset.labels=FILE")


def check_augment(config: AugmentConfig) -> None:
    for key in ("flip", "erase", "mix_probability"):
        check_share(f"augment.{key}", getattr(config, key))
    for key in ("crop_area", "crop_ratio", "zoom"):
        check_ascending(f"augment.{key}", getattr(config, key))
    if config.crop_area[1] > 1:
        raise UserError(f"augment.crop_area={list(config.crop_area)}: must be fractions of the image area, at most 1")
    shares = ("pad", "translate", "brightness", "contrast", "saturation")
    for key in (*shares, "rotate", "shear", "hue", "mixup", "cutmix"):
        at_least(f"augment.{key}", getattr(config, key), 0)
    for key in shares:
        check_share(f"augment.{key}", getattr(config, key))
    if config.shear >= 90:
        raise UserError(f"augment.shear={config.shear}: must be below 90 degrees")
    if config.hue > 0.5:
        raise UserError(f"augment.hue={config.hue}: must be at most 0.5, half the colour circle")
    one_of("augment.policy", config.policy, POLICIES)
    at_least("augment.policy_ops", config.policy_ops, 1)
    at_least("augment.repeats", config.repeats, 1)
    if not 0 <= config.policy_magnitude <= 30:
        raise UserError(f"augment.policy_magnitude={config.policy_magnitude}: must be in [0, 30]; 9 is usual")


def check_colours(config: AugmentConfig, channels: int) -> None:
    """Saturation, hue and the policies are defined for RGB images, and leave grayscale images alone."""
    if channels in (1, 3):
        return
    for key, off in (("saturation", 0.0), ("hue", 0.0), ("policy", "none")):
        if getattr(config, key) != off:
            raise UserError(
                f"augment.{key}={getattr(config, key)}: needs 1 or 3 channels, but dataset.channels={channels}; "
                f"use augment.{key}={off}"
            )
