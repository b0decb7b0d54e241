"""``mmrun train``: one run, or a sweep where a key has several values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmrun.errors import UserError, nearest
from mmrun.signals import ending
from mmrun.verbs.garbage import uncollected
from mmrun.verbs.words import take_trust

if TYPE_CHECKING:
    from mmrun.spec import Sweep

HELP = """\
mmrun train [-m] [GROUP=OPTION ...] [KEY=VALUE ...] [--config-dir DIR] [--dry-run]

  mmrun train                                      digits3, concat, AdamW, no clipping
  mmrun train fusion=attention clip=0.5            clip=NUMBER is the global norm law at NUMBER
  mmrun train clip=value_0.1 encoder/text=lstm optimizer=momentum optimizer.lr=0.1
  mmrun train dataset.use=[image,text] trainer.max_epochs=5 seed=1

  mmrun train -m clip=none,0.5,value_0.1 fusion=concat,attention seeds=3
  mmrun train sweeper=optuna sweeper.trials=30 'clip.threshold=tag(log,interval(0.01,10))' clip=norm,value
  mmrun train experiment=first_look                a question with its sweep (mmrun list experiment)

  -m                 a sweep: every combination of the values; also seeds=N and experiments imply it.
                     sweep=NAME names its folder; the same command again trains what is not done.
                     rerun=stale: also what another version of the code made; rerun=true: all
  --dry-run          the points, their choices and steps, and stop
  --cfg job          print the composed config and stop (as Hydra does); --info defaults-tree
  --config-dir DIR   add your own options, DIR/GROUP/OPTION.yaml; _target_ may name modules beside DIR

Groups and their options: mmrun list. Settings of an option: mmrun list clip/norm. All: mmrun train --cfg job.
"""

DRY_RUN = "--dry-run"


def main(words: list[str]) -> int:
    """Train what the words say."""
    if any(word in ("-h", "--help") for word in words):
        print(HELP, end="")
        return 0
    config_dirs, trust, rest = take_trust(words)
    if trust:
        raise UserError(
            "train takes no --trust",
            given=" ".join(trust),
            remedy="What stands in its command line is trusted already.",
        )
    with uncollected(), ending():
        from mmrun import compose
        from mmrun.spec import MULTIRUN, Sweep

        if any(word.split("=", 1)[0] in compose.HYDRA_FLAGS for word in rest):
            compose.hydra_answers(rest, config_dirs)
            return 0
        flags = [word for word in rest if word.startswith("-")]
        for word in flags:
            if word not in (*MULTIRUN, DRY_RUN):
                remedy = nearest(word, (*MULTIRUN, DRY_RUN, *compose.HYDRA_FLAGS))
                raise UserError("train has no such flag", given=word, remedy=remedy)
        overrides = [word for word in rest if word not in flags]
        several = compose.is_sweep(rest, config_dirs)
        if several:
            sweep = compose.sweep(overrides, config_dirs)
        else:
            sweep = Sweep(name="", points=(compose.point(overrides, config_dirs),), axes={})
    if DRY_RUN in flags:
        return _dry_run(sweep)
    if several:
        return _sweep(sweep)
    (point,) = sweep.points
    from mmrun.trust import targets
    from mmrun.user_code import add_to_path

    add_to_path(point.config_dirs)
    with ending():
        from mmrun.train import main_exit_code, train

    # What stands in this command line is the user's own; it is trusted as the user is.
    record = train(point, trust=targets(point.config))
    from mmrun.compare.summary import summary

    print(summary(record))
    return main_exit_code(record)


def _sweep(sweep: Sweep) -> int:
    from mmrun import tracking
    from mmrun.launch import loop
    from mmrun.launch.executor import make_executor
    from mmrun.trust import targets
    from mmrun.user_code import add_to_path
    from mmrun.verbs.outcome import closing

    add_to_path(sweep.config_dirs)
    config = sweep.points[0].config
    trust = set[str]().union(*(targets(point.config) for point in sweep.points))
    executor = make_executor(config["launcher"], trust, sweep.points)
    _, line = tracking.mode(config["logger"]["mode"])  # no key where one is needed ends it here
    notes = [line] if line else []
    outputs = Path(config["outputs"])
    return closing(loop.drive(sweep, outputs, executor, trust=trust, notes=notes))


def _dry_run(sweep: Sweep) -> int:
    from mmrun.launch.dry import lines

    for line in lines(sweep):
        print(line)
    return 0
