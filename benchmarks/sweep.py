"""A sweep of tiny trainings on two CPU slots against the same trainings in two bare loops, joblib, Ray and Hydra's basic launcher."""

from __future__ import annotations

import argparse
import importlib.util
import os
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pairs

from mmrun import compose

SLOTS = 2
WORDS = ("dataset=synthetic", "dataset.samples=1000", "logger=none", "trainer.checkpoint=none")


def main(words: list[str] | None = None) -> None:
    """Time the cases and print the table."""
    parser = pairs.parser(__doc__ or "", rounds=3)
    parser.add_argument("--points", type=int, default=200, help="trainings per case")
    parser.add_argument("--epochs", type=int, default=40, help="of each; 1 to 2 s by default")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    given = parser.parse_args(words)
    missing = {name for name in ("joblib", "ray") if importlib.util.find_spec(name) is None}
    chosen = [name for name in dict.fromkeys(["bare loops", *given.only]) if name not in missing]
    for name in missing & set(given.only):
        print(f"{name} is not installed: left out")  # noqa: T201 (its output)
    cases: dict[str, pairs.Case] = {
        name: lambda name=name: CASES[name](given.points, given.epochs) for name in chosen
    }
    costs = pairs.run(cases, rounds=given.rounds)
    baselines = {name: "bare loops" for name in chosen if name != "bare loops"}
    print(pairs.report(costs, unit="s", baselines=baselines, file=given.json))  # noqa: T201


# The same trainings, by different hands: wall time in s, from the command to its end


def bare_loops(points: int, epochs: int) -> float:
    """Two processes that have imported everything before the clock starts, and train half of the points each."""
    with tempfile.TemporaryDirectory() as folder:
        file = composed(folder, points, epochs)
        loops = [
            subprocess.Popen(
                [sys.executable, __file__, "--as", "loop", file, str(k)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment(),
            )
            for k in range(SLOTS)
        ]
        for each in loops:
            assert each.stdout is not None
            each.stdout.readline()
        began = time.monotonic()
        for each in loops:
            assert each.stdin is not None
            each.stdin.write(b"go\n")
            each.stdin.close()
        for each in loops:
            assert each.wait() == 0
        return checked(folder, points, time.monotonic() - began)


def mmrun(points: int, epochs: int) -> float:
    """The command ``mmrun train -m``."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["-m", "mmrun", "train", "-m", *overrides(folder, epochs), f"seeds={points}"]
        words += ["launcher=local", f"launcher.workers={SLOTS}", "launcher.gpus=[]"]
        return checked(folder, points, timed([sys.executable, *words]))


def with_joblib(points: int, epochs: int) -> float:
    """A script that composes the points and hands them to joblib's processes."""
    return script("joblib", points, epochs)


def with_ray(points: int, epochs: int) -> float:
    """A script that composes the points and hands them to a local Ray as tasks."""
    return script("ray", points, epochs)


def hydra_basic(points: int, epochs: int) -> float:
    """Hydra's own multirun: one after another in one process."""
    return script("basic", points, epochs)


CASES: dict[str, Any] = {
    "bare loops": bare_loops,
    "mmrun": mmrun,
    "joblib": with_joblib,
    "ray": with_ray,
    "hydra basic": hydra_basic,
}


def script(kind: str, points: int, epochs: int) -> float:
    """The wall time of this file as another program, composing included."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        file = composed(folder, points, epochs)
        words = [sys.executable, __file__, "--as", kind, file, str(points)]
        return checked(folder, points, timed(words) + time.monotonic() - began)


def overrides(folder: str, epochs: int) -> list[str]:
    """What every point is."""
    return [*WORDS, f"trainer.max_epochs={epochs}", f"outputs={folder}", "sweep=s", "clip=0.5"]


def composed(folder: str, points: int, epochs: int) -> str:
    """The points of the sweep, in a file."""
    sweep = compose.sweep([*overrides(folder, epochs), f"seeds={points}"])
    file = Path(folder) / "points.pickle"
    file.write_bytes(pickle.dumps(sweep.points))
    return str(file)


def timed(command: list[str]) -> float:
    """Seconds that a command takes."""
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment())
    return time.monotonic() - began


def environment() -> dict[str, str]:
    """One thread each, and this checkout."""
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "WANDB_MODE": "offline"}


def checked(folder: str, points: int, seconds: float) -> float:
    """The time, where every training came to its end."""
    from mmrun.runs import reader

    records = reader.read_all([Path(folder), Path(folder) / "s"]).values()
    finished = [record for record in records if record["status"] == "finished"]
    assert len(finished) == points, f"{len(finished)} of {points} finished"
    return seconds


# The programs


def train_one(file: str, number: int) -> None:
    """Train a point of the file into a folder of its own."""
    from mmrun.train import train

    point = pickle.loads(Path(file).read_bytes())[number]
    train(point, Path(file).parent / "s" / f"{number}", brief=True)


def program(kind: str, file: str, number: int) -> None:
    """What this file does as another program."""
    if kind == "loop":
        import mmrun.train  # noqa: F401

        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        for k in range(number, len(pickle.loads(Path(file).read_bytes())), SLOTS):
            train_one(file, k)
    elif kind == "joblib":
        from joblib import Parallel, delayed

        Parallel(n_jobs=SLOTS)(delayed(train_one)(file, k) for k in range(number))
    elif kind == "ray":
        import ray

        ray.init(
            num_cpus=SLOTS,
            include_dashboard=False,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )
        task = ray.remote(train_one)
        ray.get([task.remote(file, k) for k in range(number)])
        ray.shutdown()
    elif kind == "basic":
        import hydra

        folder = Path(file).parent / "hydra"
        sys.argv = [sys.argv[0], "-m", f"+k=range({number})", f"hydra.sweep.dir={folder}"]
        hydra.main(version_base="1.3")(lambda config: train_one(file, config.k))()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as"]:
        parser = argparse.ArgumentParser()
        parser.add_argument("--as", dest="kind")
        parser.add_argument("file")
        parser.add_argument("number", type=int)
        known = parser.parse_args()
        program(known.kind, known.file, known.number)
    else:
        main()
