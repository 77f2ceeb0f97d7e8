"""Few labels, or none: which are kept, what the terms make of the rest, and who learns from how much."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CPU, STEPS, Watch, open_tiny, setting, some_teacher, tiny
from torch.nn import functional

from distillcli.config.compose import compose
from distillcli.config.job import Job
from distillcli.config.schema import DatasetConfig, DistillConfig, ModelConfig
from distillcli.config.terms import KNOWN_TERMS, check_labels, trains_head
from distillcli.distillation.fits import fit_once
from distillcli.distillation.folders import Spent
from distillcli.distillation.plan import check_weights, make_plan
from distillcli.distillation.recipes import teacher_recipe
from distillcli.distillation.reopening import reopen_model
from distillcli.distillation.students import new_backbone
from distillcli.distillation.teaching import find_teacher
from distillcli.distillation.whole import distill
from distillcli.errors import UserError
from distillcli.formats.timm_folder import write as export
from distillcli.models.backbone import build, describe
from distillcli.models.weights import read_weights
from distillcli.runs.folder import read_metrics
from distillcli.runs.result import Measured, Result, top1_of
from distillcli.runtime import seed_everything
from distillcli.sources.labels import keep_labels
from distillcli.sources.open import open_source
from distillcli.sources.source import Source
from distillcli.teachers.frozen import describe_teacher, members_of, open_teacher, with_classes
from distillcli.terms.logit import cross_entropy
from distillcli.terms.objective import Objective
from distillcli.training.engine import fit
from distillcli.training.fit import Fit
from distillcli.training.state import merit
from distillcli.types import LOGITS_ONLY, Inputs, Taps
from distillcli.views.showing import Showing

# What a run ends with beside its numbers is tested elsewhere.
pytestmark = pytest.mark.usefixtures("bare_ending")


def digits(share: float, seed: int = 0, **options: Any) -> Source:
    return open_source(DatasetConfig(name="digits", image_size=32, labelled=share, split_seed=seed, **options))


# --- which labels are kept -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_each_class_keeps_its_share(share: float) -> None:
    whole, some = digits(1).train.labels, digits(share).train.labels
    kept = some >= 0
    assert (some[kept] == whole[kept]).all()
    assert set(some[~kept]) == {-1}
    of_class = np.bincount(whole)
    assert np.bincount(some[kept]).tolist() == [max(1, round(share * count)) for count in of_class]


def test_a_larger_share_keeps_what_a_smaller_one_kept() -> None:
    small, large = digits(0.1).train.labels >= 0, digits(0.3).train.labels >= 0
    assert (large | ~small).all()
    assert large.sum() > small.sum()


def test_the_labels_kept_are_part_of_the_data() -> None:
    sources = [digits(1), digits(0), digits(0.1), digits(0.1, seed=1), digits(0.2)]
    assert len({source.fingerprint for source in sources}) == len(sources)
    assert digits(0.1).fingerprint == sources[2].fingerprint
    assert not np.array_equal(sources[2].train.labels, sources[3].train.labels)
    for source in sources:
        assert (source.val.labelled, source.evaluation.labelled) == (200, 300)


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_wrong_labels_are_a_share_of_each_class_spread_over_the_others(share: float) -> None:
    right, wrong = digits(1), digits(1, label_noise=share)
    moved = wrong.train.labels != right.train.labels
    assert moved.mean() == pytest.approx(share, abs=0.04)
    pairs = np.zeros((10, 10), int)
    np.add.at(pairs, (right.train.labels[moved], wrong.train.labels[moved]), 1)
    assert (pairs.sum(axis=0) > 0).all()
    assert np.count_nonzero(pairs) > 55  # of 90 ways to be wrong
    for part in ("val", "test"):
        np.testing.assert_array_equal(wrong.parts[part].labels, right.parts[part].labels)
    assert any(f"{moved.sum():,} of 1,297 training labels are wrong on purpose" in note for note in wrong.notes)


def test_wrong_labels_follow_from_the_data_and_its_seed_alone() -> None:
    sources = [digits(1), digits(1, label_noise=0.4), digits(1, 1, label_noise=0.4), digits(1, label_noise=0.3)]
    assert len({source.fingerprint for source in sources}) == 4
    again, kept = digits(1, label_noise=0.4), digits(0.1, label_noise=0.4).train.labels
    np.testing.assert_array_equal(again.train.labels, sources[1].train.labels)
    np.testing.assert_array_equal(kept[kept >= 0], sources[1].train.labels[kept >= 0])
    np.testing.assert_array_equal(digits(0, label_noise=0.4).train.labels, -1)


def test_a_share_of_all_is_the_same_source_and_of_none_has_no_label() -> None:
    source = digits(1)
    assert keep_labels(source, 1, 0) is source
    assert digits(0).train.labelled == 0


def test_rows_without_a_label_stay_without() -> None:
    source = digits(0.2)
    again = keep_labels(source, 0.5, 3)
    assert set(np.flatnonzero(again.train.labels >= 0)) < set(np.flatnonzero(source.train.labels >= 0))


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_is_between_none_and_all(share: float) -> None:
    with pytest.raises(UserError, match=r"dataset\.labelled=.*: must be in \[0, 1\]"):
        compose("train", [f"dataset.labelled={share}"])


# --- terms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_mean_of_the_labelled_rows(smoothing: float) -> None:
    logits, targets = torch.randn(6, 4, requires_grad=True), torch.tensor([0, -1, 3, -1, -1, 1])
    value = cross_entropy(logits, targets, smoothing)
    labelled = targets >= 0
    wanted = functional.cross_entropy(logits[labelled], targets[labelled], label_smoothing=smoothing)
    assert value.item() == pytest.approx(wanted.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(value, logits)
    assert gradient[~labelled].abs().max() == 0
    assert gradient[labelled].abs().min() > 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_batch_without_labels_teaches_nothing(smoothing: float) -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    value = cross_entropy(logits, torch.full((3,), -1), smoothing)
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.item() == 0
    assert torch.equal(gradient, torch.zeros(3, 4))


def test_a_term_that_needs_the_class_refuses_unlabelled_images() -> None:
    asking = [name for name, term in KNOWN_TERMS.items() if term.needs_labels]
    assert {"dkd", "nkd", "wsld", "tfkd"} <= set(asking)
    assert not {"ce", "kl", "embedding", "rkd", "hard"} & set(asking)
    for name in asking:
        config = DistillConfig(name="x", alpha=0.5, terms={name: {}})
        check_labels(config, 1297, 1297)
        with pytest.raises(UserError, match=rf"distill\.terms\.{name}: .* 648 training images .* dataset\.labelled=1"):
            check_labels(config, 649, 1297)
        check_labels(dataclasses.replace(config, terms={name: {"weight": 0.0}}), 649, 1297)


def test_without_labels_a_term_of_labels_is_refused() -> None:
    config = DistillConfig(name="kd", alpha=0.9, terms={"ce": {}, "kl": {}})
    with pytest.raises(UserError, match=r"distill\.terms\.ce: .* no training image has one; set distill\.alpha=1"):
        check_labels(config, 0, 1297)
    check_labels(dataclasses.replace(config, alpha=1.0), 0, 1297)
    check_labels(dataclasses.replace(config, alpha=None, terms={"ce": {"weight": 0.0}, "kl": {}}), 0, 1297)
    check_labels(config, 1, 1297)


# --- the budget ----------------------------------------------------------------------------------------------------


def test_labelled_images_come_as_often_as_it_takes() -> None:
    config = tiny("dataset.labelled=0.4")  # 24 of 64 images
    data = open_tiny(config)
    some = data.train.labelled()
    shown = Showing(some, config.augment, 0, 8)
    assert shown.steps_per_epoch == Showing(data.train, config.augment, 0, 8).steps_per_epoch == 8
    epochs = [[parts[0] for parts in shown.epoch(epoch)] for epoch in (1, 2, 3)]
    assert [len(epoch) for epoch in epochs] == [8, 8, 8]
    batches = [batch for epoch in epochs for batch in epoch]
    assert all((batch.targets >= 0).all() for batch in batches)
    labelled = set(some.shown.tolist())
    assert len(labelled) == data.source.train.labelled == 24
    views = [int(batch.view[0]) for batch in batches]
    assert all((batch.view == view).all() for batch, view in zip(batches, views, strict=True))
    assert views == [1 + step // 3 for step in range(24)]  # passes go on across the ends of epochs
    for view in range(1, 9):
        seen = [int(position) for batch in batches if batch.view[0] == view for position in batch.index]
        assert sorted(seen) == sorted(labelled)
    again = [parts[0] for parts in shown.epoch(2, first_step=5)]
    assert all(torch.equal(one.images, two.images) for one, two in zip(again, epochs[1][5:], strict=True))


def test_with_all_labels_nothing_changes() -> None:
    data = open_tiny(tiny())
    one, two = (list(Showing(loader, tiny().augment, 0, 16).epoch(2)) for loader in (data.train, data.train.labelled()))
    assert all(torch.equal(a[0].images, b[0].images) for a, b in zip(one, two, strict=True))


def test_the_control_sees_labelled_images_alone_and_the_student_all(tmp_path: Path) -> None:
    """As many steps for both; what is shown is read from the batches that reach the objective."""
    shown: dict[str, list[int]] = {"student": [], "control": []}
    for role, overrides in {"student": (), "control": ("distill=none",)}.items():
        config, watch = tiny("dataset.labelled=0.25", *overrides), Watch()
        data = open_tiny(config)
        student = new_backbone(config, data, "student")
        teacher_spec = student.spec if role == "student" else None
        objective = Objective(config.distill, setting(student.spec, teacher_spec))
        objective.register_forward_pre_hook(
            lambda _module, given, role=role: shown[role].extend(given[2].targets.tolist())
        )
        teacher = some_teacher(config, objective, 4) if teacher_spec else None
        folder = tmp_path / role
        folder.mkdir()
        fit(Fit(config, data, student, objective, folder, {}, role, teacher), watch.session)
        assert watch.steps == 2 * STEPS
    assert shown["student"].count(-1) == 2 * 48
    assert len(shown["control"]) == len(shown["student"]) == 2 * 64
    assert -1 not in shown["control"]


def test_without_labels_no_teacher_is_fitted(tmp_path: Path) -> None:
    config = tiny(f"runs={tmp_path}", "dataset.labelled=0", "distill.alpha=1")
    said = r"teacher\.name=test_resnet: no training image has a label to fit it to; give teacher\.checkpoint=RUN"
    with pytest.raises(UserError, match=said):
        find_teacher(config, open_tiny(config), LOGITS_ONLY, Watch().session)


# --- data without labels -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a teacher, fitted where there were labels."""
    config = tiny(f"runs={tmp_path_factory.mktemp('runs')}", "teacher.fit.epochs=3")
    return fit_once(teacher_recipe(members_of(config)[0], CPU.device), open_tiny(config), Watch().session)


