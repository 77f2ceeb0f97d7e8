"""``distill bench``: where the time of a step goes, for the same config as ``distill train``; nothing is kept."""

from __future__ import annotations

import json

from distillcli.config import search
from distillcli.config.schema import TrainConfig
from distillcli.config.unread import compose_for_user
from distillcli.errors import UserError
from distillcli.launch.arguments import parse_arguments
from distillcli.report.bench import as_json, grid, summary
from distillcli.report.console import print_grid, say, say_loading, sentence
from distillcli.sources.open import open_source

JSON_FLAG = "--json"


def run(arguments: list[str]) -> None:
    """Profile some steps of a config. Raises UserError for what makes no sense of one run."""
    parsed = parse_arguments([word for word in arguments if word != JSON_FLAG])
    if parsed.multirun or parsed.inspect:
        raise UserError("distill bench times one config: no -m, --cfg or --info")
    search.use(parsed.config_folders)
    config = compose_for_user("train", parsed.overrides)
    assert isinstance(config, TrainConfig)
    if config.resume is not None:
        raise UserError("resume= continues a training; distill bench takes the config alone")
    source = open_source(config.dataset)
    is_json = JSON_FLAG in arguments
    if not is_json:
        say_loading()

    from distillcli.distillation.bench import STEPS, profile
    from distillcli.distillation.plan import make_plan
    from distillcli.models.memory_layout import settle_layout
    from distillcli.runtime import start
    from distillcli.views.loader import open_data

    plan = make_plan(config, source)
    with start(config.trainer) as runtime:
        plan = plan.settled(settle_layout(config, plan.inputs, runtime))
        if not is_json:
            say(f"opening {source.count:,} images of {source.name}, then timing at most {STEPS} steps")
        found = profile(plan, open_data(plan.source, config.dataset, config.trainer.workers, runtime), runtime)
    if is_json:
        say(json.dumps(as_json(found)))
        return
    sentence(
        f"{config.student.name} on {source.name}, {config.dataset.image_size} px, batch {found.batch_size}", "bold"
    )
    print_grid(grid(found))
    for line in summary(found):
        sentence(line)
