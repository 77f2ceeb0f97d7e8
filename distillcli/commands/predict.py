"""``distill predict``: the most likely classes of images, printed as they are found."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterator
from pathlib import Path

from distillcli.commands.checkpoint_data import surroundings
from distillcli.config.job import Job
from distillcli.config.schema import PredictConfig
from distillcli.errors import UserError
from distillcli.report.answers import LINES, csv_header
from distillcli.report.console import say, warn
from distillcli.report.counting import counting
from distillcli.sources.folder import DiskTree


def run(config: PredictConfig, job: Job) -> None:
    """Print a line for each image. Raises UserError at the end when some could not be read."""
    what, given = config.checkpoint, config.input
    assert what is not None  # the checks of the config refuse None
    assert given is not None
    listed = None if given == "-" else list_images(given)
    around = surroundings(what)

    from distillcli.distillation.predicting import open_predictor, predict
    from distillcli.runtime import start

    left_out = 0

    def unreadable(error: UserError) -> None:
        nonlocal left_out
        left_out += 1
        warn(f"{error}; left out")

    with start(config.trainer) as runtime:
        predictor = open_predictor(what, around.run, around.trained, runtime)
        line = LINES[config.format]
        if config.format == "csv":
            say(csv_header(min(config.topk, len(predictor.classes))))
        with counting("images", None if listed is None else len(listed)) as counted:
            paths = _from_stdin() if listed is None else listed
            for answers in predict(predictor, config, paths, unreadable):
                for answer in answers:
                    say(line(answer))
                counted(len(answers))
                runtime.obey_stop()
    if left_out:
        images = "image" if left_out == 1 else "images"
        raise UserError(f"input={given}: {left_out:,} {images} could not be read; the answers of the others are above")


def list_images(given: str) -> list[str]:
    """The paths that ``input=given`` names, sorted: of a folder all images below it. Raises UserError for none."""
    path = Path(given)
    if path.is_dir():
        found = [str(path / name) for name, _ in DiskTree(path).images_below("")]
        why = "holds no images"
    elif path.exists():
        return [given]
    else:
        names = glob.glob(given, recursive=True)  # noqa: PTH207 - what is typed may be absolute
        found = sorted(name for name in names if not Path(name).is_dir())
        why = "no such file, and as a glob it matches none"
    if not found:
        raise UserError(f"input={given}: {why}; name an image, a folder, a glob such as 'photos/**/*.jpg', or -")
    return found


def _from_stdin() -> Iterator[str]:
    return (line.rstrip("\n") for line in sys.stdin if line.strip())
