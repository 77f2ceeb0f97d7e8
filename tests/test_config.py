"""Composing in this process: spelling, precedence, refusals, and sweeps with an action that stands in for training."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import pytest
import yaml
from omegaconf import MISSING

from distillcli.commands.completion import candidates
from distillcli.commands.table import COMMANDS, Command
from distillcli.config import search
from distillcli.config.compose import _store_schemas, compose
from distillcli.config.job import Job
from distillcli.config.model_names import model_names, optimizer_names
from distillcli.config.overrides import normalise_overrides, path_value
from distillcli.config.primaries import PRIMARIES, Primary
from distillcli.config.ranges import at_least
from distillcli.config.schema import DatasetConfig, EvalConfig, TrainConfig, TrainerConfig
from distillcli.errors import Interrupted, UserError
from distillcli.launch.launch import launch
from distillcli.runs.result import Result, read_result, write_result


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISTILL_CONFIG_DIR", raising=False)
    search.use([])


def write(name: str, text: str, folder: str = "mine") -> str:
    file = Path(folder) / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return folder


class Recorder:
    """An action that remembers what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[TrainConfig, Job]] = []

    def __call__(self, config: TrainConfig, job: Job) -> None:
        self.calls.append((config, job))
        if job.folder is not None:
            write_result(job.folder, Result(status="ok", overrides=job.overrides))


def train(*overrides: str) -> TrainConfig:
    config = compose("train", list(overrides))
    assert isinstance(config, TrainConfig)
    return config


def refused(*overrides: str, primary: str = "train") -> str:
    with pytest.raises(UserError) as caught:
        compose(primary, list(overrides))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults() -> None:
    config = train()
    assert (config.teacher.name, config.student.name) == ("resnet50", "mobilenetv3_small_100")
    assert (config.dataset.name, config.distill.name) == ("digits", "kd")


def test_eval_takes_a_model_name_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "images" / "a").mkdir(parents=True)
    config = compose("eval", ["checkpoint=resnet18.a1_in1k", "dataset=folder", "dataset.root=images"])
    assert isinstance(config, EvalConfig)
    assert config.dataset is not None
    assert config.dataset.root == "images"
    assert "dataset=folder dataset.root=PATH" in refused("checkpoint=resnet18", "dataset.root=images", primary="eval")


@dataclass
class GuessConfig:
    checkpoint: str = MISSING
    top: int = 1
    dataset: Optional[DatasetConfig] = None  # noqa: UP045 - OmegaConf reads it at run time
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


def check_guess(config: GuessConfig) -> None:
    at_least("top", config.top, 1)


