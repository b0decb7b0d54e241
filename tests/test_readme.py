"""Every command and Python example of the README and of docs/ runs as it stands there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrun.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}

# What makes a command quick without changing what it says: appended, so that it could also override.
QUICK = ["trainer=smoke", "logger=none"]
CLUSTERS = {"launcher=ray", "launcher=slurm"}
KEPT = ["trainer.checkpoint=both", "trainer.max_epochs=1", "trainer.limit_train_batches=1"]


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    texts = [README, *DOCS.values()]
    lines = "".join(block for text in texts for block in blocks("bash", text)).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def write_arrays(root: Path, modalities: dict[str, tuple[int, ...]]) -> None:
    random = np.random.default_rng(0)
    for split, n in (("train", 60), ("test", 20)):
        np.save(_made(root) / f"{split}_labels.npy", np.arange(n) % 10)
        for name, shape in modalities.items():
            data = random.normal(size=(n, *shape)).astype(np.float32)
            np.save(_made(root / name) / f"{split}_data.npy", data)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_every_command_is_one_of_ours_or_a_script():
    found = commands()
    assert len(found) > 12
    assert {words[0] for words in found} == {"scripts/mmrun", "scripts/test", "mmrun"}
    assert all((ROOT / words[0]).exists() for words in found if "/" in words[0])


@pytest.mark.trains
def test_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    write_arrays(tmp_path / "data/mine", {"left": (1, 8, 8), "right": (5,)})
    write_arrays(tmp_path / "data/avmnist", {"image": (784,), "audio": (16, 12)})
    assert main(["train", "-m", *QUICK, "launcher=inline", "clip=none,1"]) == 0  # the last sweep
    assert main(["train", *KEPT, "logger=none"]) == 0  # what resume, show and eval find as "last"
    ran = 0
    # Trains last: "last" must stay the run that kept its checkpoints.
    for words in sorted(commands(), key=lambda words: words[1:2] == ["train"]):
        verb = words[1] if words[0] in ("mmrun", "scripts/mmrun") else None
        if verb is None or verb == "doctor":
            continue
        quick = QUICK if verb == "train" and "--cfg" not in words else []
        if CLUSTERS & set(words):  # tests/launch trains on real ones
            quick = ["--dry-run"]
        if "sweeper=optuna" in words:
            words = [word for word in words if not word.startswith("sweeper.trials=")]
            quick = [*QUICK, "sweeper.trials=2"]
        code = main([*words[1:], *quick])
        out, err = capsys.readouterr()
        assert code == 0, f"{shlex.join(words)} exited {code}\n{out}\n{err}"
        assert out.strip(), shlex.join(words)
        ran += 1
    assert ran > 12


@pytest.mark.trains
def test_the_synergistic_example_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An additive model stays at 1/2 there."""
    monkeypatch.chdir(tmp_path)
    (words,) = [w for w in commands() if "dataset.interaction=synergistic" in w]
    assert main([*words[1:], "logger=none"]) == 0
    (record,) = Path("outputs").glob("*/run.json")
    assert json.loads(record.read_text())["test"]["test/accuracy"] > 0.7


def test_python_example_clips():
    (example,) = blocks("python")
    torch.manual_seed(0)
    image, text = torch.nn.Linear(3, 2), torch.nn.Linear(4, 2)
    parameters = [*image.parameters(), *text.parameters()]
    loss = 100 * (image(torch.ones(5, 3)).square().sum() + text(torch.ones(5, 4)).square().sum())
    names = {
        "image": image,
        "text": text,
        "loss": loss,
        "optimizer": torch.optim.SGD(parameters, lr=0.0),
    }
    exec(example, names)
    # Two modalities share a total of 0.5: each is cut to 0.5 / sqrt(2), together 0.5.
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    assert norm.item() == pytest.approx(0.5, rel=1e-5)


def test_docs_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    examples = [block for text in DOCS.values() for block in blocks("python", text)]
    assert examples
    for example in examples:
        exec(example, {})
    assert torch.load("clip.pt", weights_only=True)["steps"] == 1


def test_docs_name_every_law():
    """And no other."""
    named = set(
        re.findall(
            r"`(\w+)`", "".join(re.findall(r"^\| (.*?) \|", DOCS["clipping.md"], re.MULTILINE))
        )
    )
    assert named | {"none"} == {path.stem for path in (ROOT / "conf/clip").glob("*.yaml")}


def test_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_readme_holds_no_unfilled_place():
    assert "@@" not in README
