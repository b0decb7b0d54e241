"""The clip group of a point: words under ``scopes`` and in ``laws`` become nodes of laws, thresholds are looked at.

A law is named in words, as after ``clip=``: ``value``, ``value_0.1``, ``norm_p90``, ``0.5``; or as a mapping, ``{law: value,
threshold: 0.1}``. In ``clip.scopes`` a mapping without a law starts from the point's own. What comes out are nodes of
laws alone, the same for every way to say the same: without the settings of conf/clipping.yaml, which are the whole's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from functools import cache, lru_cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mmrun.compose.calibration import RecordedNorms, calibrate
from mmrun.compose.groups import compose_groups, naming_the_file
from mmrun.compose.overrides import hydra_word, unknown_option
from mmrun.compose.values import SCOPES, kept_type
from mmrun.errors import UserError, nearest
from mmrun.options import common, options
from mmrun.sources import percentile, split_threshold
from mmrun.spec import RESERVED_SCOPES

CLIP, OFF = "clip", "none"
LAW = "law"  # key of a mapping that names the law which the other keys are knobs of
LAWS = "laws"  # the laws of a chain, the last of which takes the chain's threshold
LAST = "The last law takes the threshold of the chain, as in clip=chain_0.5."


def finish_clip(
    config: dict[str, Any], option: str, dirs: tuple[str, ...], recorded: RecordedNorms
) -> None:
    """Resolve the clip group of a resolved config in place.

    Args:
        config: the whole point's; its dataset and ``outputs`` are finished.
        option: of the group, as it was chosen.
        dirs: folders of the user's own configs.
        recorded: where ``clip.calibrate_from`` reads.

    Raises:
        UserError: no such scope, law or knob; a threshold that is none; a run that no threshold can be found from.
    """
    clip = config[CLIP]
    if not isinstance(clip, dict):
        raise UserError("clip is a mapping", given=f"clip: {clip}", remedy="Write clip=OPTION.")
    split = None if option in options(CLIP, dirs) else split_threshold(CLIP, option)
    if split and "threshold" not in _node_of(split[0], dirs):
        raise _no_threshold(split[0], f"{CLIP}={option}")
    scopes = clip.get(SCOPES) or {}
    if not isinstance(scopes, dict):
        raise UserError(
            "clip.scopes is a mapping of scopes to laws",
            given=f"clip.scopes={hydra_word(scopes)}",
            remedy="Write e.g. clip.scopes.audio=value_0.1.",
        )
    if not scopes and LAWS not in clip and clip.get("calibrate_from") is None:
        _check_threshold(clip, CLIP)
        return
    use = config["dataset"]["use"]
    laws = _Laws(config, dirs)
    own = laws.finished({k: v for k, v in clip.items() if k not in shared_knobs()}, CLIP)
    clip |= own
    for scope in scopes:
        known = [*use, *RESERVED_SCOPES]
        if scope not in known:
            raise UserError(
                f"there is no scope {scope}",
                given=f"clip.scopes.{scope}",
                remedy=nearest(scope, known),
            )
    clip[SCOPES] = {
        scope: laws.node(entry, f"clip.scopes.{scope}", own) for scope, entry in scopes.items()
    }
    if clip["calibrate_from"] is not None:
        calibrate(config, own, recorded)


@cache
def shared_knobs() -> frozenset[str]:
    """Names of the settings that every option of clip has beside its law's."""
    path = common(CLIP)
    assert path is not None
    return frozenset(map(str, OmegaConf.load(path)))