def without_labels(source: Source, *parts: str) -> Source:
    """``source`` without the labels of some parts; without any label at all nothing names the classes."""
    splits: dict[str, Any] = {
        part: dataclasses.replace(split, labels=np.full_like(split.labels, -1))
        for part in parts
        if (split := {"train": source.train, "val": source.val, "test": source.test}[part]) is not None
    }
    return dataclasses.replace(source, **splits, classes=() if len(parts) == 3 else source.classes)


def distilled(folder: Path, source: Source, *overrides: str) -> tuple[Result, Watch]:
    watch = Watch()
    folder.mkdir()
    config = tiny(f"runs={folder}", *overrides)
    job = Job((), "distill train", None, None)
    plan = make_plan(config, source)
    check_weights(plan)
    return distill(plan, job, folder, Spent.on(folder), watch.session), watch


def test_a_student_learns_where_nothing_is_labelled(fitted: Path, tmp_path: Path) -> None:
    source = without_labels(open_source(tiny().dataset), "train", "val", "test")
    result, watch = distilled(tmp_path / "run", source, "distill.alpha=1", f"teacher.checkpoint={fitted}")
    student, dataset = result.student, result.dataset
    assert student is not None
    assert dataset is not None
    assert [student.top1, student.top5, student.nll, student.ece] == [None] * 4
    assert student.agreement is not None
    assert student.kl_to_teacher is not None
    assert 0 <= student.agreement <= 100
    assert student.kl_to_teacher > 0
    assert (result.baseline, result.gap_closed, watch.labels) == (None, None, ["student"])
    assert (dataset.classes, dataset.labelled) == (4, 0)
    assert (tmp_path / "run" / "classes.txt").read_text() == (fitted / "classes.txt").read_text()
    rows = [row for row in read_metrics(tmp_path / "run") if row["kind"] == "eval"]
    best = min(rows, key=lambda row: row["kl_to_teacher"])
    assert result.best is not None
    assert (result.best.epoch, result.best.val_kl_to_teacher) == (best["epoch"], best["kl_to_teacher"])
    report = (tmp_path / "run" / "report.md").read_text("utf-8")
    assert "No test image has a label; student and teacher agree on " in report
    assert "Best epoch chosen on val, closest to the teacher" in report


