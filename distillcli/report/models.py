"""The models of a run, and what tables and pictures call them."""

from __future__ import annotations

from distillcli.runs.result import Measured, Result

# By their keys in result.json.
MODELS = {"teacher": "teacher", "student": "student", "baseline": "control (no teacher)"}
_ROLES = {"control": MODELS["baseline"]}  # where the word of the result is not the word for people


def trained_label(result: Result) -> str:
    """What the model that this run trained is called: its "student" may be a teacher, an assistant or a control."""
    role = result.role or "student"
    return _ROLES.get(role, role)


def model_of(result: Result, name: str) -> Measured | None:
    """``name``: a key of MODELS."""
    return {"teacher": result.teacher, "student": result.student, "baseline": result.baseline}[name]


def measured_models(result: Result) -> list[tuple[str, Measured]]:
    """The models of a run with their labels: teacher, assistants, student, peers, control, as far as they exist."""
    rows = [
        (MODELS["teacher"], result.teacher),
        *((f"assistant {assistant.model}", assistant) for assistant in result.chain),
        (trained_label(result), result.student),
        *((f"peer {peer.model}", peer) for peer in result.peers),
        (MODELS["baseline"], result.baseline),
    ]
    return [(label, model) for label, model in rows if model is not None]
