"""``student/README.md``: the model card that Hugging Face shows for the exported student, and people read anywhere.

Metadata as described in the hub's documentation of model cards. A licence is left for a person to choose: neither the
data's nor that of a teacher's weights is known here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from distillcli.report.blocks import Gallery, Picture
from distillcli.report.format import clean
from distillcli.report.markdown import escaped, fenced, markdown_block
from distillcli.report.sections import own_imports, report_sections, verdict_block
from distillcli.report.sentences import gap_sentence
from distillcli.runs.folder import write_text
from distillcli.runs.result import DatasetFacts, Measured, Result

LICENCE = """\
# license: CHOOSE ONE. The data, and weights that the student or its teacher started from, may ask for some.
"""
# Sections of the report that speak of the run's own folder.
_LOCAL = ("Use the student", "Environment")


def write_hub_card(folder: Path, result: Result) -> None:
    """Write the card of the student of a run folder, if it has been exported."""
    if (folder / "student").is_dir():
        write_text(folder / "student" / "README.md", hub_card(result, folder))


def hub_card(result: Result, folder: Path) -> str:
    student = result.student or Measured()
    parts = [
        f"# {escaped(result.name or student.model or 'student')}",
        _summary(result),
        *_verdict(result),
        "## Use",
        fenced(_use(result, folder), "python"),
        "Replace `OWNER/NAME` by the repository, or the whole string by `local-dir:` and the path of this folder."
        + (" The class names are `model.pretrained_cfg['label_names']`." if _classifies(result) else ""),
        *_evidence(result, folder),
        "## Licence and limits",
        "**To be completed by a person**: the licence of the weights (see the comment in the metadata above), what the "
        "model is meant for, and where it must not be used. The numbers above hold for images like those they were "
        "measured on, and for no others.",
    ]
    return f"---\n{LICENCE}{_metadata(result)}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def _summary(result: Result) -> str:
    student, teacher = result.student or Measured(), result.teacher
    taught = f", distilled from {escaped(teacher.model)}" if teacher is not None and teacher.model else ""
    kind = "An image classifier" if _classifies(result) else "A model that makes embeddings of images"
    return f"{kind}{f' ({escaped(student.model)})' if student.model else ''}{taught}."


def _verdict(result: Result) -> list[str]:
    """What the report says above its first title."""
    block = verdict_block(result)
    return [] if block is None else [markdown_block(block), escaped(gap_sentence(result))]


def _classifies(result: Result) -> bool:
    return (result.dataset or DatasetFacts()).classes is not None


def _use(result: Result, folder: Path) -> str:
    answer = "probabilities = {}.softmax(-1)" if _classifies(result) else "embedding = {}"
    return "\n".join(
        [
            "import timm",
            *own_imports(folder),
            "model = timm.create_model('hf-hub:OWNER/NAME', pretrained=True).eval()",
            "config = timm.data.resolve_model_data_config(model)",
            "transform = timm.data.create_transform(**config)",
            f"{answer.format('model(transform(image).unsqueeze(0))')}  # image: a PIL image",
        ]
    )


def _evidence(result: Result, folder: Path) -> list[str]:
    """The sections of the run's report that mean something without its folder, as Markdown."""
    parts, title = [], ""
    for section in report_sections(result, folder):
        title = section.title or title
        if title and title not in _LOCAL:
            blocks = [markdown_block(block) for block in section.blocks if not isinstance(block, Picture | Gallery)]
            parts += [f"## {section.title}"] * bool(section.title and blocks) + blocks
    return parts


def _metadata(result: Result) -> str:
    student, data = result.student or Measured(), result.dataset or DatasetFacts()
    metrics = [
        {"type": "accuracy", "name": name, "value": round(value, 2)}
        for name, value in (("top-1 %", student.top1), ("top-5 %", student.top5))
        if value is not None
    ]
    name = clean(data.name or "unknown")
    measured: dict[str, Any] = {
        "task": {"type": "image-classification"},
        "dataset": {"name": name, "type": name, "split": result.evaluated_on},
        "metrics": metrics,
    }
    task = "image-classification" if _classifies(result) else "image-feature-extraction"
    content: dict[str, Any] = {
        "library_name": "timm",
        "pipeline_tag": task,
        "tags": [task, "timm", "knowledge-distillation", "distillcli"],
    }
    if metrics:
        content["model-index"] = [{"name": clean(result.name or "student"), "results": [measured]}]
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
