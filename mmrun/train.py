"""One run: build, freeze its directory, fit, score best and last, write down how it ended.

Knows nothing of Hydra or sweeps. Every ending, also Ctrl-C and SIGTERM, leaves a run.json that says so.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from mmrun import tracking
from mmrun.build import Built, build, planned_steps
from mmrun.calibration import calibrate_clip, calibrate_features
from mmrun.callbacks.checkpoints import Checkpoints
from mmrun.callbacks.diagnosis import Diagnosis
from mmrun.callbacks.progress import ProgressBar, ProgressLines
from mmrun.callbacks.recorder import Recorder
from mmrun.callbacks.stops import Stops
from mmrun.callbacks.wandb import WandbRun
from mmrun.checkpoint import read_checkpoint
from mmrun.closing import judge, score_checkpoints
from mmrun.errors import UserError, described, nearest
from mmrun.exits import continuing, shown
from mmrun.isolation import isolated
from mmrun.lasting import LastingConsole
from mmrun.logfile import log_file
from mmrun.module import Scores
from mmrun.ranks import launch_ranks, rank_and_world
from mmrun.resuming import check_resumable
from mmrun.runs.features import feature_block
from mmrun.runs.heartbeat import Heartbeat
from mmrun.runs.layout import Paths
from mmrun.runs.table import read_columns, truncate
from mmrun.runs.verdict import clip_block
from mmrun.runs.writer import Run, create, freeze
from mmrun.settings import changed
from mmrun.signals import STOPPED_BY, Interrupted, interruptible, take_signals
from mmrun.signature import check
from mmrun.spec import Point
from mmrun.trainer import limited, make_trainer

LABEL = 40  # letters of a point's name beside its bar


def train(
    point: Point,
    directory: Path | None = None,
    *,
    resume: bool = False,
    changes: Mapping[str, Any] | None = None,
    trust: Collection[str] = (),
    brief: bool = False,
) -> dict[str, Any]:
    """Train one point and return its record: the content of run.json, and its ``directory``.

    Args:
        point: what to train.
        directory: its run directory, frozen or not there yet; None makes one below ``outputs``.
        resume: continue from last.ckpt.
        changes: {dotted key: value} that differ from the point's config in this process, of keys
            that do not change the id, or ``trainer.max_*``.
        trust: packages beside mmrun and torch.optim that ``_target_`` may name.
        brief: print no line, as one of many points; train.log has them.

    Raises:
        UserError: for what the user can mend; nothing was created then.
        Interrupted: SIGINT or SIGTERM came; the record says killed.
        Exception: what training raised; the record says failed.
    """
    config = changed(point.config, changes or {})
    with interruptible(), isolated():
        built = _build(config, trust)
        _check_target(built)
        _check_nodes(built)
        ranks = built.options.devices * built.options.num_nodes
        built.loader("train", shuffle=True, world=ranks)  # too few samples for them is found now
        if built.dataset.spec.sizes["val"] < ranks:
            raise UserError(
                "there are fewer validation samples than devices",
                given=f"{built.dataset.spec.sizes['val']} samples, {ranks} devices",
                remedy="Use fewer devices.",
            )
        check(tracking.Options, config["logger"], "logger")
        if resume and directory is not None:
            check_resumable(built, Paths(directory), point.id)
        starts_ranks = built.options.distributed and rank_and_world() is None
        said = [] if resume or starts_ranks else _calibrate(built, config)
        logger_mode, line = tracking.mode(config["logger"]["mode"])
        run = (
            create(point, Path(config["outputs"]))
            if directory is None
            else freeze(point, directory)
        )
        if changes and rank_and_world() is None:
            run.update(resumed=dict(changes))  # before ranks start: they read it from there
        if starts_ranks:
            record = launch_ranks(
                run.directory, built.options.devices, resume=resume, trust=trust, brief=brief
            )
        else:
            training = _Training(
                run,
                config,
                built,
                logger_mode,
                line,
                resume=resume,
                created=directory is None,
                brief=brief,
                said=said,
            )
            record = training.run_to_the_end()
        return {**record, "directory": str(run.directory)}


class _Training:
    """The state of one training; its methods are the chapters."""

    def __init__(
        self,
        run: Run,
        config: dict[str, Any],
        built: Built,
        logger_mode: tracking.Mode,
        line: str,
        *,
        resume: bool,
        created: bool,
        brief: bool,
        said: Sequence[str],
    ) -> None:
        self.run = run
        self.created = created
        self.paths = run.paths
        self.config = config
        self.built = built
        self.module = built.module
        self.options = built.options
        self.resume = resume
        self.brief = brief
        self.said = said
        self.rank, self.world = rank_and_world() or (0, 1)
        self.first = self.rank == 0
        self.device = _device(built)
        self.console = LastingConsole()
        self.wandb = WandbRun(
            logger_mode if self.first else "none",
            line,
            say=self._say,
            alarm=partial(self._say, aloud=True),  # a lost server is told of also in a sweep
        )
        self.began = time.monotonic()
        self.seconds_before = (run.record["seconds"] or 0.0) if resume else 0.0

    def run_to_the_end(self) -> dict[str, Any]:
        """Fit and close, whatever happens in between."""
        if self.first:
            try:
                self._begin()
            except OSError as error:  # a full disk, say
                self._abandon(error)
                raise
        with contextlib.ExitStack() as stack:
            # What the other ranks' libraries say, the first one's say too.
            stack.enter_context(log_file(self.paths.log if self.first else Path(os.devnull)))
            if self.first:
                stack.enter_context(Heartbeat(self.paths.record))
            try:
                return self._fit_and_score()
            except Interrupted as signal_:
                self._end("killed", stopped_by=STOPPED_BY.get(signal_.signum, "signal"))
                self.wandb.finish(128 + signal_.signum)
                if self.first and self.paths.last.exists():
                    signal_.add_note(continuing(self.run.directory))
                raise
            except BaseException as error:
                logging.getLogger("mmrun").error("%s", traceback.format_exc())
                if isinstance(error, SystemExit):  # of a user's code: it would end a whole sweep
                    error = RuntimeError(f"the code that was trained called sys.exit({error.code})")
                self._end("failed", stopped_by="error", error=described(error))
                self.wandb.finish(1)
                if self.first:
                    error.add_note(f"the run and its log: {shown(self.paths.log)}")
                raise error

    def _begin(self) -> None:
        if not self.resume:
            self.run.reset()
        previous = self.run.record["wandb"]
        id = self.wandb.id_after(previous, resume=self.resume)
        self.run.start(
            device=_device_name(self.device), wandb=previous | {"id": id}, features=self._features()
        )

    def _abandon(self, error: OSError) -> None:
        """Write down that it failed; where that fails too, nothing half-made is left."""
        try:
            self._end("failed", stopped_by="error", error=described(error))
            error.add_note(f"the run: {shown(self.run.directory)}")
        except OSError:
            if self.created:
                shutil.rmtree(self.run.directory, ignore_errors=True)

    # Chapters

    def _fit_and_score(self) -> dict[str, Any]:
        self._say(f"run      {shown(self.run.directory)}")
        for line in self.said:
            self._say(f"calibrated {line}")
        hyperparameters = dict(self.module.hparams)
        self.wandb.start(self.run, self.config, hyperparameters, resume=self.resume)
        start = self._prepare_files()
        recorder, callbacks = self._callbacks()
        options = self.options
        if not self.module.automatic_optimization:  # it accumulates itself; Lightning would refuse
            options = replace(options, accumulate_grad_batches=1)
        trainer = make_trainer(options, callbacks=callbacks, loggers=self.wandb.loggers())
        torch.manual_seed(_mixed(self.config["seed"], self.rank))
        fit_began = time.monotonic()
        try:
            trainer.fit(
                self.module,
                self._loader("train", shuffle=True),
                self._loader("val"),
                ckpt_path=str(self.paths.last) if self.resume else None,
                weights_only=True,
            )
        finally:
            recorder.close()  # at a bad ending too: what was logged is in the files
        fit_seconds = time.monotonic() - fit_began
        if self.module.validation is None:  # resumed after the last step: Lightning trained nothing
            self.module.to(self.device)
            self.module.validation = self._validate()
        if not self.first:
            return self.run.record
        self.module.to(self.device)
        stops = next(each for each in callbacks if isinstance(each, Stops))
        checkpoints = next(each for each in callbacks if isinstance(each, Checkpoints))
        stopped_by = self._stopped_by(trainer, stops)
        last, best, train_best = score_checkpoints(self.built, self.paths, self.device)
        stable = judge(self.module, recorder.history(), recorder.diverged_at)
        goal = self.module.objective
        steps = trainer.global_step
        self._end(
            "diverged" if stable.state == "diverged" else "finished",
            stopped_by="diverged" if stable.state == "diverged" else stopped_by,
            error=f"the loss or a gradient was not finite at step {stable.step}"
            if stable.state == "diverged"
            else None,
            stability=stable.state,
            test={f"test/{name}": value for name, value in best.metrics.items()},
            test_last={f"test_last/{name}": value for name, value in last.metrics.items()},
            train_eval={f"train_eval/{name}": v for name, v in train_best.metrics.items()},
            monitor={
                "metric": f"val/{goal.monitor}",
                "mode": _mode(goal.higher_is_better, goal.monitor),
                "value": checkpoints.sign * checkpoints.best,
                "best_step": checkpoints.best_step,
            },
            clip=clip_block(
                read_columns(self.paths.gradients),
                algorithm=self.module.pipeline.clipper.algorithm,
                threshold=self.module.pipeline.clipper.threshold,
                per=self.config["clip"].get("per", "global"),
                optimizer=self.run.record["choices"].get("optimizer", ""),
                settings=self.config["clip"],
                stable=stable,
                counted=recorder.counted(),
            ),
            features=self._features(recorder.feature_counts()),
            steps=steps,
            epochs=checkpoints.epochs,
            steps_per_second=(steps - start) / max(fit_seconds, 1e-9),
            steps_to_target=stops.steps_to_target,
        )
        self._keep_checkpoints()  # all of them are there until the record says how it ended
        self.wandb.finish(1 if stable.state == "diverged" else 0, self.run.record)
        return self.run.record

    def _prepare_files(self) -> int:
        """Drop rows past the checkpoint; the step to start from."""
        if not self.resume:
            return 0
        step = int(read_checkpoint(self.paths.last)["global_step"])
        if self.first:
            for path in (self.paths.metrics, self.paths.gradients):
                truncate(path, step)
            self._say(f"resuming at step {step}")
            planned = planned_steps(self.run.record["config"], self.built.dataset.spec)
            if planned != self.module.total_steps and not self._constant():
                self._say(
                    f"the schedule was made for {planned} steps and now spans {self.module.total_steps}: "
                    "the learning rate jumps, and a new run of that length would differ"
                )
        return step

    def _constant(self) -> bool:
        return self.run.record["choices"].get("schedule") == "constant"

    def _callbacks(self) -> tuple[Recorder, list[Callback]]:
        goal, options, paths = self.module.objective, self.options, self.paths
        names = ["loss", *goal.higher_is_better]
        clipper = self.module.pipeline.clipper
        recorder = Recorder(
            paths if self.first else None,
            columns=self.module.columns,
            validation=names,
            diagnostics=self.built.diagnostics,
            every=options.log_every_n_steps,
            record_every=clipper.record_every,
            # A gradient that is let through has made the weights what it is.
            patience=1 if clipper.nonfinite == "pass" else clipper.max_nonfinite,
            strict=clipper.nonfinite == "raise",
        )
        diagnosis = Diagnosis(self.built.diagnostics, recorder)
        recorder.modes = {f"val/{name}": _mode(goal.higher_is_better, name) for name in names}
        stops = Stops(
            recorder,
            patience=options.patience,
            min_delta=options.min_delta,
            target=options.target,
            tolerance=options.tolerance,
            higher_is_better=goal.higher_is_better,
            monitor=goal.monitor,
        )
        checkpoints = Checkpoints(
            paths,
            self.run if self.first else None,
            recorder,
            stops,
            every=options.checkpoint_every,
            monitor=goal.monitor,
            higher=goal.higher_is_better.get(goal.monitor, False),
            validate=self._validate,
            seconds=self._seconds,
            id=self.run.id,
        )
        shown: list[Callback] = []
        if self.first and options.enable_progress_bar:
            if self.console.is_terminal:
                total = self.module.total_steps
                shown.append(
                    ProgressBar(
                        recorder,
                        total=total,
                        metric=goal.primary,
                        console=self.console,
                        label=self.run.record["name"][:LABEL] if self.brief else "training",
                    )
                )
            else:
                shown.append(ProgressLines(recorder, metric=goal.primary, say=self._say))
        return recorder, [recorder, diagnosis, stops, checkpoints, *shown, _OwnSignals()]

    def _loader(self, split: Any, *, shuffle: bool = False) -> Any:
        return self.built.loader(
            split, shuffle=shuffle, device=self.device, rank=self.rank, world=self.world
        )

    def _validate(self) -> Scores:
        batches = self._loader("val")
        limit = limited(self.options.limit_val_batches, len(batches))
        return self.module.score(batches, limit, gather=True)

    def _stopped_by(self, trainer: Trainer, stops: Stops) -> str:
        if stops.stopped_by is not None:
            return stops.stopped_by
        if 0 < self.options.max_steps <= trainer.global_step:
            return "max_steps"
        if 0 < self.options.max_epochs <= trainer.current_epoch:
            return "max_epochs"
        return "max_time"

    def _features(self, counts: Mapping[str, float] | None = None) -> dict[str, Any]:
        """What feature clipping is bound to, and what it has done."""
        feature_clip, gradient_clip = self.module.model.bounds
        bounds = {name: each.value for name, each in gradient_clip.items()}
        return feature_block(self.config["model"], feature_clip.value, bounds, counts)

    def _keep_checkpoints(self) -> None:
        keep = self.options.checkpoint
        if keep == "none":
            shutil.rmtree(self.paths.checkpoints, ignore_errors=True)
        elif keep == "best" and self.paths.best.exists():
            self.paths.last.unlink(missing_ok=True)

    def _end(self, status: str, **keys: Any) -> None:
        if self.first:
            self.run.finish(status, seconds=self._seconds(), **keys)

    def _seconds(self) -> float:
        """Wall time of the run so far, earlier parts of it included."""
        return self.seconds_before + time.monotonic() - self.began

    def _say(self, line: str, *, aloud: bool = False) -> None:
        if self.first:
            if aloud or not self.brief:
                self.console.print(line, markup=False, highlight=False, soft_wrap=True)
            logging.getLogger("mmrun").info("%s", line)


class _OwnSignals(Callback):
    """Takes SIGINT and SIGTERM back from Lightning, whose handlers end the process on their own."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        take_signals()  # Lightning places its own after ``on_fit_start``


