"""What becomes of a state when a law is called with other parameters than before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrun.clip.layout import Layout
from mmrun.errors import UserError


def carried(state: Mapping[str, Any], old: Layout, new: Layout) -> dict[str, Any]:
    """A state of ``old`` parameters as one of ``new`` ones.

    A parameter that is still there keeps what is its own, also under another name; a new one takes up what an old
    one of its name leaves, unless that name is only a position in a list.

    Raises:
        UserError: none of them is still there.
    """
    name_of = dict(zip(map(id, new.parameters), new.names, strict=True))
    kept = [id(p) in name_of for p in old.parameters]
    if old.parameters and not any(kept):
        raise UserError(
            "this clip law has learnt from other parameters",
            given=f"{len(new.parameters)} parameters, none of which it knows",
            remedy="Use a law for each optimizer, or give it both at once: {'image': ..., 'text': ...}.",
        )
    names: dict[str, str | None] = {
        name: name_of.get(id(p)) for name, p in zip(old.names, old.parameters, strict=True)
    }
    free = {name for name in new.names if not name.rpartition("/")[2].isdigit()}
    free -= set(names.values())
    names = {name: to or (name if name in free else None) for name, to in names.items()}
    return _renamed(state, names)


def _renamed(state: Mapping[str, Any], names: Mapping[str, str | None]) -> dict[str, Any]:
    """Keys renamed at every depth; those whose new name is None left out."""
    return {
        to: _renamed(value, names) if isinstance(value, Mapping) else value
        for key, value in state.items()
        if (to := names.get(key, key)) is not None
    }
