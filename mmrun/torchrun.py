"""torchrun as mmrun starts it: ``python -m mmrun.torchrun PID ...`` ends with the process PID that started it.

It says nothing of its own but which rank was killed: a rank that fails has told why.
"""

from __future__ import annotations

import logging
import signal
import sys

from mmrun.signals import end_with_parent


def main(words: list[str]) -> int:
    """Run torchrun with all words but the first, which is the pid; the exit code."""
    end_with_parent(int(words[0]))
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    logging.disable(logging.CRITICAL)
    try:
        torchrun(words[1:])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            sys.stderr.write(f"mmrun: rank {rank} was ended by {name}\n")
        return 1
    except SignalException as error:
        return 128 + error.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
