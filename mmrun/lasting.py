"""A terminal, or what stands for one, that may go while something is still at work: the work goes on, unheard."""

from __future__ import annotations

from rich.console import Console

from mmrun.exits import unheard


class LastingConsole(Console):
    """A console whose reader may go (``mmrun train | head``)."""

    def on_broken_pipe(self) -> None:
        """Be quiet from now on, where rich would end the process."""
        self.quiet = True
        unheard()
