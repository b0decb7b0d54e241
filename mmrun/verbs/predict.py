"""``mmrun predict``: use a finished run on new samples."""

from __future__ import annotations

from pathlib import Path

from mmrun.signals import ending
from mmrun.verbs.words import RUN_HELP, Parser, parse_trusting


def main(words: list[str]) -> int:
    """Write what the run that the words name predicts."""
    parser = Parser("predict", "Use a finished run on new samples.")
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.add_argument(
        "--input",
        required=True,
        type=Path,
        metavar="DIR",
        help="a folder with one MODALITY.npy per modality, samples first, as the dataset has them; "
        "a modality without a file is missing",
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="a .csv or .npz file"
    )
    given, trust = parse_trusting(parser, words)
    from mmrun import runs

    with ending():
        from mmrun.evaluate import predict
    directory = runs.find(given.run, runs.outputs())
    n, absent = predict(directory, given.input, given.output, trust=trust)
    if absent:
        print(f"no file for {', '.join(absent)}: taken as missing from every sample")
    print(f"{n} predictions written to {given.output}")
    return 0