class _Laws:
    """Words and mappings -> nodes of laws.

    Args:
        config: the point's, resolved; what an option's ``${...}`` refers to.
        dirs: folders of the user's own configs.
    """

    def __init__(self, config: dict[str, Any], dirs: tuple[str, ...]) -> None:
        self.config = config
        self.dirs = dirs

    def node(self, entry: Any, key: str, own: dict[str, Any] | None = None) -> dict[str, Any]:
        """The node of one law.

        Args:
            entry: a word or a mapping.
            key: where it stands.
            own: what a mapping without a law starts from; None where it has to name one.
        """
        if not isinstance(entry, dict):
            return self.finished(self._of_word(entry, key), key)
        knobs = dict(entry)
        if "_target_" in knobs:
            node = self._of_target(knobs, key)
        elif LAW in knobs:
            node = self._of_word(knobs.pop(LAW), f"{key}.{LAW}")
        elif own is None:
            raise UserError(
                f"{key} names no law",
                given=hydra_word(entry),
                remedy="Write e.g. {law: value, threshold: 0.1}.",
            )
        else:
            node = deepcopy(own)
        for name, value in knobs.items():
            if name != "_target_":
                self._check_knob(name, node, entry, key)
                node[name] = kept_type(node[name], value, key)
        return self.finished(node, key)

    def finished(self, node: dict[str, Any], key: str) -> dict[str, Any]:
        """The node with its threshold checked, and the laws of a chain resolved."""
        _check_threshold(node, key)
        if LAWS in node:
            node[LAWS] = self._links(node[LAWS], f"{key}.{LAWS}")
        return node

    def _links(self, entries: Any, key: str) -> list[dict[str, Any]]:
        if not isinstance(entries, list) or not entries:
            raise UserError(
                f"{key} is a list of laws",
                given=hydra_word(entries),
                remedy="Write e.g. [centralize,norm].",
            )
        links = [self.node(entry, f"{key}[{k}]") for k, entry in enumerate(entries)]
        off = self._option(OFF)["_target_"]
        for link, entry in zip(links, entries, strict=True):
            if LAWS in link or link["_target_"] == off:
                problem = (
                    "a chain in a chain" if LAWS in link else "none in a chain changes nothing"
                )
                raise UserError(
                    problem, given=f"{key}: {hydra_word(entry)}", remedy="Leave it out."
                )
        if "threshold" not in links[-1]:
            raise UserError(
                "the last law of a chain has a threshold, and this one has none",
                given=f"{key}: {hydra_word(entries[-1])}",
                remedy="Put it earlier, as in [centralize,norm].",
            )
        if self._states_threshold(entries[-1]):
            raise UserError(
                "the last law of a chain has no threshold of its own",
                given=f"{key}: {hydra_word(entries[-1])}",
                remedy=LAST,
            )
        links[-1].pop("threshold", None)
        return links

    def _states_threshold(self, entry: Any) -> bool:
        """Whether a law comes with its own threshold, in its word or as a knob."""
        if isinstance(entry, dict):
            return "threshold" in entry or (LAW in entry and self._states_threshold(entry[LAW]))
        return str(entry) not in options(CLIP, self.dirs) and bool(
            split_threshold(CLIP, str(entry))
        )

    def _of_word(self, word: Any, key: str) -> dict[str, Any]:
        """The node of ``value``, ``value_0.1``, ``0.5``, ``norm_p90``."""
        if isinstance(word, bool) or not isinstance(word, str | int | float):
            raise UserError(
                f"{key} names a law",
                given=f"{key}={hydra_word(word)}",
                remedy="Write e.g. value_0.1, or none for a law that does nothing.",
            )
        text, known = str(word), options(CLIP, self.dirs)
        split = None if text in known else split_threshold(CLIP, text)
        option = split[0] if split else text
        if option not in known:
            raise unknown_option(CLIP, text, f"{key}={text}", self.dirs)
        node = self._option(option)
        if split:
            if "threshold" not in node:
                raise _no_threshold(option, f"{key}={text}")
            node["threshold"] = split[1]
        return node

    def _of_target(self, entry: Mapping[str, Any], key: str) -> dict[str, Any]:
        """The node of a law by its class, with the knobs that its option has; of a class without an option, as it is."""
        line = re.compile(rf"^_target_: *{re.escape(str(entry['_target_']))}\s*(#|$)", re.MULTILINE)
        if LAW in entry:
            raise UserError(
                f"{key} names its law twice",
                given=hydra_word(dict(entry)),
                remedy="Once is enough.",
            )
        for option, path in options(CLIP, self.dirs).items():
            if line.search(path.read_text(encoding="utf-8")):
                return self._option(option)
        return dict(entry)

    def _option(self, option: str) -> dict[str, Any]:
        """The law's own knobs under an option, resolved in the point's config."""
        node = _node_of(option, self.dirs)
        if "${" not in str(node):
            return deepcopy(node)
        whole = OmegaConf.create({**self.config, CLIP: node})
        resolved = OmegaConf.to_container(whole[CLIP], resolve=True)
        assert isinstance(resolved, dict)
        return {str(name): value for name, value in resolved.items()}

    def _check_knob(self, name: Any, node: dict[str, Any], entry: Any, key: str) -> None:
        if name in node:
            return
        if name in shared_knobs():
            raise UserError(
                f"{name} is one for all scopes",
                given=f"{key}.{name}",
                remedy=f"Write clip.{name}=VALUE.",
            )
        remedy = nearest(str(name), [LAW, *(each for each in node if each[0] != "_")])
        if "threshold" not in node and isinstance(entry, dict) and LAW not in entry:
            remedy = (
                f"A scope without a law of its own starts from that of clip=, which has no threshold: "
                f"choose one with {key}.{LAW}=OPTION."
            )
        raise UserError(f"{key} has no key {name}", given=f"{key}.{name}", remedy=remedy)


def _no_threshold(option: str, given: str) -> UserError:
    return UserError(f"{option} has no threshold", given=given, remedy=f"Write {option}.")


@naming_the_file()
@lru_cache(maxsize=256)
def _node_of(option: str, dirs: tuple[str, ...]) -> dict[str, Any]:
    """The law's own knobs under an option, not resolved; a file without a defaults list needs no composing (0.1 s)."""
    loaded = OmegaConf.load(options(CLIP, dirs)[option])
    if not isinstance(loaded, DictConfig) or "defaults" in loaded:
        loaded = compose_groups((f"{CLIP}={option}",), (), dirs)[0][CLIP]
    node = OmegaConf.to_container(loaded, resolve=False)
    assert isinstance(node, dict)
    return {str(name): value for name, value in node.items() if name not in shared_knobs()}


def _check_threshold(node: dict[str, Any], key: str) -> None:
    """A threshold in words is a percentile, spelled in one way."""
    threshold = node.get("threshold")
    if not isinstance(threshold, str):
        return
    wanted = percentile(threshold)
    if wanted is None:
        raise UserError(
            f"{key}.threshold is a number, or a percentile such as p90",
            given=f"{key}.threshold={threshold}",
            remedy="Percentiles lie above 0 and go up to 100: p50, p99.9, p100.",
        )
    node["threshold"] = f"p{wanted:.15g}"
