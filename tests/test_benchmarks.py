"""``scripts/bench clip`` on a small model: what it finds, under the names that are looked for."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("pairs", "clip"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return import_module("clip")


def test_laws_are_timed_against_torch(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    laws = [law for law in ("none", "norm", "value", "agc", "autoclip") if law in bench.options()]
    words = ["--quick", "--rounds", "1", "--sizes", "10K", "--only", *laws]
    bench.main([*words, "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    for law in [*laws, "engine/norm"]:
        its = found[f"{law}/10K"]
        assert its["min"] <= its["median"] <= its["max"]
        assert its["touched"] >= (1 if law == "none" else 2), "a law reads, or reads and writes"
        assert found[f"{law}/10K over clip_grad_norm_/10K"]["median"] > 0
    assert "value/10K over clip_grad_value_/10K" in found
    assert "agc/10K over norm/10K" in found or "agc" not in laws
    table = capsys.readouterr().out.splitlines()
    assert len([line for line in table if line.startswith("norm/10K ")]) == 1
    assert max(map(len, table[1:])) <= 100


def test_bytes_are_those_of_the_operations(bench: Any):
    """1 read for a norm, 1 read and 1 write for a multiplication: 3 B, and torch's two clamps 4 B."""
    bound = bench.parameters("10K")
    groups = bench.groups(["value"], bound)
    steps = {name: case.step for group in groups for name, case in group.items()}
    size = sum(4 * p.numel() for named in bound.values() for p in named.values())
    assert bench.counted(steps["clip_grad_norm_"]) / size == pytest.approx(3, rel=0.02)
    assert bench.counted(steps["clip_grad_value_"]) / size == pytest.approx(4, rel=0.02)
    assert bench.counted(steps["bare clamp_"]) / size == pytest.approx(2, rel=0.02)