def test_a_control_needs_labels_and_so_does_a_comparison(fitted: Path, tmp_path: Path) -> None:
    source = without_labels(open_source(tiny().dataset), "test")
    result, watch = distilled(tmp_path / "run", source, f"teacher.checkpoint={fitted}")
    assert watch.labels == ["student", "control"]
    assert result.baseline is not None
    assert (top1_of(result.student), result.baseline.top1, result.gap_closed) == (None, None, None)
    assert result.best is not None
    assert result.best.val_top1 is not None


def test_the_best_epoch() -> None:
    accurate = [{"epoch": 1.0, "top1": 50.0, "nll": 0.2}, {"epoch": 2.0, "top1": 60.0, "nll": 0.4}]
    accurate += [{"epoch": 3.0, "top1": 60.0, "nll": 0.3}]
    close = [{"epoch": 1.0, "kl_to_teacher": 0.4, "agreement": 90.0}]
    close += [{"epoch": 2.0, "kl_to_teacher": 0.3, "agreement": 80.0}]
    assert max(accurate, key=merit)["epoch"] == 3
    assert max(close, key=merit)["epoch"] == 2
    assert max([{"epoch": 1.0}, {"epoch": 2.0}], key=merit)["epoch"] == 2


def test_classes_come_from_the_teacher_where_nothing_names_them(fitted: Path) -> None:
    named = open_source(tiny().dataset)
    source = without_labels(named, "train", "val", "test")
    assert with_classes(named, tiny()) is named
    assert with_classes(source, tiny(f"teacher.checkpoint={fitted}")).classes == named.classes
    imagenet = with_classes(source, tiny("teacher.name=resnet18", "teacher.pretrained=true")).classes
    assert (len(imagenet), imagenet[0]) == (1000, "n01440764")
    with pytest.raises(
        UserError, match=r"teacher\.name=test_resnet: fake has no labels and this teacher does not name"
    ):
        with_classes(source, tiny())


