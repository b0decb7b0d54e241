"""Run directories come into being whole, keep their id, and lose nothing of the point."""

import math
import os
import threading
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import yaml

from mmrun import runs
from mmrun.errors import UserError
from mmrun.runs import layout, provenance, record
from mmrun.spec import Point


def make_point(**config) -> Point:
    return Point(
        config={"seed": 3, "clip": {"threshold": math.inf}, "lr": 1e-05, **config},
        choices={"fusion": "concat", "encoder/audio": "cnn", "clip": "none"},
        overrides=("fusion=concat", "name=a b"),
        name="clip=0.5,seed=3",
        config_dirs=("/home/me/my conf",),
    )


def test_create_and_point_round_trip(tmp_path):
    given = make_point()
    when = datetime(2026, 1, 2, 3, 4, 5)
    run = runs.create(given, tmp_path / "outputs", when=when)
    assert run.directory.name == f"2026-01-02_03-04-05_clip=0.5,seed=3_{given.id[:8]}"
    assert runs.point(run.directory) == given
    assert runs.point(run.directory).id == given.id == run.id
    seen = runs.read(run.directory)
    assert set(seen) == set(record.KEYS)
    assert (seen["status"], seen["seed"], seen["data_seed"]) == ("queued", 3, 3)
    assert yaml.safe_load(run.paths.config.read_text())["clip"]["threshold"] == math.inf
    assert yaml.safe_load(run.paths.overrides.read_text()) == list(given.overrides)
    assert sorted(p.name for p in (tmp_path / "outputs").iterdir()) == [run.directory.name]


def test_two_runs_of_one_second_are_two(tmp_path):
    when = datetime(2026, 1, 2, 3, 4, 5)
    made: list[Path] = []
    threads = [
        threading.Thread(
            target=lambda: made.append(runs.create(make_point(), tmp_path, when=when).directory)
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 8
    assert sorted(runs.list_runs(tmp_path)) == sorted(made)


def test_freeze_takes_over_its_own_point_only(tmp_path):
    directory = tmp_path / "sweep" / "a"
    first = runs.freeze(make_point(), directory, sweep="sweep")
    first.update(steps=7)
    again = runs.freeze(make_point(logger="none"), directory)
    assert again.record["steps"] == 7
    assert again.record["sweep"] == "sweep"
    with pytest.raises(UserError, match="another point"):
        runs.freeze(make_point(lr=2), directory)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="in use"):
        runs.freeze(make_point(), tmp_path / "mine")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError):
        runs.freeze(make_point(), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "x"
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    assert not list(tmp_path.rglob(".new-*"))


def test_freeze_says_what_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot create"):
        runs.freeze(make_point(), tmp_path / "file" / "run")


def test_freeze_race_has_one_winner_and_one_record(tmp_path):
    barrier, ids = threading.Barrier(6), []

    def work():
        barrier.wait()
        ids.append(runs.freeze(make_point(), tmp_path / "run").id)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ids == [make_point().id] * 6
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_update_merges_and_is_lossless(tmp_path):
    run = runs.freeze(make_point(), tmp_path / "run")
    run.update(test={"test/loss": math.nan, "test/accuracy": np.float32(0.5)}, seconds=math.inf)
    run.update(steps=np.int64(12), device=Path("cpu"))
    seen = runs.read(run.directory)
    assert math.isnan(seen["test"]["test/loss"])
    assert seen["test"]["test/accuracy"] == 0.5
    assert (seen["seconds"], seen["steps"], seen["device"]) == (math.inf, 12, "cpu")
    assert seen["config"] == make_point().config
    with pytest.raises(KeyError, match="Did you mean status"):
        run.update(statsu="finished")
    with pytest.raises(TypeError, match="cannot hold"):
        run.update(error=object())
    assert runs.read(run.directory)["seconds"] == math.inf
    assert run.record["error"] is None
    assert sorted(p.name for p in run.directory.iterdir()) == [".hydra", "run.json"]


def test_start_finish_reset(tmp_path):
    run = runs.freeze(make_point(), tmp_path / "run", sweep="s")
    run.start(device="cpu")
    seen = runs.read(run.directory)
    assert (seen["status"], seen["pid"], seen["device"]) == ("running", os.getpid(), "cpu")
    assert seen["versions"]["numpy"] == np.__version__
    assert set(seen["git"]) == {"commit", "dirty"}
    assert run.paths.diff.exists() == bool(seen["git"]["dirty"])
    run.finish("failed", error="ValueError: no")
    assert runs.read(run.directory)["error"] == "ValueError: no"
    assert runs.read(run.directory)["ended"] >= seen["started"]
    with pytest.raises(KeyError):
        run.finish("done")
    run.paths.checkpoints.mkdir()
    run.paths.last.write_text("x")
    run.paths.metrics.write_text("step\n")
    again = runs.Run.open(run.directory)
    again.reset()
    assert sorted(p.name for p in run.directory.iterdir()) == [".hydra", "run.json"]
    fresh = runs.read(run.directory)
    assert (fresh["status"], fresh["error"], fresh["sweep"]) == ("queued", None, "s")
    assert runs.point(run.directory) == make_point()


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("a/b c\td", "a_b_c_d"),
        ("..", "_."),
        ("-rf", "_rf"),
        ("", "run"),
        ("\0", "_"),
        ("ü" * 100, "ü" * 60),
        ("x" + "ü" * 100, "x" + "ü" * 59),
    ],
)
def test_slug(name, folder):
    assert layout.slug(name) == folder
    assert len(layout.slug(name).encode()) <= 120


def git(root: Path, *arguments: str) -> None:
    import subprocess

    identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", root, *identity, *arguments], check=True, capture_output=True)


def test_provenance_sees_changes_and_new_code(tmp_path):
    (tmp_path / "mmrun").mkdir()
    (tmp_path / "mmrun" / "a.py").write_text("a = 1\n")
    assert provenance.commit(tmp_path) == {"commit": None, "dirty": None}
    provenance.commit.cache_clear()
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "x")
    (tmp_path / "notes.txt").write_text("no code")
    clean = provenance.commit(tmp_path)
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "mmrun" / "new.py").write_text("b = 2\n")
    provenance.commit.cache_clear()
    assert provenance.commit(tmp_path)["dirty"] is True
    (tmp_path / "mmrun" / "a.py").write_text("a = 3\n")
    diff = provenance.code_diff(tmp_path)
    assert "+a = 3" in diff
    assert "+b = 2" in diff
    (tmp_path / "mmrun" / "a.py").write_text("x" * 50 + "\n" + "y = 1\n" * 400_000)
    cut = provenance.code_diff(tmp_path)
    assert len(cut) < provenance.DIFF_BYTES + 100
    assert cut.endswith("bytes\n")
    # A folder inside the checkout is not the checkout.
    assert provenance.commit(tmp_path / "mmrun")["commit"] is None
    provenance.commit.cache_clear()