@pytest.fixture
def guess(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third primary config: its dataclass, its line in the table, and its YAML."""
    monkeypatch.setitem(PRIMARIES, "guess", Primary(GuessConfig, check_guess))
    _store_schemas.cache_clear()
    (defaults, rest) = (search.builtin_folder() / "eval.yaml").read_text("utf-8").split("  - eval_schema", 1)
    search.use([write("guess", f"{defaults}  - guess_schema{rest}")])


@pytest.mark.usefixtures("guess")
def test_a_new_primary_config_is_one_line_in_the_table() -> None:
    calls: list[object] = []
    launch("guess", ["checkpoint=a b", "top=3", "--config-dir", "mine"], lambda config, _: calls.append(config))
    assert calls == [GuessConfig("a b", 3)]
    config = compose("guess", ["checkpoint=x", "dataset=digits"])
    assert isinstance(config, GuessConfig)
    assert config.dataset is not None
    assert config.dataset.name == "digits"


@pytest.mark.usefixtures("guess")
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["checkpoint=x", "topp=3"], "unknown key topp=3; did you mean top=3?"),
        (["checkpoint=x", "trainer.batch=3"], "did you mean trainer.batch_size=3?"),
        (["checkpoint=x", "seed=3"], "unknown key seed"),
        (["checkpoint=x", "experiment=smoke"], "unknown key experiment"),
        (["checkpoint=x", "teacher=resnet18"], "unknown key teacher"),
        (["top=3"], "checkpoint is missing; set checkpoint=VALUE"),
        (["checkpoint=x", "top=0"], "top=0: must be at least 1"),
        (["checkpoint=x", "top=many"], "top=many: expected whole number"),
        (["checkpoint=x", "trainer.epochs=.inf"], "trainer.epochs"),
        (["checkpoint=x", "dataset=digit"], "unknown dataset 'digit'; did you mean 'digits'"),
        (["checkpoint=x", "dataset.root=y"], "dataset.root: no dataset is chosen; choose one first"),
    ],
)
def test_mistakes_in_a_new_primary_config_are_explained(overrides: list[str], expected: str) -> None:
    assert expected in refused(*overrides, primary="guess")


@pytest.mark.usefixtures("guess")
def test_only_runs_can_be_resumed() -> None:
    for primary in ("eval", "guess"):
        with pytest.raises(UserError, match=f"distill {primary} has none to continue"):
            launch(primary, ["resume=runs/old", "--config-dir", "mine"], Recorder())


@pytest.mark.usefixtures("guess")
def test_completion_knows_a_new_primary_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "guess", Command("module", "summary", "guess", ()))
    assert "top=" in candidates(["guess"], "to")
    assert candidates(["guess"], "dataset=digi") == ["dataset=digits"]
    assert candidates(["guess"], "experiment=") == []


@pytest.mark.parametrize("spelling", ["experiment=mine", "+experiment=mine", "++experiment=mine"])
def test_spellings_of_experiment(spelling: str) -> None:
    search.use([write("experiment/mine", "# @package _global_\nseed: 7\n")])
    assert train(spelling).seed == 7


def test_experiment_given_twice_is_refused() -> None:
    assert "2 times" in refused("experiment=a", "+experiment=b")


@pytest.mark.fault("R1")
def test_unknown_experiment_names_the_nearest() -> None:
    search.use([write("experiment/quick_trial", "# @package _global_\nseed: 7\n")])
    assert "did you mean 'quick_trial'?" in refused("experiment=quick_trail")


@pytest.mark.parametrize("spelling", ["student.args={depth: 2}", "student.args.depth=2", "+student.args.depth=2"])
def test_open_mappings_take_new_keys_one_by_one_or_together(spelling: str) -> None:
    assert train(spelling).student.args == {"depth": 2}


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_new_keys_are_welcome_in_open_mappings(prefix: str) -> None:
    config = train(
        f"{prefix}distill.terms.dkd.weight=2",
        f"{prefix}distill.terms.kl.weight=3",
        f"{prefix}teacher.args.drop_rate=0.1",
    )
    assert config.distill.terms["dkd"] == {"weight": 2}
    assert config.distill.terms["kl"]["weight"] == 3
    assert config.teacher.args == {"drop_rate": 0.1}


def test_a_term_can_be_taken_away() -> None:
    assert list(train("~distill.terms.ce").distill.terms) == ["kl"]
    assert "at least one" in refused("~distill.terms.ce", "~distill.terms.kl")


def test_normalising_twice_changes_nothing() -> None:
    once = normalise_overrides("train", ["experiment=a", "distill.terms.x.y=1", "out=a b", "+seed=1"])
    assert once == ["+experiment=a", "++distill.terms.x.y=1", "out='a b'", "seed=1"]
    assert normalise_overrides("train", once) == once


@pytest.mark.parametrize(
    "name",
    ["a=b", "a,b", "(c", "#1", "a b", "ümläut", "it's", "back\\", "x\\'y", '"q"', "123", "nan", "[a]", "{b}", "a:b"],
)
def test_odd_paths_arrive_unchanged(name: str, tmp_path: Path) -> None:
    (tmp_path / name / "class").mkdir(parents=True)
    assert train("dataset=folder", f"dataset.root={name}").dataset.root == name


def test_home_is_expanded_and_sweeps_of_paths_stay_sweeps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/some/home")
    assert path_value("out", "~/x") == "/some/home/x"
    assert path_value("out", "a,b c", multirun=True) == "a,'b c'"
    (tmp_path / "a,b").mkdir()
    assert path_value("out", "a,b", multirun=True) == "'a,b'"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("distill.temperature=0", "above 0"),
        ("distill.temperature_end=0", "above 0"),
        ("distill.temperature=-1", "above 0"),
        ("distill.temperature=1e-8", "at least 0.01"),
        ("distill.temperature_end=1e-8", "at least 0.01"),
        ("distill.temperature=nan", "finite"),
        ("distill.temperature=1e400", "finite"),
        ("distill.terms.kl.weight=inf", "finite"),
        ("distill.alpha=1.5", "[0, 1]"),
        ("trainer.epochs=0", "at least 1"),
        ("trainer.batch_size=0", "at least 1"),
        ("trainer.accumulate=3", "not divisible"),
        ("trainer.device=gpu", "did you mean 'cuda'?"),
        ("trainer.precision=fp8", "must be one of auto, fp32, bf16, fp16"),
        ("optimizer.lr=-1", "above 0"),
        ("optimizer.name=adamww", "did you mean 'adamw'"),
        ("schedule.name=cosin", "did you mean 'cosine'?"),
        ("dataset.val_fraction=1", "below 1"),
        ("dataset.image_size=4", "at least 8"),
        ("augment.crop_area=[0.9,0.5]", "ascending"),
        ("augment.flip=2", "[0, 1]"),
        ("teacher.fit.mode=maybe", "must be one of auto, never, always"),
        ("teacher.checkpoint=nowhere.pt", "does not exist"),
        ("teacher.name=local-dir:nowhere", "does not exist"),
        ("teacher=null", "unknown teacher 'null'; "),
        ("~teacher", "teacher.name"),
        ("name=../x", "letters, digits"),
        ("teacher@x=resnet50", "@"),
    ],
)
@pytest.mark.fault("R3", "R4", "R5", "R7")
def test_ranges_and_choices(override: str, expected: str) -> None:
    assert expected in refused(override)


@pytest.mark.fault("R13")
def test_a_missing_checkpoint_names_its_nearest_neighbour(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "teacher.safetensors").touch()
    assert "did you mean 'weights/teacher.safetensors'?" in refused("teacher.checkpoint=weights/teacher.safetensor")


@pytest.mark.fault("R50")
def test_a_full_out_folder_offers_resume(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    train("out=old")
    (tmp_path / "old" / "file").touch()
    assert "resume=old" in refused("out=old")


def test_a_user_folder_wins_and_the_built_ins_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    search.use([write("distill/kd", "name: mine\nterms: {kl: {weight: 1.0}}\n")])
    assert train().distill.name == "mine"
    write("distill/kd", "name: first\nterms: {kl: {weight: 1.0}}\n", folder="first")
    search.use(["first", "mine"])
    assert train().distill.name == "first"
    monkeypatch.setenv("DISTILL_CONFIG_DIR", "first:mine")
    search.use([])
    assert train("teacher=resnet18").distill.name == "first"


@pytest.mark.fault("R2")
def test_a_typo_in_a_yaml_names_the_file() -> None:
    search.use([write("distill/mine", "name: mine\ntemprature: 3\n")])
    message = refused("distill=mine")
    assert "mine/distill/mine.yaml: unknown key distill.temprature; did you mean distill.temperature?" in message


@pytest.mark.fault("R3")
def test_a_wrong_type_in_a_yaml_names_the_file() -> None:
    search.use([write("distill/mine", "name: mine\ntemperature: hot\n")])
    assert "mine.yaml: distill.temperature=hot: expected number" in refused("distill=mine")


def test_a_forgotten_package_line_is_explained() -> None:
    search.use([write("experiment/mine", "seed: 3\n")])
    assert "# @package _global_" in refused("experiment=mine")


def test_a_primary_config_without_the_schema_is_refused() -> None:
    search.use([write("train", "defaults:\n  - teacher: resnet50\n")])
    assert "train" in refused()


HOSTILE = """# @package _global_
hydra:
  callbacks:
    mine: {_target_: tempfile.mkdtemp, prefix: marker, dir: .}
"""
HOSTILE_LOGGING = """# @package _global_
hydra:
  job_logging:
    handlers: {mine: {class: logging.FileHandler, filename: marker.log}}
"""
HOSTILE_LAUNCHER = """# @package _global_
hydra:
  launcher: {_target_: tempfile.mkdtemp, prefix: marker, dir: .}
"""
HOSTILE_TERM = "# @package _global_\ndistill:\n  terms:\n    kl: {_target_: tempfile.mkdtemp, prefix: marker}\n"


@pytest.mark.parametrize("text", [HOSTILE, HOSTILE_LOGGING, HOSTILE_LAUNCHER, HOSTILE_TERM])
@pytest.mark.parametrize(
    "how", [["experiment=bad"], ["-m", "experiment=good,bad"], ["-m", "experiment=bad", "seed=1,2"]]
)
@pytest.mark.fault("R63")
def test_no_code_from_a_yaml(text: str, how: list[str], tmp_path: Path) -> None:
    write("experiment/good", "# @package _global_\nseed: 3\n")
    folder = write("experiment/bad", text)
    action = Recorder()
    with pytest.raises(UserError):
        launch("train", [*how, "--config-dir", folder], action)
    assert action.calls == []
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "override",
    [
        "hydra.callbacks.x._target_=os.getcwd",
        "+hydra.callbacks.x.y=1",
        "hydra/callbacks=x",
        "hydra.job_logging.root=1",
        "hydra/job_logging=default",
        "hydra.searchpath=[x]",
        "hydra.job.chdir=true",
        "hydra.launcher._target_=os.getcwd",
        "distill.terms.kl._target_=os.getcwd",
        "student.args={a:{_target_:os.getcwd}}",
    ],
)
@pytest.mark.fault("R63")
def test_no_code_from_the_command_line(override: str) -> None:
    refused(override)


def test_flags_may_stand_anywhere_and_a_single_run_writes_nothing(tmp_path: Path) -> None:
    folder = write("experiment/mine", "# @package _global_\nseed: 7\n")
    action = Recorder()
    launch("train", ["experiment=mine", "--config-dir", folder, "distill.temperature=3"], action)
    ((config, job),) = action.calls
    assert (config.seed, config.distill.temperature) == (7, 3.0)
    assert job.overrides == ("+experiment=mine", "distill.temperature=3")
    assert job.command == "distill train experiment=mine --config-dir mine distill.temperature=3"
    assert job.folder is None
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_errors_of_the_action_reach_the_caller() -> None:
    def fail(config: Any, job: Job) -> None:
        raise UserError("from the action")

    with pytest.raises(UserError, match="from the action"):
        launch("train", [], fail)


def test_a_sweep_runs_every_combination(tmp_path: Path) -> None:
    action = Recorder()
    launch("train", ["distill.temperature=1,2", "seed=0,1", "-m"], action)
    assert [(config.distill.temperature, config.seed) for config, _ in action.calls] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    folders = [job.folder for _, job in action.calls]
    assert [folder.name for folder in folders if folder] == ["0", "1", "2", "3"]
    sweep = action.calls[0][1].sweep_folder
    assert sweep is not None
    assert re.fullmatch(r"runs/sweeps/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", str(sweep))


def test_a_mistake_in_one_swept_value_stops_the_sweep_before_it_starts(tmp_path: Path) -> None:
    action = Recorder()
    with pytest.raises(UserError, match="above 0"):
        launch("train", ["-m", "distill.temperature=1,2,-3", "seed=0,1"], action)
    assert action.calls == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("R51")
def test_a_failing_job_does_not_stop_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    action = Recorder()

    def sometimes(config: TrainConfig, job: Job) -> None:
        if config.seed == 1:
            raise UserError("seed 1 is unlucky")
        if config.seed == 2:
            raise RuntimeError("a bug")
        action(config, job)

    with pytest.raises(SystemExit) as stop:
        launch("train", ["-m", "seed=0,1,2,3", "out=my sweep"], sometimes)
    assert stop.value.code == 1
    assert [config.seed for config, _ in action.calls] == [0, 3]
    unlucky = Result(status="failed", error="seed 1 is unlucky", overrides=("seed=1",))
    assert read_result(Path("my sweep/1")) == unlucky
    assert read_result(Path("my sweep/2")) == Result(
        status="failed", error="RuntimeError: a bug", overrides=("seed=2",)
    )
    assert "error: job 1: seed 1 is unlucky" in capsys.readouterr().err

    # The same command again: finished jobs are skipped, the others run.
    again = Recorder()
    launch("train", ["-m", "seed=0,1,2,3", "out=my sweep"], again)
    assert [config.seed for config, _ in again.calls] == [1, 2]
    with pytest.raises(UserError, match="job 0 ran with seed=0 and would now run with seed=5"):
        launch("train", ["-m", "seed=5,6", "out=my sweep"], again)


def test_a_sweep_does_not_move_into_a_foreign_folder() -> None:
    Path("photos").mkdir()
    Path("photos/a.jpg").touch()
    with pytest.raises(UserError, match="not a sweep folder"):
        launch("train", ["-m", "seed=0,1", "out=photos"], Recorder())


def test_sweeps_over_groups_paths_and_terms() -> None:
    Path("a b").touch()
    Path("c,d").touch()
    action = Recorder()
    launch("train", ["-m", "student=glob(mobilenetv3*)", "teacher.checkpoint=a b,null", "~distill.terms.ce"], action)
    assert [config.teacher.checkpoint for config, _ in action.calls] == ["a b", None] * 2
    assert {tuple(config.distill.terms) for config, _ in action.calls} == {("kl",)}
    launch("train", ["-m", "teacher.checkpoint=c,d", "distill.terms.kl.weight=1,2"], action)
    assert [config.distill.terms["kl"]["weight"] for config, _ in action.calls[4:]] == [1, 2]


def test_a_sweep_inside_an_experiment() -> None:
    text = "# @package _global_\nhydra:\n  sweeper:\n    params: {seed: '1,2'}\n"
    action = Recorder()
    launch("train", ["-m", "experiment=mine", "--config-dir", write("experiment/mine", text)], action)
    assert [config.seed for config, _ in action.calls] == [1, 2]


def test_a_launcher_that_is_not_installed() -> None:
    with pytest.raises(UserError, match="is not installed"):
        launch("train", ["-m", "seed=0,1", "hydra/launcher=nowhere"], Recorder())


@pytest.mark.fault("R52")
def test_an_interrupted_job_ends_the_sweep_and_resumes_later() -> None:
    def stop(config: TrainConfig, job: Job) -> None:
        assert job.folder is not None
        (job.folder / "checkpoints").mkdir()
        (job.folder / "checkpoints" / "last.pt").touch()
        raise Interrupted("stopped", 130)

    with pytest.raises(Interrupted):
        launch("train", ["-m", "seed=0,1", "out=sweep"], stop)
    assert not Path("sweep/1").exists()
    action = Recorder()
    launch("train", ["-m", "seed=0,1", "out=sweep"], action)
    assert [config.resume for config, _ in action.calls] == ["sweep/0", None]


@pytest.fixture
def old_run() -> Path:
    """What a run started with ``distill train seed=3 distill.terms.dkd.weight=1`` leaves behind."""
    import dataclasses

    run = Path("runs/old")
    run.mkdir(parents=True)
    overrides = ["seed=3", "++distill.terms.dkd.weight=1"]
    (run / "environment.json").write_text(json.dumps({"overrides": overrides}))
    (run / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(train(*overrides))))
    return run


def test_resume_takes_the_recorded_overrides(old_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    action = Recorder()
    launch("train", [f"resume={old_run}", "seed=3", "trainer.workers=2"], action)
    ((config, _),) = action.calls
    assert (config.seed, config.trainer.workers, config.resume) == (3, 2, str(old_run))
    assert config.distill.terms["dkd"] == {"weight": 1}
    assert "trainer.workers: 0 -> 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["seed=4"], "seed: 3 -> 4"),
        (["distill.temperature=2", "student=resnet18"], 'distill.temperature: 4.0 -> 2.0; student.name: "mobile'),
        (["distill.terms.dkd.weight=2"], "distill.terms.dkd.weight: 1 -> 2"),
    ],
)
@pytest.mark.fault("R44")
def test_resume_refuses_another_run(old_run: Path, typed: list[str], expected: str) -> None:
    with pytest.raises(UserError, match="start a new run") as caught:
        launch("train", [f"resume={old_run}", *typed], Recorder())
    assert expected in str(caught.value)


def test_resume_of_a_missing_run_names_the_nearest(old_run: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'runs/old'"):
        launch("train", ["resume=runs/olt"], Recorder())
    with pytest.raises(UserError, match="not a run folder"):
        launch("train", ["resume=runs"], Recorder())


def test_names_read_from_source_are_those_of_timm() -> None:
    import timm
    from timm.optim import list_optimizers

    assert set(model_names()) == set(timm.list_models()) - {"reused_head"}  # ours, registered by other tests
    assert set(optimizer_names()) >= set(list_optimizers())