def _build(config: Mapping[str, Any], trust: Collection[str]) -> Built:
    try:
        return build(config, trust)
    except SystemExit as error:
        raise UserError(
            "code that the config names has ended the process",
            given=f"sys.exit({error.code})",
            remedy="Let it raise an exception that says what is wrong.",
        ) from error


def _calibrate(built: Built, config: Mapping[str, Any]) -> list[str]:
    """Percentiles become numbers, on the initial weights; lines that say so."""
    rank, world = rank_and_world() or (0, 1)
    clipper = built.module.pipeline.clipper
    lines: list[str] = []
    for calibrate in (calibrate_features, calibrate_clip):  # features shape the gradients
        lines += calibrate(
            built,
            clipper.calibration_batches,
            seed=_mixed(config["seed"], rank),
            device=_device(built),
            rank=rank,
            world=world,
        )
    return lines


def _device(built: Built) -> torch.device:
    """Where this process trains."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", local) if built.options.on_gpu else torch.device("cpu")


def _check_target(built: Built) -> None:
    known = built.module.objective.higher_is_better
    for name, wanted in built.options.target.items():
        if name not in known and name != "loss":
            raise UserError(
                "trainer.target names a validation metric", given=name, remedy=nearest(name, known)
            )
        low, high = built.module.objective.ranges.get(name, (-math.inf, math.inf))
        if not (wanted <= high if known.get(name, False) else wanted >= low):
            raise UserError(
                "trainer.target is a value that the metric cannot reach",
                given=f"{name}: {wanted}",
                remedy=f"It is from {low:g} to {high:g}.",
            )


def _check_nodes(built: Built) -> None:
    if built.options.num_nodes > 1 and rank_and_world() is None:
        raise UserError(
            "mmrun starts processes on this machine only",
            given=f"trainer.num_nodes={built.options.num_nodes}",
            remedy="Set trainer.devices for more of them here.",
        )


def _mode(higher_is_better: Mapping[str, bool], name: str) -> str:
    return "max" if higher_is_better.get(name, False) else "min"


def _mixed(seed: int, rank: int) -> int:
    """A seed for dropout and the like that is another one than the initialisation's, and per rank."""
    return (seed * 0x9E3779B1 + rank * 0x85EBCA77 + 0x165667B1) % 2**63


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def main_exit_code(record: Mapping[str, Any]) -> int:
    """0 for a run that ended well, 1 for one that failed or diverged."""
    return 0 if record["status"] == "finished" else 1
