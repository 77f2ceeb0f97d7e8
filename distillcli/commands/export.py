"""``distill export``: a finished model in a format for deployment, checked in the runtime of that format."""

from __future__ import annotations

from distillcli.commands.checkpoint_data import open_images, surroundings
from distillcli.config.job import Job
from distillcli.config.schema import ExportConfig
from distillcli.report.console import print_grid, say, say_loading, sentence
from distillcli.report.format import byte_count, fixed, significant


def run(config: ExportConfig, job: Job) -> None:
    """Write the file, and print what it answers beside what the model does, and how to run it."""
    what = config.checkpoint
    assert what is not None  # the checks of the config refuse None
    around = surroundings(what)
    dataset, source = open_images(what, config.dataset, around)
    say_loading()

    from distillcli.distillation.exporting import export_model
    from distillcli.formats.formats import FORMATS
    from distillcli.runtime import start

    with start(config.trainer) as runtime:
        exported = export_model(config, around.run, dataset, source, runtime)
    check = exported.check
    sentence(
        f"{exported.path}, checked on {check.images:,} images of the {exported.part} part of {source.name}: within "
        f"{significant(check.bound)} of the largest answer",
        "bold",
    )
    found = [fixed(check.top1_of_file), fixed(check.agreement), significant(check.share, 2), byte_count(exported.size)]
    header = ["", "top-1\n%", "agreement\n%", "difference\nof largest", "size"]
    print_grid([header, ["PyTorch", fixed(check.top1), "", "", ""], [exported.path.name, *found]])
    if exported.temperature is not None:
        sentence(f"It answers with probabilities, the softmax at temperature {significant(exported.temperature)}.")
    say(f"to use it: {FORMATS[config.format].usage.format(path=exported.path)}")
