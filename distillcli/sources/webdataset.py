"""WebDataset shards: a folder of tars in which the files of a sample have the same name up to the first dot.

    train-0000.tar ...    000017.jpg and 000017.cls, or 000017.json with a label (class, target)
    val-0000.tar ...      also validation or valid; test-0000.tar ...

The tars are indexed once and read in any order by :mod:`distillcli.sources.archive`: no package is needed, and images
are shuffled as in any other data set. Without val shards, ``dataset.val_fraction`` of each class is held out. Numbered
classes are ordered by number; ``dataset.class_map`` names them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from distillcli.config.schema import DatasetConfig
from distillcli.errors import UserError
from distillcli.sources.archive import Member, member_images, members_of
from distillcli.sources.decode import show_path
from distillcli.sources.folder import folder_root
from distillcli.sources.image_names import image_extensions
from distillcli.sources.label_files import LABEL_COLUMNS, map_classes
from distillcli.sources.listing import listed_source, named_listings
from distillcli.sources.source import Source
from distillcli.sources.tree import part_of, quoted_names

_SHARDS = "expected train-0000.tar ..., and perhaps val-*.tar and test-*.tar"


def open_webdataset(config: DatasetConfig) -> Source:
    """The samples in the shards of ``config.root``. Raises UserError for samples without one image and one label."""
    root = folder_root(config, _SHARDS)
    members: dict[str, Member] = {}
    labels: dict[str, dict[str, str]] = {}
    for shard in sorted(root.glob("*.tar")):
        images = _samples(shard)
        members |= {name: image for name, (image, _) in images.items()}
        labels.setdefault(_part(shard), {}).update({name: label for name, (_, label) in images.items()})
    if "train" not in labels:
        raise UserError(f"dataset.root={show_path(root)}: has no training shards; {_SHARDS}")
    parts = named_listings(show_path(root), labels, {name: member.size for name, member in members.items()})
    if config.class_map:
        parts = map_classes(Path(config.class_map), parts)
    return listed_source(
        "webdataset", root.resolve().name, show_path(root), parts, partial(member_images, members), config
    )


def _part(shard: Path) -> str:
    """``imagenet-train-0001.tar`` belongs to the train part."""
    parts = {part for word in re.split(r"[^a-z]+", shard.stem.lower()) if (part := part_of(word)) is not None}
    if len(parts) != 1:
        raise UserError(f"{show_path(shard)}: the name must say which part it belongs to; {_SHARDS}")
    return parts.pop()


def _samples(shard: Path) -> dict[str, tuple[Member, str]]:
    """``SHARD/PATH`` of each image -> image and label."""
    files: dict[str, dict[str, Member]] = {}
    for member in members_of(shard).values():
        folder, slash, file = member.name.rpartition("/")
        key, _, extension = file.partition(".")
        if key:  # empty for hidden files
            files.setdefault(f"{folder}{slash}{key}", {})[extension.lower()] = member
    found = {}
    for key, sample in files.items():
        images = [member for extension, member in sample.items() if f".{extension}" in image_extensions()]
        if len(images) != 1:
            problem = "has no image" if not images else f"has {len(images)} images"
            raise UserError(
                f"{show_path(shard)}: sample {key!r} {problem}, only {quoted_names(sorted(sample))}; it needs one"
                f"{_dots(key, sample)}"
            )
        found[f"{shard.name}/{images[0].name}"] = (images[0], _label(shard, key, sample))
    return found


def _dots(key: str, sample: Iterable[str]) -> str:
    """What is wrong where names have dots of their own."""
    ending = next((ending for ending in sorted(sample) if "." in ending), None)
    if ending is None:
        return ""
    return f" (a name ends at its first dot, so {f'{key}.{ending}'!r} is the .{ending} of {key!r}; rename such files)"


def _label(shard: Path, key: str, sample: dict[str, Member]) -> str:
    where = f"{show_path(shard)}: sample {key!r}"
    if "cls" in sample:
        label = sample["cls"].content().decode("utf-8", "replace").strip()
    elif "json" in sample:
        try:
            content = json.loads(sample["json"].content())
        except ValueError as error:
            raise UserError(f"{where}: its .json is not JSON ({error}); correct it") from error
        named = [name for name in ("cls", *LABEL_COLUMNS) if isinstance(content, dict) and name in content]
        if len(named) > 1:
            raise UserError(f"{where}: {quoted_names(named)} of its .json could each be the label; keep one")
        if len(named) != 1 or isinstance(content[named[0]], (bool, float, list, dict)):
            raise UserError(
                f"{where}: its .json needs one label, a number or text, as {', '.join(('cls', *LABEL_COLUMNS))}"
            )
        label = str(content[named[0]]).strip()
    else:
        raise UserError(
            f"{where} has no label in a .cls or .json file, only {quoted_names(sorted(sample))}; add one"
            f"{_dots(key, sample)}"
        )
    if not label:
        raise UserError(f"{where}: its label is empty; correct it")
    return label
