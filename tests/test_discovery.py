"""Everything in conf/ and in the packages of options is found, described, composed and built; pairs are trained.

``problems`` looks at folders and texts alone, so that it can be pointed at a copy with mistakes in it.
"""

from __future__ import annotations

import ast
import importlib
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mmrun import compose
from mmrun.build import build
from mmrun.errors import UserError
from mmrun.options import describe, groups, options
from mmrun.spec import KINDS
from tests.running import CONF, PACKAGE, column, fit, write_arrays

# Config group -> the package whose modules are its options.
PACKAGES = {
    "encoder": "encoders",
    "fusion": "fusion",
    "objective": "objectives",
    "clip": "clip",
    "balance": "balance",
    "missing": "missing",
    "diagnostics": "diagnostics",
    "dataset": "datasets",
}
SHAPES: dict[str, tuple[int, ...]] = {
    "image": (1, 8, 8),
    "spectrogram": (8, 9),
    "waveform": (128,),
    "text": (9,),
    "sequence": (9, 4),
    "vector": (6,),
    "frames": (3, 1, 8, 8),
}


def option_files(conf: Path) -> dict[str, dict[str, Path]]:
    """{group: {option: file}}, by looking."""
    return {
        folder.name: {
            path.stem: path for path in sorted(folder.iterdir()) if path.suffix == ".yaml"
        }
        for folder in sorted(conf.iterdir())
        if folder.is_dir() and any(folder.iterdir())  # git keeps no folder without files
    }


def target_of(conf: Path, group: str, option: str) -> str | None:
    """The ``_target_`` of an option, its own or that of the option it builds on."""
    node = yaml.safe_load((conf / group / f"{option}.yaml").read_text()) or {}
    if "_target_" in node:
        return node["_target_"]
    bases = [entry for entry in node.get("defaults", []) if entry != "_self_"]
    found = [target_of(conf, group, base) for base in bases if isinstance(base, str)]
    return next((target for target in found if target), None)


def imported_modules(package: Path) -> set[str]:
    """Dotted names that the modules below a package import, by their text."""
    found: set[str] = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
            elif isinstance(node, ast.Import):
                found |= {name.name for name in node.names}
    return found


def problems(conf: Path, package: Path) -> list[str]:
    """What is wrong with the options: one line each."""
    files = option_files(conf)
    wrong = [f"{group}: no options" for group, known in files.items() if not known]
    targets: set[str] = set()
    for group, known in files.items():
        for option, path in known.items():
            if len(describe(path).split()) < 2:
                wrong.append(f"{group}/{option}: no comment line that says what it is")
            target = target_of(conf, group, option)
            if target is not None:
                targets.add(target)
                wrong += [f"{group}/{option}: {w}" for w in wrong_target(package, group, target)]
            elif group in PACKAGES:
                wrong.append(f"{group}/{option}: no _target_")
    modules = {target.rsplit(".", 1)[0] for target in targets}
    imported = imported_modules(package)
    for group, folder in PACKAGES.items():
        for path in sorted((package / folder).glob("*.py")):
            name = f"mmrun.{folder}.{path.stem}"
            # mmrun.clip is a library as well: modules there may also serve the laws.
            helps = group == "clip" and name in imported
            if not path.stem.startswith("_") and name not in modules and not helps:
                wrong.append(f"{name}: no YAML names it")
    return wrong


def wrong_target(package: Path, group: str, target: str) -> Iterator[str]:
    module, _, name = target.rpartition(".")
    if not target.startswith("mmrun."):
        if not hasattr(importlib.import_module(module), name):
            yield f"{target} does not exist"
        return
    if group in PACKAGES and not module.startswith(f"mmrun.{PACKAGES[group]}."):
        yield f"{target} is outside mmrun/{PACKAGES[group]}"
    path = package.parent.joinpath(*module.split(".")).with_suffix(".py")
    if not path.is_file():
        yield f"{module} does not exist"
        return
    body = ast.parse(path.read_text()).body
    if name not in {n.name for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef)}:
        yield f"{module} has no {name}"


def test_no_problems():
    assert problems(CONF, PACKAGE) == []
    assert set(PACKAGES) <= set(option_files(CONF))