# --- a teacher without a head --------------------------------------------------------------------------------------

HEADLESS = ("teacher.head=false", "distill=embedding")


def probes(result: Result) -> list[float]:
    """What the probes of student, teacher and control gave."""
    models = [model or Measured() for model in (result.student, result.teacher, result.baseline)]
    return [top1 for model in models for top1 in (model.knn_top1, model.probe_top1) if top1 is not None]


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "mobilenetv3_small_100", "regnetx_002"])
def test_a_teacher_without_head_says_what_the_classifier_says_before_its_head(name: str, tmp_path: Path) -> None:
    config = tiny(f"teacher.name={name}")
    classes = tuple("abcd")
    size = config.dataset.image_size
    seed_everything(0)
    whole = build(ModelConfig(name), Inputs(4, size), "teacher").eval()
    export(whole, tmp_path / "m", classes, 1.0)
    headless = dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, head=False))
    taps = Taps((-1,), embedding=True)
    teacher = open_teacher(headless, [str(tmp_path / "m")], classes, taps, CPU)
    described, inputs = describe_teacher(headless, Inputs(4, size)), Inputs(4, size)
    assert described == teacher.backbone.spec
    assert described.params < describe_teacher(config, inputs).params
    images = torch.rand(3, 3, size, size)
    with torch.no_grad():
        wanted, given = whole(images, taps), teacher.backbone(images, taps)
    assert given.logits.shape == teacher.backbone(images).logits.shape == (3, 0)
    assert given.embedding is not None
    assert given.embedding.shape[1] == teacher.backbone.spec.embedding_width
    assert torch.allclose(given.embedding, wanted.embedding, atol=1e-5)
    assert torch.allclose(given.stages[-1], wanted.stages[-1], atol=1e-5)


