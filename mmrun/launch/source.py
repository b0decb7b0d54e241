"""Where the points of a sweep come from: the contract, and the plainest of them, a list."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmrun.launch.plan import TO_DO, Planned


class Source(ABC):
    """Gives the loop points to train, one by one, and hears how they end."""

    @property
    @abstractmethod
    def total(self) -> int:
        """How many points there will be in all, as far as it can be said."""

    @property
    @abstractmethod
    def under_way(self) -> list[Planned]:
        """Points of earlier commands that somebody may be working on; ``held`` says of which that is so."""

    @abstractmethod
    def held(self, planned: Planned) -> None:
        """Somebody works on this one: it is not to be given, and how it ends is told as of the others."""

    @abstractmethod
    def next(self) -> Planned | None:
        """The next point, frozen; None where there is none now."""

    @property
    @abstractmethod
    def exhausted(self) -> bool:
        """Whether ``next`` will never give another one."""

    def ended(self, planned: Planned, record: Mapping[str, Any]) -> None:  # noqa: B027 (few want to know)
        """How a point has ended, after its last try."""

    @abstractmethod
    def rest(self) -> list[Planned]:
        """Those that are frozen and were not given: the sweep is cancelled, and no other ones will come."""

    def watch(self, running: Sequence[Planned]) -> list[Planned]:  # noqa: ARG002 (contract)
        """Those of the running points that are to be pruned now; asked about once a second."""
        return []


class Listed(Source):
    """Points that are known from the start, in their order.

    Args:
        points: frozen ones, to be trained or waited for.
    """

    def __init__(self, points: Iterable[Planned]) -> None:
        self._points = list(points)
        self._waiting = deque(each for each in self._points if each.action in TO_DO)

    @property
    def total(self) -> int:
        """All of the list."""
        return len(self._points)

    @property
    def under_way(self) -> list[Planned]:
        """Any of them."""
        return list(self._points)

    def held(self, planned: Planned) -> None:
        """It is not to be given."""
        if planned in self._waiting:
            self._waiting.remove(planned)

    def next(self) -> Planned | None:
        """The first that has not been given yet."""
        return self._waiting.popleft() if self._waiting else None

    @property
    def exhausted(self) -> bool:
        """Whether all were given."""
        return not self._waiting

    def rest(self) -> list[Planned]:
        """Those that were not given."""
        rest, self._waiting = list(self._waiting), deque[Planned]()
        return rest
