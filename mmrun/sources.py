"""Configs that Hydra cannot find as files: numbers as options, encoders by modality, preferences.

One config source, ``mmrun://``, serves three things to Hydra's own composition:

- ``clip/0.5``, ``clip/value_0.1`` and ``clip/norm_p90``: a law and its threshold in one choice (the law of a bare
  threshold is named in conf/numbers.yaml); ``p90`` is the 90th percentile of the gradient norms;
- ``encoder/<modality>/<option>``: conf/encoder/<option>.yaml under the modality's own key, so that one folder of
  encoders serves every modality name;
- ``preferred``: the defaults that follow from the dataset, its objective and encoders. They depend on the command
  line, so ``compose`` hands them over through ``preferred``.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple

from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import OmegaConf

from mmrun.options import ENCODER, conf_dir, options

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|[+-]?\.?inf|nan"
NUMBERED = re.compile(rf"(?:(?P<option>[a-z][a-z0-9_]*)_)?(?P<number>{NUMBER})", re.IGNORECASE)
PERCENTILE = re.compile(r"(?:(?P<option>[a-z][a-z0-9_]*)_)?p(?P<number>\d+(?:\.\d+)?)")


class Preferred(NamedTuple):
    """Defaults that follow from the dataset: {group: option}, and where users' configs lie."""

    choices: dict[str, str | None]
    config_dirs: tuple[str, ...]


_NOTHING_PREFERRED = Preferred({}, ())
preferred: ContextVar[Preferred] = ContextVar("preferred", default=_NOTHING_PREFERRED)


@cache
def number_groups() -> dict[str, str]:
    """{group: option that a bare number of the group stands for}, from conf/numbers.yaml."""
    loaded = OmegaConf.to_container(OmegaConf.load(conf_dir() / "numbers.yaml"))
    assert isinstance(loaded, dict)
    return {str(group): str(option) for group, option in loaded.items()}


def split_threshold(group: str, option: str) -> tuple[str, float | str] | None:
    """(option, threshold) of a choice such as ``0.5``, ``value_0.1`` or ``p90``; None for any other.

    >>> split_threshold("clip", "value_0.1"), split_threshold("clip", "p90.0")
    (('value', 0.1), ('norm', 'p90'))
    """
    if group not in number_groups():
        return None
    bare = number_groups()[group]
    if match := NUMBERED.fullmatch(option):
        return match["option"] or bare, float(match["number"].lower().replace(".inf", "inf"))
    match = PERCENTILE.fullmatch(option)
    if match is None or not 0 < float(match["number"]) <= 100:
        return None
    return match["option"] or bare, f"p{float(match['number']):.15g}"


def percentile(threshold: object) -> float | None:
    """90.0 of ``p90``; None for anything else."""
    match = PERCENTILE.fullmatch(threshold) if isinstance(threshold, str) else None
    number = float(match["number"]) if match and not match["option"] else 0.0
    return number if 0 < number <= 100 else None


class MmrunSource(ConfigSource):
    """Serves ``mmrun://``: see the module's docstring."""

    @staticmethod
    def scheme() -> str:
        """The scheme under which conf/config.yaml names this source."""
        return "mmrun"

    def load_config(self, config_path: str) -> ConfigResult:
        """The config at a path, as a defaults list over files."""
        served = self._serve(config_path)
        if served is None:
            raise ConfigLoadError(f"Config not found: {config_path}")
        package = "_global_" if config_path == "preferred" else None
        return ConfigResult(
            provider=self.provider,
            path="mmrun://",
            config=OmegaConf.create(served),
            header={"package": package},
        )

    def available(self) -> bool:
        """Always."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Only ``encoder/<modality>``: the thresholds belong to a group of files."""
        parts = config_path.split("/")
        return len(parts) == 2 and parts[0] == ENCODER and parts[1] != ""

    def is_config(self, config_path: str) -> bool:
        """Whether this source serves the path."""
        return self._serve(config_path) is not None

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Encoders for a modality; thresholds are not listed."""
        if self.is_group(config_path) and results_filter in (None, ObjectType.CONFIG):
            return sorted(options(ENCODER, preferred.get().config_dirs))
        return []

    def _serve(self, config_path: str) -> dict[str, Any] | None:
        if config_path == "preferred":
            choices = preferred.get().choices
            return {"defaults": [{f"/{group}": option} for group, option in choices.items()]}
        dirs = preferred.get().config_dirs
        match config_path.removesuffix(".yaml").split("/"):
            case [group, option] if (split := split_threshold(group, option)) is not None:
                law, threshold = split
                known = options(group, dirs)
                if law in known and option not in known:  # a file of that name is what is meant
                    return {"defaults": [law, "_self_"], "threshold": threshold}
            case [group, _, option] if group == ENCODER:
                if option in options(ENCODER, dirs):
                    return {"defaults": [f"/{ENCODER}/{option}@_here_"]}
            case _:
                pass
        return None


def register() -> None:
    """Make ``mmrun://`` known to Hydra, once per process."""
    Plugins.instance().register(MmrunSource)
