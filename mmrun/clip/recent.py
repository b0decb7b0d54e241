"""What was worked out lately, so that what changes at every step does not pile up."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Recent(OrderedDict[Key, Value]):
    """A dictionary of the ``most`` entries that were used last."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def get(self, key: Key) -> Value | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What is known of it; None where it is not, or not any more."""
        found = super().get(key)
        if found is not None:
            self.move_to_end(key)
        return found

    def __setitem__(self, key: Key, value: Value) -> None:
        super().__setitem__(key, value)
        while len(self) > self.most:
            self.popitem(last=False)

    def __reduce__(
        self,
    ) -> tuple[Any, ...]:  # copied and pickled as itself, not as what it derives from
        return type(self), (self.most,), None, None, iter(self.items())
