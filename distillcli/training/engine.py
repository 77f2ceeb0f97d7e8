"""The engine: fits a model to labels, to a teacher, or to both. Teacher, student and control all come out of it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distillcli.models.backbone import place
from distillcli.runtime import Runtime, named_failures, resolve_precision, seed_everything, share_buffers
from distillcli.teachers.compiled import CompiledTeacher
from distillcli.teachers.frozen import FrozenTeacher, Teacher
from distillcli.training.evaluation import evaluate
from distillcli.training.fit import Fit, Fitted
from distillcli.training.learners import Distillation, MutualLearning
from distillcli.training.optim import build_optimizer, build_schedule
from distillcli.training.selection import select
from distillcli.training.session import Session, Watcher
from distillcli.training.soundness import check_losses, first_gradient_doubt
from distillcli.training.state import Keeper, State
from distillcli.training.step import Update, train_step
from distillcli.training.totals import Totals
from distillcli.types import Output
from distillcli.views.showing import Showing


@dataclass(frozen=True)
class Loop:
    """A fit made ready to take steps on its device. ``teacher``: gives the targets of each batch, or None."""

    state: State
    update: Update
    schedule: Scheduler
    showing: Showing
    teacher: Teacher | None


def ready(fit: Fit, runtime: Runtime) -> Loop:
    """Place the models and build all that a step needs."""
    config, trainer, device, objective = fit.config, fit.config.trainer, runtime.device, fit.objective
    models = (fit.student, *fit.peers)
    for backbone in models:
        place(backbone, device, trainer.channels_last)
    objective.to(device)
    optimizer = build_optimizer(config.optimizer, [backbone.net for backbone in models], objective)
    showing, update = fit.showing, Update.of(optimizer, trainer, device)
    state = State(
        model=MutualLearning(fit.student, fit.peers, objective) if fit.peers else Distillation(fit.student, objective),
        update=update,
        ema=None if trainer.ema is None else ModelEmaV3(fit.student, decay=trainer.ema, use_warmup=True),
        totals=Totals(device, skips_overflow=update.scaler.is_enabled()),
    )
    teacher = fit.teacher
    if config.teacher.mean and objective.compares_teacher:
        assert state.ema is not None  # the checks of the config ask for trainer.ema
        precision = resolve_precision(config.teacher.precision, device, teacher=True)
        teacher = FrozenTeacher(state.deployed, precision, objective.teacher_taps)
    schedule = build_schedule(config.schedule, optimizer, trainer.epochs, showing.steps_per_epoch)
    return Loop(state, update, schedule, showing, teacher)


def compiled(loop: Loop, fit: Fit, runtime: Runtime) -> Loop:
    """The loop with compiled models, if so configured.

    Launching their kernels one by one takes longer than running small models: a GPU replays them as graphs. A teacher
    that is asked for rows of a cache is left alone, as they must not depend on it.
    """
    if not fit.config.trainer.compile:
        return loop
    on_gpu = runtime.device.type == "cuda"
    fit.student.compile(mode="reduce-overhead" if on_gpu else "default")
    if not on_gpu or not isinstance(loop.teacher, FrozenTeacher):
        return loop
    return dataclasses.replace(loop, teacher=CompiledTeacher.of(loop.teacher, grows=loop.showing.growth is not None))


def trained_module(loop: Loop, runtime: Runtime) -> nn.Module:
    """What a step calls: the model of the loop, synchronised with the other ranks."""
    if runtime.world == 1:
        return loop.state.model
    return DistributedDataParallel(loop.state.model, find_unused_parameters=True)


def fit(fit: Fit, session: Session) -> Fitted:
    """Train the student of ``fit``, from the last checkpoint in its folder if there is one.

    Writes ``metrics.jsonl`` and ``checkpoints/``. Raises Interrupted after saving when a stop was requested,
    NumericError on a non-finite loss, UserError when the folder holds another recipe.
    """
    # 1. Models on the device, optimizer, schedule.
    runtime, epochs = session.runtime, fit.config.trainer.epochs
    loop = ready(fit, runtime)
    state, steps = loop.state, loop.showing.steps_per_epoch
    if fit.config.student.freeze != "none":
        session.say(_frozen_words(fit))
    # 2. The last checkpoint, if there is one, takes the place of all this state.
    keeper = Keeper(fit, state, session)
    keeper.resume()
    # 3. Parts of terms that learn from the teacher alone; a checkpoint would have held them.
    if state.step == 0 and loop.teacher is not None:
        _prepare_terms(fit, loop, session)
    # 4. Compiled and joined with other ranks only now: they start from what the main rank has prepared.
    loop = compiled(loop, fit, runtime)
    model = trained_module(loop, runtime)
    # 5. Epochs. A resumed one begins at the step after the checkpoint, or with the validation it was stopped in.
    images, seconds = 0, 0.0
    done = state.step - steps if state.trained else state.step
    with session.watch(fit.role, epochs, steps, done) as watcher:
        while state.step < epochs * steps or state.trained:
            if not state.trained:
                with named_failures(_smaller_step(fit)):
                    keeper.epoch_trained(_train_epoch(fit, loop, model, keeper, watcher))
                images += steps * loop.showing.images_per_step
                seconds += state.trained["seconds"]
            # 6. The end of an epoch, once its weights are safe.
            row, numbers = state.trained, _validate(fit, loop, runtime)
            keeper.epoch_done(row["epoch"], row, numbers)
            watcher.epoch(row, {} if numbers is None else {"split": "val", **numbers})
            runtime.obey_stop()
    keeper.fit_done()
    if loop.teacher is not None and loop.teacher.repaired:
        session.warn(f"teacher cache: {loop.teacher.repaired:,} damaged rows were computed again")
    # 7. The epoch that becomes the student.
    return select(fit, state, images / seconds if seconds else None, session.warn)


def _train_epoch(fit: Fit, loop: Loop, model: nn.Module, keeper: Keeper, watcher: Watcher) -> dict[str, Any]:
    """The steps that are left of the current epoch; its row of ``metrics.jsonl``, over all of its steps.

    Raises Interrupted after saving, NumericError before.
    """
    config, state, runtime, steps = fit.config, loop.state, keeper.runtime, loop.showing.steps_per_epoch
    epoch, first_step, totals = state.step // steps + 1, state.step % steps, state.totals
    totals.start_clock()
    for parts in loop.showing.epoch(epoch, first_step):
        # 1. Whatever a layer draws in this step is a function of the step, also after resuming.
        seed_everything(config.seed, "step", state.step, runtime.rank)
        loop.schedule.step_update(state.step)
        result = train_step(parts, loop.teacher, model, loop.update, state.step / steps)
        state.step += 1
        if state.ema is not None:
            state.ema.update(fit.student, step=state.step)
        totals.add(state.step, result)
        if state.step == 1:
            _doubt_first_gradient(result.norm, fit, model, keeper.session)
        watcher.step(None)
        if state.step % steps == 0:
            continue  # the end of an epoch is saved together with its evaluation
        # 2. Losses are read only here: reading them at every step would make the device wait.
        stopping = runtime.is_stopping()
        if stopping or keeper.is_due():
            check_losses(totals, fit, loop.update, epoch, runtime)
            keeper.save()
        if stopping:
            raise runtime.interruption()
    check_losses(totals, fit, loop.update, epoch, runtime)
    row = {"kind": "train", "epoch": epoch, "step": state.step, **totals.means(runtime)}
    row |= {"lr": max(group["lr"] for group in loop.update.optimizer.param_groups)}
    seconds = totals.seconds
    return row | {"images_per_second": steps * loop.showing.images_per_step / seconds, "seconds": seconds}


def _doubt_first_gradient(norm: Tensor, fit: Fit, model: nn.Module, session: Session) -> None:
    doubt = first_gradient_doubt(norm.item(), fit, model.parameters())
    if doubt is not None:
        session.warn(doubt)


def _smaller_step(fit: Fit) -> str:
    """What takes less memory than a step of ``fit``, in words."""
    trainer, pixels = fit.config.trainer, fit.config.dataset.image_size
    parts = 2 * trainer.accumulate
    if fit.objective.whole_batch_terms or trainer.batch_size % parts:
        fix = f"trainer.batch_size={max(1, trainer.batch_size // 2)}"
    else:
        fix = f"trainer.accumulate={parts}, which takes the same steps"
    return (
        f"a step of trainer.batch_size={trainer.batch_size} with trainer.accumulate={trainer.accumulate} and "
        f"dataset.image_size={pixels} is too large; use {fix}, or smaller images; checkpoints are kept"
    )


def _validate(fit: Fit, loop: Loop, runtime: Runtime) -> dict[str, float] | None:
    """The numbers of the validation data; None where there are none."""
    share_buffers(loop.state.deployed, runtime)
    if fit.data.val is None:
        return None
    # Without labels only the teacher can tell how good an epoch is; where there are some, it costs time.
    judge = None if loop.teacher is None or fit.data.val.has_labels else loop.teacher.live
    return evaluate(loop.state.deployed, fit.data.val, teacher=judge)


def _prepare_terms(fit: Fit, loop: Loop, session: Session) -> None:
    """Let parts of terms learn from the teacher before the student does."""
    assert loop.teacher is not None
    for name, term in fit.objective.prepared_terms.items():
        session.say(f"{name}: learns from the teacher before the student does, epochs: {term.prepare_epochs}")
        seed_everything(fit.config.seed, "prepare", name)
        term.prepare(_answers(loop.showing, loop.teacher, term.prepare_epochs, session))


def _answers(showing: Showing, teacher: Teacher, epochs: int, session: Session) -> Iterator[Output]:
    """The teacher's outputs for the batches of the first epochs, in views of full size.

    Raises Interrupted: there is nothing to save yet.
    """
    whole = dataclasses.replace(showing, micro_batches=1, growth=None)
    for epoch in range(1, epochs + 1):
        for batch in itertools.chain.from_iterable(whole.epoch(epoch)):
            session.runtime.obey_stop()
            yield teacher(batch)


def _frozen_words(fit: Fit) -> str:
    trained = sum(parameter.numel() for parameter in fit.student.parameters() if parameter.requires_grad)
    return f"{fit.role}: {trained:,} of its {fit.student.spec.params:,} parameters are trained, the others are frozen"
