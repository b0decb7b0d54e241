"""Every objective of conf/objective: its YAML is its constructor's schema."""

from __future__ import annotations

from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest
import yaml

from mmrun.objectives import Objective

CONF = Path(__file__).parents[2] / "conf" / "objective"
OPTIONS = sorted(file.stem for file in CONF.glob("*.yaml"))


def test_discovery_finds_the_objectives():
    assert {"classification", "regression"} <= set(OPTIONS)


@pytest.mark.parametrize("option", OPTIONS)
def test_yaml_is_the_constructors_schema(option: str):
    text = (CONF / f"{option}.yaml").read_text()
    config = yaml.safe_load(text)
    module, name = config.pop("_target_").rsplit(".", 1)
    cls = getattr(import_module(module), name)
    assert text.startswith("# ")
    assert issubclass(cls, Objective)
    assert name.lower() == option.replace("_", "")
    assert set(cls.targets) <= {"class", "value", "none"}
    parameters = list(signature(cls).parameters.values())[3:]
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters)
    assert config == {p.name: p.default for p in parameters}
