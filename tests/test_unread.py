"""A key that the user set and that nothing reads is refused; what shipped configs say, and half of a sweep, are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from distillcli.config import search
from distillcli.config.datasets import DATASETS
from distillcli.config.origin import Given
from distillcli.config.schema import DatasetConfig, EvalConfig
from distillcli.config.unread import check_all_read, compose_for_user
from distillcli.errors import UserError
from distillcli.launch.launch import launch


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISTILL_CONFIG_DIR", raising=False)
    search.use([])
    (tmp_path / "photos" / "ant").mkdir(parents=True)


def refused(*overrides: str, primary: str = "train") -> str:
    with pytest.raises(UserError) as caught:
        compose_for_user(primary, list(overrides))
    return str(caught.value)


MEMBERS = "teacher.members=[{name: resnet18, checkpoint: photos}]"


@pytest.mark.fault("F1.2")
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("dataset.root=photos", "dataset=digits does not read it; choose dataset=folder, archive"),
        ("dataset=hf dataset.path=photos dataset.root=photos", "dataset=hf does not read it"),
        ("dataset=folder dataset.root=photos dataset.download=true", "choose dataset=fashion_mnist, cifar10"),
        ("dataset.samples=100", "choose dataset=fake, or leave it out"),
        ("dataset.val_fraction=0.3", "dataset=digits does not read it"),
        ("dataset.split_seed=3", "dataset=digits does not read it"),
        ("experiment=smoke dataset.on_error=skip", "dataset=fake does not read it"),
        ("distill=none teacher.checkpoint=photos", "no term of distill=none learns from a teacher"),
        ("distill=none teacher=resnet18", "no term of distill=none learns from a teacher"),
        ("distill=tfkd generations=2", "no term of distill=tfkd learns from a teacher"),
        ("distill=none peers=[{name: resnet18}]", "no term of distill=none learns from a teacher"),
        ("experiment=mutual teacher=resnet18", "set peers=[]"),
        ("experiment=mean_teacher teacher.fit.epochs=3", "teacher.mean=true"),
        (f"{MEMBERS} teacher.checkpoint=photos", "the teachers are teacher.members"),
        (f"{MEMBERS} teacher.fit.lr=0.1", "set teacher.fit.mode=always"),
        ("teacher.average=logits", "choose teacher=ensemble"),
        ("teacher.checkpoint=photos teacher.fit.epochs=3", "set teacher.fit.mode=always"),
        ("teacher.checkpoint=photos teacher.freeze=1", "set teacher.fit.mode=always"),
        ("teacher.pretrained=true teacher.fit.mode=never teacher.fit.epochs=3", "teacher.fit.mode=never"),
        ("teacher.cache.mode=off teacher.cache.dir=here", "teacher.cache.mode=off"),
        ("distill=at distill.temperature=2", "no term of distill=at has a temperature; add one of kl"),
        ("distill.terms.kl.temperature=2 distill.temperature=3", "distill.terms.kl.temperature is set"),
        ("distill.alpha=0 distill.terms.kl.standardize=true", "kl has weight 0 in the sum"),
        ("optimizer.momentum=0.8", "optimizer=adamw has no momentum"),
        ("optimizer.name=lookahead_adam optimizer.momentum=0.8", "has no momentum"),
        ("schedule.milestones=[3]", "multistep does"),
        ("schedule.decay_epochs=3", "wsd or step does"),
        ("schedule=constant schedule.min_lr=0.1", "cosine or tanh or poly or wsd does"),
        ("schedule.warmup_epochs=0 schedule.warmup_lr=1e-3", "schedule.warmup_epochs=0"),
        ("augment=light augment.policy_ops=3", "only augment.policy=randaugment reads it"),
        ("augment=light augment.mix_probability=0.5", "nothing is mixed"),
        ("augment=light augment.crop_ratio=[0.5,2]", "augment.crop_area=[1,1] crops nothing"),
        ("dataset.channels=1 augment.hue=0.1", "has no colours"),
        ("distill.name=dkd", "write distill=dkd"),
        ("augment.name=cifar", "write augment=cifar"),
    ],
)
def test_a_typed_key_that_nothing_reads_is_refused_and_what_reads_it_is_named(overrides: str, expected: str) -> None:
    words = overrides.replace("{name: ", "{name:").replace(", checkpoint: ", ",checkpoint:").split()
    message = refused(*words)
    assert expected in message
    assert words[-1].split("=")[0] in message
    assert "\n" not in message


@pytest.mark.fault("F1.2")
@pytest.mark.parametrize(
    "overrides",
    [
        "distill=at distill.temperature=4",  # the default says nothing
        "dataset=folder dataset.root=photos dataset.val_fraction=0.3",
        "dataset.labelled=0.5 dataset.split_seed=3",
        "teacher.checkpoint=photos teacher.fit.mode=always teacher.fit.epochs=3",
        "optimizer=sgd optimizer.momentum=0.8",
        "schedule.name=step schedule.decay_epochs=3",
        "augment=randaugment augment.policy_ops=3",
        "augment.mixup=1 augment.mix_probability=0.5",
        "experiment=smoke dataset=digits",  # smoke says how many images and classes
        "experiment=label_free teacher.checkpoint=photos",  # which says how long to fit
        "experiment=resnet50_to_mobilenet distill=none",
        "experiment=resnet50_to_mobilenet schedule=constant optimizer=sgd augment=none",
        "distill.name=mine",
    ],
)
def test_a_key_that_is_read_or_that_a_shipped_config_sets_is_kept(overrides: str) -> None:
    compose_for_user("train", overrides.split())


@pytest.mark.fault("F1.2")
@pytest.mark.parametrize("key", sorted({key for known in DATASETS.values() for key in known.keys}))
def test_every_data_set_refuses_the_keys_that_it_does_not_read(key: str) -> None:
    values = {"download": True, "val_fraction": 0.3, "split_seed": 7, "classes": 7, "samples": 7}
    for name, known in DATASETS.items():
        config = EvalConfig(dataset=DatasetConfig(name=name, **{key: values.get(key, "skip")}))
        jobs = [(config, [Given(f"dataset.{key}", "x")])]
        if key in known.keys:
            check_all_read(jobs)
        else:
            with pytest.raises(UserError, match=f"dataset.{key}=x: not used, as dataset={name} does not read it"):
                check_all_read(jobs)


@pytest.mark.fault("F1.2")
def test_eval_refuses_what_only_training_reads() -> None:
    assert "trains nothing" in refused("checkpoint=resnet18", "trainer.epochs=3", primary="eval")
    assert "does not read it" in refused("checkpoint=resnet18", "dataset=digits", "dataset.root=photos", primary="eval")
    compose_for_user("eval", ["checkpoint=resnet18", "trainer.workers=2", "trainer.device=cpu"])


@pytest.mark.fault("F1.2")
def test_in_a_sweep_one_job_that_reads_a_key_is_enough() -> None:
    seen: list[object] = []
    command = ["-m", "optimizer=adamw,sgd", "optimizer.momentum=0.8", "distill=kd,at", "distill.temperature=2,3"]
    with pytest.raises(SystemExit):  # the jobs leave no results
        launch("train", command, lambda config, job: seen.append(config))
    assert len(seen) == 8
    with pytest.raises(UserError, match=r"optimizer\.momentum=0.8: not used"):
        launch("train", ["-m", "optimizer.name=adamw,adam", "optimizer.momentum=0.8"], lambda config, job: None)


def write(name: str, text: str) -> None:
    file = Path("mine") / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    search.use(["mine"])


@pytest.mark.fault("F1.2")
def test_a_key_in_a_config_of_the_user_is_refused_with_its_file_unless_the_choice_was_typed() -> None:
    write("experiment/mine", "# @package _global_\ndataset: {root: photos}\noptimizer: {momentum: 0.8}\n")
    assert "mine/experiment/mine.yaml: dataset.root=photos: not used" in refused("experiment=mine", "optimizer=sgd")
    compose_for_user("train", ["experiment=mine", "dataset=fake", "optimizer=adamw"])
    write("schedule/slow", "name: cosine\nmilestones: [2, 3]\n")
    assert "mine/schedule/slow.yaml: schedule.milestones=[2, 3]" in refused("schedule=slow")
    # Nested: the file is taken by another one.
    write("experiment/more", "# @package _global_\ndefaults:\n  - mine\nseed: 3\n")
    assert "mine/experiment/mine.yaml: dataset.root" in refused("experiment=more", "optimizer=sgd")