def test_the_product_finds_the_same_options():
    assert groups() == sorted(option_files(CONF))
    for group, known in option_files(CONF).items():
        assert options(group) == known


@pytest.mark.parametrize(
    ("where", "text", "report"),
    [
        ("conf/fusion/bogus.yaml", "# A fusion\n_target_: mmrun.fusion.bogus.Bogus\n", "not exist"),
        ("conf/fusion/bogus.yaml", "# A fusion\n_target_: mmrun.fusion.sum.Bogus\n", "no Bogus"),
        ("conf/fusion/bogus.yaml", "# A fusion\n_target_: mmrun.clip.norm.Norm\n", "outside"),
        ("conf/fusion/bogus.yaml", "# A fusion\ndim: 3\n", "no _target_"),
        ("conf/fusion/bogus.yaml", "_target_: mmrun.fusion.sum.Sum\n", "no comment"),
        ("conf/fusion/bogus.yaml", "# Sum\n_target_: mmrun.fusion.sum.Sum\n", "no comment"),
        ("conf/optimizer/bogus.yaml", "# A law\n_target_: torch.optim.Bogus\n", "not exist"),
        ("mmrun/fusion/bogus.py", "class Bogus: ...\n", "no YAML names it"),
        ("mmrun/clip/bogus.py", "class Bogus: ...\n", "no YAML names it"),
        ("mmrun/encoders/bogus.py", "class Bogus: ...\n", "no YAML names it"),
        ("conf/bogus/.keep", "", "no options"),
    ],
)
def test_a_mistake_in_a_copy_is_reported(tmp_path: Path, where: str, text: str, report: str):
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(CONF, tmp_path / "conf", ignore=ignored)
    shutil.copytree(PACKAGE, tmp_path / "mmrun", ignore=ignored)
    path = tmp_path / where
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    (found,) = problems(tmp_path / "conf", tmp_path / "mmrun")
    assert "bogus" in found
    assert report in found


def test_a_module_in_another_module_s_yaml_only_is_reported(tmp_path: Path):
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf/fusion/sum.yaml").unlink()
    assert problems(tmp_path / "conf", PACKAGE) == ["mmrun.fusion.sum: no YAML names it"]


# Composing and building


def owner(group: str, option: str) -> Any:
    """The class that an option's ``_target_`` names."""
    target = target_of(CONF, group, option)
    assert target is not None
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def arrays_of(root: Path, kinds: tuple[str, ...] | list[str]) -> list[str]:
    """A folder with one modality of each kind, called after it, and the overrides that read it."""
    write_arrays(root, {kind: (kind, SHAPES[kind]) for kind in kinds})
    listed = ",".join(f"{kind}: {kind}" for kind in kinds)
    return ["dataset=arrays", f"dataset.root={root}", f"dataset.modalities={{{listed}}}"]


def overrides_for(group: str, option: str, root: Path) -> list[str]:
    """The rest of a command line under which an option makes sense."""
    if group == "encoder":
        kinds = owner(group, option).kinds
        return [*arrays_of(root, kinds), *(f"encoder/{kind}={option}" for kind in kinds)]
    if group == "dataset" and "root" in open_ends(option):
        given = modalities_of(option)
        if given:
            write_arrays(root, given, classes=10)
            return [f"dataset={option}", f"dataset.root={root}"]
        return arrays_of(root, ["image", "spectrogram"])
    if group == "objective" and "class" not in owner(group, option).targets:
        return ["dataset=linear", f"objective={option}"]
    small = [] if group == "dataset" else ["dataset=synthetic", "dataset.samples=100"]
    return [*small, f"{group}={option}"]


@cache
def open_ends(option: str) -> dict[str, Any]:
    """A dataset's YAML over those it builds on."""
    node = yaml.safe_load((CONF / "dataset" / f"{option}.yaml").read_text())
    merged: dict[str, Any] = {}
    for base in node.pop("defaults", []):
        merged |= {} if base == "_self_" else open_ends(base)
    return merged | node


