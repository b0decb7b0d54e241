"""Configs that Hydra cannot find as files: numbers as options, encoders by modality, preferences.

One config source, ``mmrun://``, serves three things to Hydra's own composition:

- ``clip/0.5`` and ``clip/value_0.1``: a law and its threshold in one choice (the law of a bare number is named in
  conf/numbers.yaml);
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


def split_number(group: str, option: str) -> tuple[str, float] | None:
    """(option, number) of a choice such as ``0.5`` or ``value_0.1``; None for any other."""
    if group not in number_groups():
        return None
    match = NUMBERED.fullmatch(option)
    if match is None:
        return None
    return match["option"] or number_groups()[group], float(
        match["number"].lower().replace(".inf", "inf")
    )


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
        """Only ``encoder/<modality>``: the numbers belong to a group of files."""
        parts = config_path.split("/")
        return len(parts) == 2 and parts[0] == ENCODER and parts[1] != ""

    def is_config(self, config_path: str) -> bool:
        """Whether this source serves the path."""
        return self._serve(config_path) is not None

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Encoders for a modality; numbers are not listed."""
        if self.is_group(config_path) and results_filter in (None, ObjectType.CONFIG):
            return sorted(options(ENCODER, preferred.get().config_dirs))
        return []

    def _serve(self, config_path: str) -> dict[str, Any] | None:
        if config_path == "preferred":
            choices = preferred.get().choices
            return {"defaults": [{f"/{group}": option} for group, option in choices.items()]}
        dirs = preferred.get().config_dirs
        match config_path.removesuffix(".yaml").split("/"):
            case [group, option] if (numbered := split_number(group, option)) is not None:
                law, number = numbered
                known = options(group, dirs)
                if law in known and option not in known:  # a file of that name is what is meant
                    return {"defaults": [law, "_self_"], "threshold": number}
            case [group, _, option] if group == ENCODER:
                if option in options(ENCODER, dirs):
                    return {"defaults": [f"/{ENCODER}/{option}@_here_"]}
            case _:
                pass
        return None


def register() -> None:
    """Make ``mmrun://`` known to Hydra, once per process."""
    Plugins.instance().register(MmrunSource)
