"""Two processes train one model: one folder, one voice, the same numbers as one process."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from test_fits import holder, line
from tiny import CPU, STEPS, Watch, digest, last, open_tiny, setting, some_teacher, tiny, train

from distillcli import cli
from distillcli.config.checks import check_train
from distillcli.config.schema import TrainerConfig
from distillcli.distillation.folders import in_turn
from distillcli.distillation.reopening import reopen_model
from distillcli.distillation.students import new_backbone
from distillcli.errors import Interrupted, NumericError, UserError
from distillcli.models.backbone import describe
from distillcli.runs.folder import read_metrics
from distillcli.runtime import Runtime, any_rank, from_main, one_fate, start
from distillcli.terms.objective import Objective
from distillcli.training import engine
from distillcli.training.evaluation import evaluate
from distillcli.types import Inputs

pytestmark = pytest.mark.slow

SGD = ("optimizer=sgd", "optimizer.name=momentum", "optimizer.lr=0.05", "schedule=constant", "augment=none")
VIT = ("student.name=test_vit", *SGD)

Work = Callable[[Runtime, Path], Any]


def exit_codes_of_two(rank_main: Callable[[int], None]) -> list[int | None]:
    """Of two processes in the environment that torchrun gives them; forked, since importing torch twice takes 20 s."""
    torch.set_num_threads(1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def in_place(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        rank_main(rank)

    processes = [multiprocessing.get_context("fork").Process(target=in_place, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def on_two_ranks(work: Work, folder: Path) -> list[Any]:
    """What ``work`` returns on each rank: JSON by way of files."""

    def rank_main(rank: int) -> None:
        with start(TrainerConfig(device="cpu", threads=1)) as runtime:
            answer = work(runtime, folder)
            (folder / f"rank{rank}.json").write_text(json.dumps(answer))

    folder.mkdir(exist_ok=True)
    assert exit_codes_of_two(rank_main) == [0, 0]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def test_ranks_speak_to_each_other(tmp_path: Path) -> None:
    def work(runtime: Runtime, _folder: Path) -> Any:
        value = "from the main one" if runtime.is_main else None
        return [runtime.rank, from_main(value, runtime), any_rank(runtime.rank == 1, runtime), any_rank(False, runtime)]

    assert on_two_ranks(work, tmp_path) == [[rank, "from the main one", True, False] for rank in (0, 1)]


@pytest.mark.fault("R53", "R58")
def test_two_ranks_take_the_steps_of_one(tmp_path: Path) -> None:
    """Without batch norm the gradient of the halves is the gradient of the whole, up to rounding."""

    def work(runtime: Runtime, folder: Path) -> Any:
        written: list[str] = []
        if not runtime.is_main:
            sys.addaudithook(
                lambda event, args: written.append(str(args)) if event in WRITING and writes(event, args) else None
            )
        train(tiny(*VIT), folder / "two", Watch(runtime=runtime))
        return [entry for entry in written if str(folder) in entry]

    (tmp_path / "two").mkdir()
    assert on_two_ranks(work, tmp_path) == [[], []], "only the main rank writes into the run folder"
    train(tiny(*VIT), tmp_path / "one")
    one, two = last(tmp_path / "one"), last(tmp_path / "two")
    assert one["step"] == two["step"] == 2 * STEPS
    for name, value in one["student"].items():
        torch.testing.assert_close(two["student"][name], value, rtol=1e-4, atol=1e-6)
    config = tiny(*VIT)
    start = new_backbone(config, open_tiny(config), "student").net.state_dict()
    assert not torch.allclose(start["head.weight"], one["student"]["head.weight"], rtol=1e-2)
    rows = [[row for row in read_metrics(tmp_path / name) if row["kind"] == "eval"] for name in ("one", "two")]
    assert [row["epoch"] for row in rows[1]] == [1, 2]
    for first, second in zip(*rows, strict=True):
        assert second["nll"] == pytest.approx(first["nll"], rel=1e-4)
    for kind in ("one", "two"):
        losses = [row["loss"] for row in read_metrics(tmp_path / kind) if row["kind"] == "train"]
        assert losses == pytest.approx(
            [row["loss"] for row in read_metrics(tmp_path / "one") if row["kind"] == "train"], rel=1e-4
        )


WRITING = ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate")


def writes(event: str, args: tuple[Any, ...]) -> bool:
    if event != "open":
        return True
    _path, mode, flags = args
    return any(letter in (mode or "") for letter in "wax+") or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR))


@pytest.mark.parametrize("samples", [72, 64 + 4, 7])
@pytest.mark.fault("R53", "R54")
def test_evaluation_counts_every_image_once(samples: int, tmp_path: Path) -> None:
    """An odd number of images, batch norm, and with 7 samples a single image for two ranks."""
    config = tiny(f"dataset.samples={samples}")

    def numbers(runtime: Runtime) -> dict[str, float]:
        data = open_tiny(config, runtime)
        student = new_backbone(config, data, "student")
        expert = describe(config.teacher, Inputs(4, config.dataset.image_size), "teacher")
        objective = Objective(config.distill, setting(student.spec, expert))
        return evaluate(student, data.evaluation, teacher=some_teacher(config, objective, 4))

    alone = numbers(CPU)
    for answer in on_two_ranks(lambda runtime, _: numbers(runtime), tmp_path):
        assert answer == pytest.approx(alone, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("ema", ["null", "0.9"])
def test_the_numbers_are_those_of_the_weights(ema: str, tmp_path: Path) -> None:
    """Batch norm keeps other running statistics on every rank: what is evaluated must be what is saved."""
    config = tiny(f"trainer.ema={ema}", "optimizer.lr=0.02")

    def work(runtime: Runtime, folder: Path) -> Any:
        return train(config, folder / "run", Watch(runtime=runtime)).last

    (tmp_path / "run").mkdir()
    answers = on_two_ranks(work, tmp_path)
    data = open_tiny(config)
    saved = reopen_model(str(tmp_path / "run" / "checkpoints" / "last.pt"), data.source, config.dataset, True, CPU)
    alone = evaluate(saved, data.val)
    for answer in answers:
        assert answer == pytest.approx({"epoch": 2, **alone}, rel=1e-5)


@pytest.mark.fault("R47")
def test_a_signal_on_one_rank_stops_both(tmp_path: Path) -> None:
    def work(runtime: Runtime, folder: Path) -> Any:
        watch = Watch(runtime=runtime, stop_after=3 if runtime.rank == 1 else None, exit_code=143)
        try:
            train(tiny(*VIT), folder / "run", watch)
        except Interrupted as stop:
            return [watch.steps, stop.exit_code]
        return None

    (tmp_path / "run").mkdir()
    assert on_two_ranks(work, tmp_path) == [[3, 143], [3, 143]]
    assert last(tmp_path / "run")["step"] == 3


@pytest.mark.fault("R30")
def test_nan_on_one_rank_ends_both(tmp_path: Path) -> None:
    def work(runtime: Runtime, folder: Path) -> Any:
        original = Objective.forward

        def broken(self: Objective, *args: Any) -> Any:
            total, values = original(self, *args)
            return total * float("nan"), values

        if runtime.rank == 1:
            Objective.forward = broken  # type: ignore[method-assign]
        try:
            train(tiny(*VIT), folder / "run", Watch(runtime=runtime))
        except NumericError as error:
            return str(error)
        return None

    (tmp_path / "run").mkdir()
    for answer in on_two_ranks(work, tmp_path):
        assert "not finite at step 1 " in answer
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.fault("F4.9", "R57")
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UserError("photo.jpg: cannot be decoded"), UserError),
        (NumericError("the loss is not finite"), NumericError),
        (ValueError("a bug"), UserError),
        (KeyboardInterrupt(), Interrupted),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_what_ends_one_rank_is_what_the_others_say(
    error: BaseException, kind: type[BaseException], tmp_path: Path
) -> None:
    """In one line that names the rank, in place of an error of the connection between them."""

    def work(runtime: Runtime, _folder: Path) -> Any:
        try:
            with one_fate(runtime):
                if runtime.rank == 1:
                    raise error
                any_rank(False, runtime)
        except BaseException as ended:
            return [type(ended).__name__, str(ended)]
        return None

    main, other = on_two_ranks(work, tmp_path)
    assert other == [type(error).__name__, str(error)]
    assert main[0] == kind.__name__
    assert kind is Interrupted or f"rank 1: {error}" in main[1]


@pytest.mark.fault("R55")
def test_a_rank_that_was_killed_is_missed(tmp_path: Path) -> None:
    def work(runtime: Runtime, folder: Path) -> Any:
        if runtime.rank == 1:
            (folder / "rank1.json").write_text("null")
            os._exit(0)
        try:
            with one_fate(runtime):
                any_rank(False, runtime)
        except UserError as ended:
            return str(ended)
        return None

    main, _ = on_two_ranks(work, tmp_path)
    assert main == "another process of this run has ended; its own output says why"


@pytest.mark.fault("F3.3")
def test_both_ranks_wait_and_both_stop(tmp_path: Path) -> None:
    """While the main rank waits for a folder, the signal may reach the other."""
    (tmp_path / "fit").mkdir()

    def work(runtime: Runtime, folder: Path) -> Any:
        watch = Watch(runtime=runtime)
        watch.signal.exit_code = 143 if runtime.rank == 1 else 0
        try:
            with in_turn(folder / "fit", "training", watch.session):
                return "held"
        except Interrupted as stop:
            return stop.exit_code

    with holder(tmp_path / "fit") as other:
        assert line(other) == "held"
        assert on_two_ranks(work, tmp_path) == [143, 143]
        other.kill()


@pytest.mark.fault("R56")
def test_what_torchrun_starts_again_goes_on(tmp_path: Path) -> None:
    """After one rank was killed, the same command continues its folder and ends with the same bits."""
    command = ["train", "experiment=smoke", "trainer.threads=1", "trainer.device=cpu", "dataset.samples=64"]
    command += ["trainer.batch_size=16", "trainer.epochs=2", "distill=none", "baseline=false"]

    def attempt(number: int, folder: Path, killed: bool) -> list[int | None]:
        def rank_main(rank: int) -> None:
            os.environ |= {"TORCHELASTIC_RESTART_COUNT": str(number), "TORCHELASTIC_MAX_RESTARTS": "1"}
            if killed and rank == 1:
                engine.train_step = dying(engine.train_step)
            os._exit(cli.run([*command, f"out={folder}"]))

        return exit_codes_of_two(rank_main)

    def dying(step: Any) -> Any:
        taken = itertools.count(1)

        def instead(*args: Any) -> Any:
            if next(taken) == STEPS + 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*args)

        return instead

    assert attempt(0, tmp_path / "whole", killed=False) == [0, 0]
    assert attempt(0, tmp_path / "run", killed=True) == [2, -signal.SIGKILL]
    assert last(tmp_path / "run")["step"] == STEPS
    assert attempt(1, tmp_path / "run", killed=False) == [0, 0]
    assert digest(last(tmp_path / "run")) == digest(last(tmp_path / "whole"))
    assert [row["epoch"] for row in read_metrics(tmp_path / "run")] == [1, 1, 2, 2]


@pytest.mark.fault("R56")
def test_what_may_be_started_again_needs_a_folder_with_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    with pytest.raises(UserError, match=r"name a folder, out=FOLDER$"):
        check_train(tiny())
    check_train(tiny("out=somewhere"))


def test_sweeps_are_refused_under_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distillcli.launch.launch import launch

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="start torchrun once per run"):
        launch("train", ["-m", "seed=1,2"], lambda *_: None)
    assert list(tmp_path.iterdir()) == []


def test_torchrun_leaves_one_run(tmp_path: Path) -> None:
    """The real command: one claimed folder, one panel, one result, and the teacher is shared."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "distillcli", "train", "experiment=smoke", "trainer.threads=1", "trainer.device=cpu"]
    command += ["trainer.epochs=1", "teacher.fit.epochs=1", "dataset.samples=64", "baseline=false"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder") == 1
    assert done.stdout.count("student  epoch 1/1") == 1
    (run,) = (path for path in (tmp_path / "runs" / "smoke").iterdir() if not path.is_symlink())
    assert (tmp_path / "runs" / "smoke" / "latest").resolve() == run
    assert [path.relative_to(tmp_path).parts[1] for path in sorted(tmp_path.rglob("result.json"))] == [
        "smoke",
        "teachers",
    ]
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "ok"
    config = tiny("dataset.samples=64")
    data = open_tiny(config)
    alone = evaluate(reopen_model(str(run), data.source, config.dataset, True, CPU), data.evaluation)
    assert {key: result["student"][key] for key in alone} == pytest.approx(alone, rel=1e-5)
