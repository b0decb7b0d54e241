"""May a run go on from its last checkpoint? Asked before anything of the run is touched."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmrun.build import Built
from mmrun.callbacks.checkpoints import Checkpoints
from mmrun.callbacks.recorder import Recorder, headers
from mmrun.callbacks.stops import Stops
from mmrun.checkpoint import load_weights
from mmrun.errors import UserError, described
from mmrun.runs.layout import Paths
from mmrun.runs.table import read_columns

NEEDED: dict[str, type] = {
    "run": str,
    "global_step": int,
    "epoch": int,
    "pytorch-lightning_version": str,
    "loops": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "clip": dict,
    "rng": list,
    "accumulated": list,
    "callbacks": dict,
}
OF_CALLBACKS = {
    "Recorder": (*Recorder.STATE, "history", "elapsed"),
    "Stops": Stops.STATE,
    "Checkpoints": Checkpoints.STATE,
}


def check_resumable(built: Built, paths: Paths, run: str) -> None:
    """Raise UserError unless last.ckpt is whole, of this run, below the limits, and its rows are there.

    Args:
        built: the run's objects; the module takes up the checkpoint's weights.
        paths: the run's files.
        run: its id.
    """
    if not paths.last.exists():
        raise UserError(
            "there is no checkpoint to resume from",
            given=paths.last,
            remedy="Runs keep last.ckpt until they end, and after that with trainer.checkpoint=both.",
        )
    checkpoint = load_weights(built.module, paths.last)
    _check_content(checkpoint, paths)
    if checkpoint["run"] != run:
        raise UserError(
            "this checkpoint is of another run",
            given=f"{paths.last}: {checkpoint['run']}",
            remedy=f"This run's id is {run}.",
        )
    _check_state(checkpoint, built, paths)
    _check_limits(checkpoint, built)
    _check_rows(checkpoint["global_step"], built, paths)


def _damaged(paths: Paths, what: str) -> UserError:
    return UserError("this checkpoint cannot be resumed from", given=paths.last, remedy=what)


def _check_content(checkpoint: dict[str, Any], paths: Paths) -> None:
    for key, kind in NEEDED.items():
        if not isinstance(checkpoint.get(key), kind):
            raise _damaged(paths, f"It has no {key}.")
    if "fit_loop" not in checkpoint["loops"]:
        raise _damaged(paths, "It has no place in the data.")
    for name, keys in OF_CALLBACKS.items():
        state = checkpoint["callbacks"].get(name)
        if not isinstance(state, dict) or any(key not in state for key in keys):
            raise _damaged(paths, f"It has no state of {name}.")


def _check_state(checkpoint: dict[str, Any], built: Built, paths: Paths) -> None:
    """The optimizer, the clip law and best.ckpt take up what is theirs."""
    try:
        built.module.make_optimizer().load_state_dict(checkpoint["optimizer_states"][0])
        built.module.pipeline.load_state_dict(checkpoint["clip"])
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise _damaged(paths, described(error)[:300]) from error
    except UserError as error:  # of the clip's state
        raise _damaged(paths, f"{error}") from error
    if checkpoint["callbacks"]["Checkpoints"]["best_step"] is None:
        return
    if not paths.best.exists():
        raise UserError("the run has lost its best checkpoint", given=paths.best)
    load_weights(built.module, paths.best)
    load_weights(built.module, paths.last)


def _check_limits(checkpoint: dict[str, Any], built: Built) -> None:
    done = {
        "max_steps": checkpoint["global_step"],
        "max_epochs": checkpoint["callbacks"]["Checkpoints"]["epochs"],
    }
    for name, value in done.items():
        limit = getattr(built.options, name)
        if 0 < limit < value:
            raise UserError(
                f"the run has gone beyond this {name.removeprefix('max_').removesuffix('s')} already",
                given=f"trainer.{name}={limit}",
                remedy=f"It is at {value}: give that or more.",
            )


def _check_rows(step: int, built: Built, paths: Paths) -> None:
    """The rows that were written before the checkpoint was: the run is judged by them at its end."""
    module, every = built.module, built.options.log_every_n_steps
    names = ["loss", *module.objective.higher_is_better]
    recorded = module.pipeline.clipper.record_every
    wanted = {
        paths.metrics: [*range(every, step, every), step],
        paths.gradients: list(range(recorded, step + 1, recorded)),
    }
    made = headers(module.columns, names, built.diagnostics.columns)
    for (path, steps), header in zip(wanted.items(), made, strict=True):
        columns = read_columns(path)
        if list(columns) == header and np.isin(steps, columns["step"]).all():
            continue
        raise UserError(
            f"{path.name} has lost rows that were written before the checkpoint",
            given=path,
            remedy=f"Bring back the file with its rows up to step {step}, or train anew.",
        )