def modalities_of(option: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{name: (kind, shape)} of files that a dataset's YAML describes."""
    found = {}
    for name, entry in open_ends(option)["modalities"].items():
        kind = entry["kind"] if isinstance(entry, dict) else entry
        shape = entry.get("shape", SHAPES[kind]) if isinstance(entry, dict) else SHAPES[kind]
        # avmnist lays spectrograms out as images without their channel, and images flat.
        found[name] = (kind, (int(torch.Size(shape).numel()),) if kind == "image" else shape)
        if kind == "image" and not isinstance(entry, dict):
            found[name] = (kind, shape[1:])
    return found


EVERY = [(g, o) for g, known in option_files(CONF).items() for o in known]


@pytest.mark.parametrize(("group", "option"), EVERY)
def test_every_option_composes_and_builds(group: str, option: str, tmp_path: Path):
    point = compose.point(overrides_for(group, option, tmp_path / "own"))
    if group == "encoder":
        chosen = [v for k, v in point.choices.items() if k.startswith("encoder/")]
        assert chosen == [option] * len(owner(group, option).kinds)
    elif group != "clip":  # a law's choice is written with its number: tests/test_compose.py
        assert point.choices[group] == option
    if point.config["trainer"]["accelerator"] == "gpu" and not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"no CUDA device here; use trainer=default"):
            build(point.config)
        return
    built = build(point.config)
    assert sum(p.numel() for p in built.module.parameters()) > 0
    wanted = target_of(CONF, group, option)
    made: dict[str, Any] = {
        "fusion": built.module.model.fusion,
        "objective": built.module.objective,
        "clip": built.module.pipeline.clipper.law,
        "balance": built.module.balance,
        "missing": built.module.model.missing,
        "diagnostics": built.diagnostics,
        "dataset": built.dataset,
        "optimizer": built.module.make_optimizer(),
    }
    if group in made:
        assert isinstance(made[group], owner(group, option)), wanted
    if group == "clip":
        assert built.module.pipeline.clipper.algorithm == option
    if group == "encoder":
        for encoder in built.module.model.encoders.values():
            assert isinstance(encoder, owner(group, option))
    assert not Path("outputs").exists()


def test_every_kind_has_a_sample_here_and_a_default_encoder_takes_its_kind():
    assert set(SHAPES) == set(KINDS)
    defaults = yaml.safe_load((CONF / "kinds.yaml").read_text())
    for kind, option in defaults.items():
        assert kind in owner("encoder", option).kinds


# Training two steps of each


def trained(record: dict[str, Any]) -> dict[str, float]:
    """{scope: largest raw gradient norm} of a run that took two steps."""
    assert (record["status"], record["steps"], record["stopped_by"]) == ("finished", 2, "max_steps")
    path = record["directory"] / "gradients.csv"
    return {scope: max(column(path, f"grad/norm/{scope}")) for scope in record["clip"]["scopes"]}


@pytest.mark.trains
@pytest.mark.parametrize("fusion", sorted(option_files(CONF)["fusion"]))
@pytest.mark.parametrize("objective", sorted(option_files(CONF)["objective"]))
def test_every_fusion_trains_under_every_objective(fusion: str, objective: str):
    by_class = "class" in owner("objective", objective).targets
    data = ["dataset=synthetic", "dataset.samples=200"] if by_class else ["dataset=linear"]
    encoders = [] if by_class else ["encoder/a=mlp", "encoder/b=mlp"]
    record = fit(
        *data,
        *encoders,
        f"fusion={fusion}",
        f"objective={objective}",
        "trainer=smoke",
        "logger=none",
    )
    norms = trained(record)
    assert {"a", "b", "objective"} <= norms.keys()
    assert min(norms.values()) > 0


@pytest.mark.trains
@pytest.mark.parametrize("encoder", sorted(option_files(CONF)["encoder"]))
def test_every_encoder_trains_on_every_kind_it_takes(encoder: str, tmp_path: Path):
    kinds = owner("encoder", encoder).kinds
    assert kinds
    rest = overrides_for("encoder", encoder, tmp_path / "own")
    record = fit(*rest, "trainer=smoke", "logger=none")
    norms = trained(record)
    learns = any(p.requires_grad for p in owner_parameters(record))
    assert set(norms) >= {"objective", *(kinds if learns else ())}
    assert min(norms.values()) > 0


def owner_parameters(record: dict[str, Any]) -> list[torch.nn.Parameter]:
    module = build(record["config"]).module
    return list(module.model.encoders.parameters())
