"""One training step of the whole mmrun train path against a hand-written PyTorch loop on the same model, data, optimizer and clip."""

from __future__ import annotations

import contextlib
import io
import math
import os
import tempfile
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pairs
import torch

from mmrun import compose
from mmrun.build import build
from mmrun.callbacks.recorder import Recorder
from mmrun.train import train

WARM = 50  # steps before the clock starts


def main() -> None:
    """Time the cases and print the table."""
    parser = pairs.parser(__doc__ or "", rounds=7)
    parser.add_argument("--steps", type=int, default=400, help="steps timed per case and round")
    parser.add_argument(
        "overrides", nargs="*", help="of the point, e.g. fusion=attention encoder/text=lstm"
    )
    given = parser.parse_args()
    os.environ["WANDB_MODE"] = "offline"
    # Both sides take their time from the process's CPU clock, which neighbours do not slow down much.
    cases: dict[str, pairs.Case] = {}
    baselines: dict[str, str] = {}
    for clip in ("none", "norm_0.5", "value_0.1"):
        config = compose.point([*given.overrides, f"clip={clip}"]).config
        cases[f"hand/{clip}"] = lambda config=config: hand_loop(config, given.steps)
        for logger in ("offline", "none"):
            name = f"mmrun/{clip}" + ("" if logger == "offline" else "/no_wandb")
            words = [*given.overrides, f"clip={clip}", f"logger={logger}"]
            cases[name] = lambda words=words: mmrun_train(words, given.steps)
            baselines[name] = f"hand/{clip}"
    with quiet():
        for case in cases.values():
            case()  # imports, caches and W&B's service start outside of the rounds
        costs = pairs.run(cases, rounds=given.rounds)
    table = pairs.report(costs, unit="ms/step", baselines=baselines, file=given.json)
    print(table)  # noqa: T201 (its output)


def mmrun_train(words: list[str], steps: int) -> float:
    """Ms per step of CPU time, from inside ``train``: telemetry, recorder, W&B and all."""
    stamps: dict[int, float] = {}
    original = Recorder.on_train_batch_end

    def stamped(self: Recorder, trainer: Any, *rest: Any) -> None:
        original(self, trainer, *rest)
        if trainer.global_step in (WARM, WARM + steps):
            stamps[trainer.global_step] = time.process_time()

    with tempfile.TemporaryDirectory() as folder:
        point = compose.point(
            [
                *words,
                f"outputs={folder}",
                "trainer.max_epochs=-1",
                f"trainer.max_steps={WARM + steps}",
                # One validation, after the clock has stopped: the hand-written loop has none either.
                "trainer.check_val_every_n_epoch=1000000",
                "trainer.limit_val_batches=1",
                "trainer.limit_test_batches=1",
                "trainer.checkpoint=none",
            ]
        )
        with mock.patch.object(Recorder, "on_train_batch_end", stamped):
            train(point)
    return 1e3 * (stamps[WARM + steps] - stamps[WARM]) / steps


def hand_loop(config: dict[str, Any], steps: int) -> float:
    """Ms per step of CPU time of a plain loop: index, forward, backward, clip, step, schedule."""
    built = build(config)
    module, samples = built.module, built.dataset.split("train")
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = module.make_optimizer()
    schedule = module.make_schedule(optimizer, WARM + steps)
    law, threshold = module.pipeline.clipper.algorithm, config["clip"].get("threshold", math.inf)
    module.train()
    batches = endless(samples, built.batch_size)
    started = 0.0
    for step in range(WARM + steps):
        if step == WARM:
            started = time.process_time()
        batch = next(batches)
        output = module(batch)
        (loss,) = module.objective.losses(batch, output).values()
        optimizer.zero_grad()
        loss.backward()
        if law == "norm":
            torch.nn.utils.clip_grad_norm_(parameters, threshold)
        elif law == "value":
            torch.nn.utils.clip_grad_value_(parameters, threshold)
        optimizer.step()
        schedule.step()
    return 1e3 * (time.process_time() - started) / steps


def endless(samples: Any, size: int) -> Iterator[Any]:
    """Shuffled batches for ever."""
    while True:
        for index in torch.randperm(len(samples)).split(size):
            yield samples.batch(index)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Training says its lines to nobody."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
