"""User modules beside --config-dir: where they are looked for, and what is said of one that cannot be used."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmrun import cli, user_code
from tests.running import SMALL, record_of, run_python, the_run

DDP = ("trainer=ddp", "trainer.max_epochs=1")
WORKING = """\
from mmrun.fusion import concat


class Fusion(concat.Concat):
    pass
"""


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Folders and modules of one test are not the next one's."""
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setattr(user_code, "added_to_path", [])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(Path.cwd())):
            del sys.modules[name]


def project(module: str, text: str, target: str = "") -> str:
    """A project's folder of configs with fusion=mine; its module, or none without a text."""
    conf = Path("project/conf/fusion")
    conf.mkdir(parents=True)
    (conf / "mine.yaml").write_text(f"# Mine\n_target_: {target or f'{module}.Fusion'}\n")
    if text:
        Path(f"project/{module}.py").write_text(text)
    return "project/conf"


def train(folder: str, *words: str) -> int:
    return cli.main(["train", "--config-dir", folder, "fusion=mine", *SMALL, *words])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('x = 1\nraise RuntimeError("no luck")\n', "broken_a.py line 2: RuntimeError: no luck"),
        ("def f(:\n", "broken_a.py line 1: SyntaxError: invalid syntax"),
        ("\nimport nothing_such\n", "broken_a.py line 2: ModuleNotFoundError: No module named"),
        ("import sys\nsys.exit(3)\n", "broken_a.py line 2: SystemExit: 3"),
        ("class Other:\n    pass\n", "broken_a.py has no Fusion. Available: Other."),
        ("class Fusion:\n    pass\n", "is no Fusion"),
        ("def Fusion(dims):\n    return None\n", "is no Fusion"),
        ("from mmrun.fusion import Fusion\n", "names something that its package has only imported"),
        (
            "import mmrun.fusion as f\n\n\nclass Fusion(f.Fusion):\n    pass\n",
            "without an implementation for abstract method 'forward'"
            if sys.version_info >= (3, 12)
            else "abstract method forward",
        ),
        ("", "No module named 'broken_a' is installed, nor in "),
    ],
)
def test_what_is_wrong_with_a_module_is_said_with_its_file(
    text: str, said: str, capsys: pytest.CaptureFixture[str]
):
    folder = project("broken_a", text)
    assert train(folder) == 2
    err = capsys.readouterr().err
    assert said in err, err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert not Path("outputs").exists()


@pytest.mark.parametrize("name", ["random", "torch", "mmrun"])
def test_a_module_with_a_taken_name_is_told_from_what_hides_it(
    name: str, capsys: pytest.CaptureFixture[str]
):
    folder = project(name, WORKING)
    assert train(folder) == 2
    err = capsys.readouterr().err
    assert f"{Path.cwd() / 'project' / name}.py is hidden by the {name} that is " in err


def test_a_folder_that_is_none_is_said_by_every_verb(capsys: pytest.CaptureFixture[str]):
    for words in (["train"], ["resume", "last"], ["eval", "last"], ["list"]):
        assert cli.main([*words, "--config-dir", "nowhere"]) == 2
        assert "--config-dir is no folder (given: nowhere)" in capsys.readouterr().err


@pytest.mark.trains
def test_ranks_find_the_user_s_modules_after_python_s_own():
    """The project has a random.py, and is the working directory: two ways in which it could come first."""
    folder = project("myfusion_in_ranks", WORKING)
    for place in (Path("project"), Path()):
        (place / "random.py").write_text("raise RuntimeError('not of the library')\n")
    start = (
        "import sys; from mmrun.cli import main; sys.exit(main())"  # as the script that pip makes
    )
    words = ["train", "--config-dir", folder, "fusion=mine", *SMALL, *DDP]
    done = run_python("-P", "-c", start, *words)
    assert done.returncode == 0, done.stderr
    assert record_of(the_run())["choices"]["trainer"] == "ddp"
