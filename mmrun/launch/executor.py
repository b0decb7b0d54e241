"""The contract of executors: run the frozen point in this directory, somewhere."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrun.errors import UserError
from mmrun.signature import check
from mmrun.trust import check_targets


@dataclass(frozen=True, kw_only=True)
class Job:
    """A frozen point that is to be trained.

    Args:
        directory: its run directory.
        resume: whether to continue from its last checkpoint.
        trust: packages beside mmrun and torch.optim that its ``_target_`` may name.
    """

    directory: Path
    resume: bool = False
    trust: tuple[str, ...] = ()


class Executor(ABC):
    """Runs frozen points. The loop submits as many as there are slots, and polls until they have ended.

    Args:
        fail_fast: whether the first failure ends the sweep.
    """

    slots: int = 1

    def __init__(self, *, fail_fast: bool) -> None:
        self.fail_fast = fail_fast

    def prepare(self) -> None:  # noqa: B027 (most have nothing to get ready)
        """Get ready what every job needs; not called where there is nothing to do."""

    @abstractmethod
    def submit(self, job: Job, slot: int) -> Any:
        """Start a job in a free slot; a handle for it."""

    @abstractmethod
    def poll(self, handle: Any) -> bool:
        """Whether the job has ended, well or not."""

    @abstractmethod
    def cancel(self, handle: Any) -> None:
        """End a job now; its record says killed."""


def make_executor(node: Mapping[str, Any], trust: Collection[str] = ()) -> Executor:
    """The executor that the launcher group of a config names.

    Raises:
        UserError: none of ours or of the trusted packages, or settings that it does not take.
    """
    check_targets({"launcher": dict(node)}, trust)
    target, knobs = (
        str(node.get("_target_", "")),
        {k: v for k, v in node.items() if k != "_target_"},
    )
    module, _, name = target.rpartition(".")
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            "launcher._target_ cannot be loaded", given=target or "nothing", remedy=f"{error}."
        ) from error
    if not (isinstance(found, type) and issubclass(found, Executor)):
        raise UserError(
            "launcher._target_ is no Executor", given=target, remedy="See mmrun list launcher."
        )
    check(found, knobs, "launcher")
    return found(**knobs)
