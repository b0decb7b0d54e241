"""How tests build the laws of conf/clip: what a file says, the law's own knobs, the law."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mmrun.clip.law import Law
from tests.oracles.composed import members

CONF = Path(__file__).parents[2] / "conf"
OPTIONS = sorted(path.stem for path in (CONF / "clip").glob("*.yaml"))


def read(path: Path) -> dict[str, Any]:
    """A YAML file's content; ${seed}, which a law may take up from the run, is 0."""
    if not path.exists():
        return {}
    content = OmegaConf.load(path)
    root = OmegaConf.create({"seed": 0, "clip": content})
    resolved = OmegaConf.to_container(root)
    assert isinstance(resolved, dict)
    return {
        str(key): OmegaConf.select(root, f"clip.{key}") if value == "${seed}" else value
        for key, value in resolved["clip"].items()
    }


# The engine's knobs are the same for every law, and no law takes them.
COMMON = {"record_every": 1} | read(CONF / "clipping.yaml")
NO_KNOB = {"_target_", "defaults", *COMMON}


def config(option: str) -> dict[str, Any]:
    """What conf/clip/<option>.yaml says, with the knobs common to every law that it takes up."""
    return COMMON | read(CONF / "clip" / f"{option}.yaml")


def knobs(option: str, **overrides: Any) -> dict[str, Any]:
    """The law's own constructor arguments as conf/clip has them, with overrides."""
    given = {k: v for k, v in config(option).items() if k not in NO_KNOB}
    unknown = set(overrides) - set(given)
    assert not unknown, f"conf/clip/{option}.yaml has no {unknown}"
    return given | overrides


def build(option: str, **overrides: Any) -> Law:
    """The law of conf/clip/<option>.yaml, with overrides. A chain gets its members built, without a threshold."""
    module, name = config(option)["_target_"].rsplit(".", 1)
    arguments = knobs(option, **overrides)
    made = getattr(import_module(module), name)
    if "laws" in arguments:
        own = members(arguments["laws"], arguments["threshold"])
        return made(*(build(member, **its) for member, its in own))
    return made(**arguments)
