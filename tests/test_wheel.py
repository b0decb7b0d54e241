"""A wheel built from the checkout works in an empty environment outside it, also with a user's own project.

The environment has mmrun from the wheel alone; what mmrun depends on is lent by the environment that runs the tests,
through a path file, which brings modules along but no editable mmrun. Nothing here needs a network but the slow test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.running import CONF, PACKAGE, ROOT, mmrun, record_of, run_python, the_run

PROJECT = {
    "conf/fusion/mine.yaml": "# The largest of the projected features\n_target_: myfusion.Fusion\ndim: 16\n",
    "myfusion.py": """\
import torch
from torch import nn

from mmrun import fusion


class Fusion(fusion.Fusion):
    def __init__(self, dims, *, dim=8):
        super().__init__(dims)
        self.projections = nn.ModuleDict({name: nn.Linear(n, dim) for name, n in self.dims.items()})
        self.dim = dim

    def forward(self, tokens):
        there = torch.stack([tokens[name].mask.any(1) for name in self.modalities])
        x = torch.stack([self.projections[name](tokens[name].pooled) for name in self.modalities])
        return x.masked_fill(~there[..., None], -1e9).amax(0)
""",
}
QUICK = ("dataset=synthetic", "trainer=smoke", "logger=none")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built as pip builds it but in this environment."""
    folder = tmp_path_factory.mktemp("dist")
    done = pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, ROOT)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel in it, and its dependencies lent."""
    folder = empty_environment(tmp_path_factory.mktemp("environment") / "with space")
    python = folder / "bin" / "python"
    done = pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    assert done.returncode == 0, done.stderr
    lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "lent.pth").write_text("\n".join(sorted(lent)) + "\n")
    return folder


@pytest.fixture
def project() -> str:
    """A user's project beside the working directory's runs; its folder of configs, relative and with a space."""
    for name, text in PROJECT.items():
        path = Path("my project") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return "my project/conf"


def empty_environment(folder: Path) -> Path:
    venv.create(folder, symlinks=True, with_pip=False)
    return folder


def pip(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "pip", "--disable-pip-version-check", "-q", *map(str, words))


def installed(environment: Path, *words: str, code: int = 0, program: str = "mmrun") -> str:
    """What a command of the environment says, stdout and stderr; the checkout is out of its sight."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "MMRUN_COMMAND")
    assert not Path.cwd().is_relative_to(ROOT)
    done = subprocess.run(
        [environment / "bin" / program, *words],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name not in hidden},
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def files_below(folder: Path, name: str) -> set[str]:
    """What a distribution has of a folder of ours."""
    return {
        f"{name}/{path.relative_to(folder).as_posix()}"
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_the_package_its_configs_and_nothing_else(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    about = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    assert names - about == files_below(PACKAGE, "mmrun") | files_below(CONF, "mmrun/conf")
    assert "mmrun/conf/config.yaml" in names
    assert {name.split("/", 1)[1] for name in about} == {
        "METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE",
    }  # fmt: skip


def test_the_source_distribution_makes_the_same_wheel(wheel: Path, tmp_path: Path):
    command = f"import os; os.chdir({str(ROOT)!r}); from hatchling.build import build_sdist as b; b({str(tmp_path)!r})"
    done = run_python("-c", command)
    assert done.returncode == 0, done.stderr
    (packed,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())
    for name in ("LICENSE", "README.md", "constraints.txt", "scripts/setup", "tests/conftest.py"):
        assert (unpacked / name).is_file(), name
    assert not {"outputs", ".venv", ".git", "dist"} & {path.name for path in unpacked.iterdir()}
    done = pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path, unpacked)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(tmp_path / wheel.name) as other:
        assert one.namelist() == other.namelist()


def test_the_environment_has_the_wheel_s_mmrun(environment: Path):
    where = installed(environment, "-c", "import mmrun; print(mmrun.__file__)", program="python")
    assert Path(where.strip()).is_relative_to(environment)
    version = "import importlib.metadata as m; print(m.distribution('mmrun').locate_file(''))"
    where = installed(environment, "-c", version, program="python")
    assert Path(where.strip()).is_relative_to(environment)


def test_configs_travel_inside(environment: Path):
    assert installed(environment, "--version").startswith("mmrun ")
    assert installed(environment, "-m", "mmrun", "--version", program="python") == installed(
        environment, "--version"
    )
    assert installed(environment, "list") == mmrun("list").stdout
    assert installed(environment, "train", "--cfg", "job") == mmrun("train", "--cfg", "job").stdout


@pytest.mark.trains
def test_a_user_s_project_trains_evaluates_predicts_and_resumes(environment: Path, project: str):
    own = ("--config-dir", project)
    assert "mine             The largest" in installed(environment, "list", "fusion", *own)
    said = installed(environment, "train", *own, "fusion=mine", *QUICK, "trainer.checkpoint=both")
    assert "finished by max_steps after 2 steps" in said
    run = the_run()
    record = record_of(run)
    assert record["config_dirs"] == [str(Path(project).resolve())]
    assert record["config"]["fusion"] == {"_target_": "myfusion.Fusion", "dim": 16}
    assert record["git"] == {"commit": None, "dirty": None}
    assert not (run / "code.diff").exists()

    assert f"--config-dir '{Path(project).resolve()}' fusion=mine" in installed(environment, "show")
    assert "test/accuracy" in installed(environment, "eval", "last", *own, "missing.test_rate=0.3")
    Path("new").mkdir()
    for name in record["config"]["dataset"]["modalities"]:
        np.save(f"new/{name}.npy", np.zeros((4, 16), dtype=np.float32))
    words = ("predict", "last", "--input", "new", "--output", "scores.csv")
    assert "4 predictions" in installed(environment, *words, *own)

    before = (run / "run.json").read_bytes()
    refused = installed(environment, "resume", "last", "trainer.max_steps=4", code=2)
    assert "add --trust myfusion or the --config-dir" in refused
    assert (run / "run.json").read_bytes() == before
    said = installed(environment, "resume", "last", "trainer.max_steps=4", *own)
    assert "finished by max_steps after 4 steps" in said
    assert (record_of(run)["steps"], record_of(run)["status"]) == (4, "finished")


@pytest.mark.trains
def test_a_user_s_project_sweeps_and_trains_no_point_twice(environment: Path, project: str):
    words = ("--config-dir", project, "fusion=mine,concat", "seeds=2", *QUICK, "sweep=mine")
    installed(environment, "train", "-m", *words)
    sweep = Path("outputs/mine")
    assert (sweep / "sweep.json").is_file()
    records = {path: path.read_bytes() for path in sweep.glob("*/run.json")}
    points = [record_of(path.parent) for path in records]
    assert [point["status"] for point in points] == ["finished"] * 4
    assert {(point["choices"]["fusion"], point["seed"]) for point in points} == {
        (fusion, seed) for fusion in ("mine", "concat") for seed in (0, 1)
    }
    installed(environment, "train", "-m", *words)
    assert {path: path.read_bytes() for path in sweep.glob("*/run.json")} == records


@pytest.mark.slow
@pytest.mark.trains
def test_the_wheel_brings_all_it_needs(wheel: Path, project: str):
    """In a truly empty environment, by pip and the pinned versions: needs a network, or a mirror of its own."""
    environment = empty_environment(Path("environment").resolve())
    python = environment / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            python,
            "install",
            "-q",
            "-c",
            constraints,
            wheel,
        ],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "mmrun can work here" in installed(environment, "doctor")
    words = ("fusion=mine", "dataset=synthetic", "logger=none", "trainer.max_epochs=1")
    installed(environment, "train", "--config-dir", project, *words, "trainer=ddp")
    assert record_of(the_run())["status"] == "finished"
    shutil.rmtree(environment)  # some hundreds of megabytes that pytest would keep
