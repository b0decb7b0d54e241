"""How would one type the clip laws of a config? Nodes under clip.scopes and in clip.laws get their words.

A word is the option with its threshold, ``agc_0.01``. Other knobs stand behind it only where the runs have two
laws of one word: ``norm_0.05 (p=2)`` beside ``norm_0.05 (p=inf)``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from mmrun.spec import law_of

_TARGET, _THRESHOLD = "_target_", "threshold"


class Law(dict[str, Any]):
    """The node of a law, with its words; its knobs stay within reach of their keys."""

    words = ""

    def __str__(self) -> str:
        return self.words


def name_laws(clips: Iterable[dict[str, Any]]) -> None:
    """Put a Law in the place of each law's node in these clip configs, each by its words among them all."""
    found = [law for clip in clips for law in _placed(clip)]
    alike: dict[str, list[Law]] = {}
    for law in found:
        alike.setdefault(_word(law), []).append(law)
    for word, laws in alike.items():
        knobs = [
            knob for knob in dict.fromkeys(k for law in laws for k in law) if _differ(laws, knob)
        ]
        for law in laws:
            own = ", ".join(f"{knob}={spelled(law[knob])}" for knob in knobs if knob in law)
            law.words = f"{word} ({own})" if own else word


def spelled(value: Any) -> str:
    """A value as one would type it, the laws in it by their words."""
    if isinstance(value, list) and holds_law(value):
        return f"[{','.join(spelled(item) for item in cast('list[Any]', value))}]"
    if isinstance(value, str | Law):
        return str(value)
    if isinstance(value, float):
        return f"{value:.15g}"
    return json.dumps(value, sort_keys=True, default=str)


def holds_law(value: Any) -> bool:
    """Is it a law, or a list with one?"""
    if isinstance(value, list):
        return any(isinstance(item, Law) for item in cast("list[Any]", value))
    return isinstance(value, Law)


def _placed(clip: dict[str, Any]) -> Iterator[Law]:
    """The laws of a clip config, put in its place there; the members of a chain before the chain."""
    scopes, laws = clip.get("scopes"), clip.get("laws")
    places: list[tuple[Any, Any]] = []
    if isinstance(scopes, dict):
        places += [(scopes, scope) for scope in cast("dict[str, Any]", scopes)]
    if isinstance(laws, list):
        places += [(laws, index) for index in range(len(cast("list[Any]", laws)))]
    for parent, key in places:
        node = parent[key]
        if isinstance(node, dict) and _TARGET in node:
            law = parent[key] = Law(cast("dict[str, Any]", node))
            yield from _placed(law)
            yield law


def _word(law: Mapping[str, Any]) -> str:
    option = law_of(str(law[_TARGET]))
    return f"{option}_{spelled(law[_THRESHOLD])}" if _THRESHOLD in law else option


def _differ(laws: Iterable[Law], knob: str) -> bool:
    return len({_text(law[knob]) if knob in law else "" for law in laws}) > 1


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