def test_terms_of_logits_are_refused_without_a_head() -> None:
    config = tiny("teacher.head=false", "teacher.checkpoint=.")
    student = describe(config.student, Inputs(4, 32), "student")
    teacher = describe_teacher(config, Inputs(4, 32))
    for name, term in KNOWN_TERMS.items():
        distill_config = DistillConfig(name="x", alpha=None, terms={name: {}})
        if term.compares_logits:
            said = rf"distill\.terms\.{name}: it compares logits and the teacher has no head; .* teacher\.head=true"
            with pytest.raises(UserError, match=said):
                Objective(distill_config, setting(student, teacher))
        # hint and fsp ask for stages that these models do not have, simkd for a head to take over.
        elif name not in ("hint", "fsp", "simkd"):
            Objective(distill_config, setting(student, teacher))
    logits = {name for name, term in KNOWN_TERMS.items() if term.compares_logits}
    assert {"kl", "hard", "dist", "dkd"} <= logits
    assert not {"ce", "embedding", "sp", "pkt", "cc", "rkd", "at"} & logits


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((), "a teacher without a head cannot be trained on labels; set teacher.checkpoint=PATH"),
        (("teacher.checkpoint=.", "teacher.fit.mode=always"), "a teacher without a head cannot be trained"),
        (("teacher=ensemble",), "an ensemble gives logits only"),
    ],
)
def test_a_teacher_without_head_is_never_fitted(overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=rf"teacher\.head=false: {said}"):
        tiny(*HEADLESS, *overrides)


def test_an_embedding_is_learned_from_a_teacher_without_head(fitted: Path, tmp_path: Path) -> None:
    source = open_source(tiny().dataset)
    result, watch = distilled(tmp_path / "run", source, *HEADLESS, "probe=true", f"teacher.checkpoint={fitted}")
    assert watch.labels == ["student", "control"]
    assert all(0 <= accuracy <= 100 for accuracy in probes(result))
    report = (tmp_path / "run" / "report.md").read_text("utf-8")
    student, teacher = result.student, result.teacher
    assert student is not None
    assert teacher is not None
    assert f"{student.knn_top1:.1f} | {student.probe_top1:.1f} |" in report
    assert [teacher.top1, teacher.nll, teacher.agreement, teacher.kl_to_teacher] == [None] * 4
    assert student.top1 is not None
    assert [student.agreement, student.kl_to_teacher] == [None] * 2


