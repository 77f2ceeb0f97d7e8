"""The commands, by the verb that is typed. Imports nothing: help and completion answer at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    module: str  # holds run(config, job) if there is a primary config, else run(arguments)
    summary: str
    primary: str | None  # the primary config of a Hydra command
    examples: tuple[str, ...]
    usage: str = ""


COMMANDS = {
    "train": Command(
        "distillcli.commands.train",
        "train a small student to imitate a large teacher",
        "train",
        (
            "distill train",
            "distill train experiment=resnet50_to_mobilenet",
            "distill train teacher=resnet18 student.name=mobilenetv3_small_050 dataset=folder dataset.root=PATH",
            "distill train -m distill.temperature=1,2,4,8",
            "distill train resume=runs/distill/latest",
        ),
        "[experiment=NAME] [group=option ...] [key=value ...] [-m]",
    ),
    "eval": Command(
        "distillcli.commands.evaluate",
        "measure the accuracy, calibration, teacher agreement and cost of a model",
        "eval",
        (
            "distill eval checkpoint=runs/distill/latest",
            "distill eval checkpoint=runs/distill/latest dataset=folder dataset.root=PATH",
            "distill eval checkpoint=runs/distill/latest format=json",
        ),
        "checkpoint=WHAT [dataset=NAME] [key=value ...]",
    ),
    "export": Command(
        "distillcli.commands.export",
        "write a model in a format for deployment, and check the file",
        "export",
        (
            "distill export checkpoint=runs/distill/latest",
            "distill export checkpoint=runs/distill/latest epoch=best preprocess=true softmax=true",
            "distill export checkpoint=runs/distill/latest format=timm out=deployed",
        ),
        "checkpoint=WHAT [format=NAME] [key=value ...]",
    ),
    "predict": Command(
        "distillcli.commands.predict",
        "name the most likely classes of images",
        "predict",
        (
            "distill predict checkpoint=runs/distill/latest input=photo.jpg",
            "distill predict checkpoint=model.onnx input=photos topk=1 format=csv > answers.csv",
            "find photos -name '*.jpg' | distill predict checkpoint=runs/distill/latest input=- format=jsonl",
        ),
        "checkpoint=WHAT input=PATH|GLOB|- [format=table|jsonl|csv] [topk=5] [key=value ...]",
    ),
    "bench": Command(
        "distillcli.commands.bench",
        "time the parts of a training step",
        None,
        (
            "distill bench",
            "distill bench experiment=resnet50_to_mobilenet trainer.batch_size=128",
            "distill bench dataset=folder dataset.root=PATH --json",
        ),
        "[experiment=NAME] [group=option ...] [key=value ...] [--json] [--config-dir DIR]",
    ),
    "show": Command(
        "distillcli.commands.show",
        "list what can be chosen and past runs, or draw augmented views",
        None,
        (
            "distill show experiments",
            "distill show terms",
            "distill show keys optimizer",
            "distill show models 'mobilenet*'",
            "distill show runs",
            "distill show views experiment=resnet50_to_mobilenet augment=randaugment",
        ),
        "experiments|teachers|students|datasets|terms|runs|models|keys [PATTERN] | views [group=option] [key=value]",
    ),
    "runs": Command(
        "distillcli.commands.runs",
        "list past runs, look at one, delete some, free disk space",
        None,
        (
            "distill runs ls",
            "distill runs ls resnet50 state=ok sort=top1",
            "distill runs show runs/distill/latest",
            "distill runs rm runs/distill/2026-01-31_12-00-00",
            "distill runs prune all",
        ),
        "ls [PATTERN] [state=STATE] [sort=changed|top1|size|run] [runs=DIR] [--json] | show RUN | rm RUN ... | "
        "prune [RUN ... | all] [runs=DIR]",
    ),
    "compare": Command(
        "distillcli.commands.compare",
        "compare runs, sweeps or experiments: seeds together, what is beyond chance, accuracy against cost",
        None,
        (
            "distill compare runs/sweeps/2026-01-31_12-00-00",
            "distill compare runs/kd runs/dkd out=comparison",
            "distill compare runs/distill --json",
        ),
        "RUN [RUN ...] [out=FOLDER] [--json]",
    ),
    "configs": Command(
        "distillcli.commands.configs",
        "list the shipped configs, copy one for editing, print the JSON Schema of all keys",
        None,
        (
            "distill configs ls",
            "distill configs cp distill/kd my_configs",
            "distill configs schema train > schema.json",
        ),
        "ls | cp NAME DIR | schema [COMMAND]",
    ),
    "cache": Command(
        "distillcli.commands.cache",
        "manage cached teacher outputs: list, verify, delete",
        None,
        ("distill cache ls", "distill cache verify runs/distill/latest", "distill cache clear all"),
        "ls [DIR] | verify RUN | clear NAME|all [DIR]",
    ),
    "doctor": Command(
        "distillcli.commands.doctor", "check versions, devices, extras, disk and folders", None, ("distill doctor",)
    ),
    "completion": Command(
        "distillcli.commands.completion",
        "print a completion script for your shell",
        None,
        ('eval "$(distill completion bash)"', "distill completion fish | source"),
        "bash|zsh|fish",
    ),
}