def test_without_head_and_labels_the_student_is_a_feature_extractor(fitted: Path, tmp_path: Path) -> None:
    source = without_labels(open_source(tiny().dataset), "train", "val", "test")
    result, _ = distilled(
        tmp_path / "run", source, *HEADLESS, "distill.terms.ce.weight=0", f"teacher.checkpoint={fitted}"
    )
    assert result.best is not None
    assert result.dataset is not None
    assert result.best.epoch == 2  # the last: nothing tells which is better
    assert result.dataset.classes == 0
    assert probes(result) == []
    exported = read_weights(str(tmp_path / "run"))
    assert exported.classes == ()
    assert not any(name.startswith("classifier") for name in exported.state)
    again = reopen_model(str(tmp_path / "run"), source, tiny().dataset, True, CPU)
    assert again(torch.rand(2, 3, 32, 32)).logits.shape == (2, 0)


def test_a_head_that_nothing_trains_is_left_out(fitted: Path, tmp_path: Path) -> None:
    """With labels to measure by, and none in the objective: the embedding is measured, and the control has a head."""
    source = open_source(tiny().dataset)
    config = ("distill=embedding", "distill.terms.ce.weight=0", f"teacher.checkpoint={fitted}")
    result, _ = distilled(tmp_path / "run", source, *config)
    assert result.best is not None
    assert result.dataset is not None
    assert (top1_of(result.student), result.best.epoch, result.gap_closed) == (None, 2, None)
    assert top1_of(result.teacher) is not None
    assert top1_of(result.baseline) is not None
    assert result.dataset.classes == 4
    assert len(probes(result)) == 6
    assert "see how accurate a k-NN and a linear probe are" in (tmp_path / "run" / "report.md").read_text("utf-8")
    assert reopen_model(str(tmp_path / "run"), source, tiny().dataset, True, CPU).spec.classes == 0
    off, _ = distilled(tmp_path / "off", source, *config, "probe=false", "baseline=false")
    assert probes(off) == []
    # It can be given a head later.
    tuned, _ = distilled(tmp_path / "tuned", source, "distill=none", f"student.checkpoint={tmp_path / 'run'}")
    assert top1_of(tuned.student) is not None


@pytest.mark.parametrize(
    ("terms", "head"),
    [({"embedding": {}}, False), ({"embedding": {}, "ce": {}}, True), ({"kl": {}, "ce": {"weight": 0.0}}, True)],
)
def test_what_trains_a_head(terms: dict[str, Any], head: bool) -> None:
    assert trains_head(DistillConfig(name="x", alpha=None, terms=terms)) == head
    assert trains_head(DistillConfig(name="x", alpha=1.0, terms=terms | {"ce": {}})) == ("kl" in terms)


def test_a_probe_needs_labels(fitted: Path, tmp_path: Path) -> None:
    source = without_labels(open_source(tiny().dataset), "test")
    with pytest.raises(UserError, match=r"probe=true: it reads labels from embeddings and the test part has none"):
        distilled(tmp_path / "run", source, "probe=true", f"teacher.checkpoint={fitted}")


def test_each_class_is_counted_for_itself(fitted: Path, tmp_path: Path) -> None:
    source = open_source(tiny().dataset)
    result, _ = distilled(tmp_path / "run", source, f"teacher.checkpoint={fitted}", "baseline=false")
    for model in (result.student, result.teacher):
        assert model is not None
        assert model.per_class is not None
        assert list(model.per_class) == list(source.classes)
        top1 = [of_class.top1 for of_class in model.per_class.values()]
        counts = [of_class.count for of_class in model.per_class.values()]
        assert counts == np.bincount(source.evaluation.labels).tolist()
        assert model.top1 == pytest.approx(np.average(top1, weights=counts))  # type: ignore[arg-type]
        assert model.balanced_accuracy == pytest.approx(np.mean(top1))  # type: ignore[arg-type]
