"""A finished run, used again: restored, scored under other test conditions, asked for predictions."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from tokenize import TokenError
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmrun.batch import Batch
from mmrun.build import Built, build
from mmrun.checkpoint import load_weights
from mmrun.errors import UserError, nearest
from mmrun.isolation import isolated
from mmrun.runs import reader
from mmrun.runs.layout import Paths
from mmrun.runs.writer import write_whole
from mmrun.settings import changed
from mmrun.spec import ModalitySpec
from mmrun.trainer import limited
from mmrun.trust import check_whole

# Settings under which a finished run may be scored anew; anything else would be another run.
TEST_CONDITIONS = (
    "missing.test_rate",
    "trainer.limit_test_batches",
    "dataset.root",
    "dataset.path",
)


def restore(
    directory: Path,
    *,
    changes: Mapping[str, Any] | None = None,
    trust: Collection[str] = (),
) -> Built:
    """A run's objects with its best weights, in evaluation mode.

    Raises:
        UserError: it has no checkpoint, or one of another model.
    """
    config = changed(reader.point(directory).config, changes or {})
    check_whole(config)
    # Where it was trained says nothing about where it is used.
    config["trainer"] |= {"accelerator": "auto", "devices": 1, "num_nodes": 1}
    if config["trainer"].get("precision") == "16-mixed" and not torch.cuda.is_available():
        config["trainer"]["precision"] = "32-true"
    with isolated():  # the caller's random numbers and threads stay as they are
        built = build(config, trust)
    paths = Paths(directory)
    found = paths.best if paths.best.exists() else paths.last
    if not found.exists():
        raise UserError(
            "this run kept no checkpoint",
            given=directory,
            remedy="Train it with trainer.checkpoint=best.",
        )
    load_weights(built.module, found)
    built.module.to("cuda" if built.options.on_gpu else "cpu").eval()
    return built


def evaluate(
    directory: Path, changes: Mapping[str, Any], *, trust: Collection[str] = ()
) -> tuple[Path, dict[str, float]]:
    """Score a run's best weights on its test split under ``changes``; (file written, {metric: value}).

    The file is ``eval/<condition>.json`` in the run directory, where a second call replaces it.

    Raises:
        UserError: a change that is no test condition.
    """
    for key in changes:
        if key not in TEST_CONDITIONS:
            raise UserError(
                "this is no test condition of a finished run",
                given=key,
                remedy=nearest(key, TEST_CONDITIONS),
            )
    built = restore(directory, changes=changes, trust=trust)
    batches = built.loader("test", device=built.module.device)
    scored = built.module.score(batches, limited(built.options.limit_test_batches, len(batches)))
    scores = {f"test/{name}": value for name, value in scored.metrics.items()}
    condition = ",".join(f"{key}={value}" for key, value in sorted(changes.items())) or "test"
    name = re.sub(r"[^\w=.,-]", "_", condition)[:120]
    path = Paths(directory).evaluations / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    record = {
        "condition": dict(changes),
        "test": scores,
        "samples": len(scored.index),
    }
    write_whole(path, json.dumps(record, indent=1) + "\n")
    return path, scores


class Predicted(NamedTuple):
    """What ``predict`` did: samples written, and the modalities that had no file."""

    samples: int
    absent: tuple[str, ...]


def predict(
    directory: Path, source: Path, output: Path, *, trust: Collection[str] = ()
) -> Predicted:
    """Predict samples given as ``source/<modality>.npy``, in the form of the dataset's own; writes a .csv or .npz file.

    A modality without a file is missing from every sample. A .csv has one row per sample: its
    number, the predicted class, and the scores; a .npz has ``scores`` [N, ...].

    Raises:
        UserError: nothing to read, shapes that the model does not take, or an unknown kind of file.
    """
    if output.suffix not in (".csv", ".npz"):
        raise UserError(
            "predictions go to a .csv or .npz file", given=output, remedy="E.g. --output out.csv."
        )
    if not output.parent.is_dir():
        raise UserError("--output is in no folder that exists", given=output)
    if not source.is_dir():
        raise UserError(
            "--input is no folder",
            given=source,
            remedy="Give a folder with one MODALITY.npy per modality.",
        )
    built = restore(directory, trust=trust)
    module = built.module
    arrays = _read_inputs(source, built)
    n = len(next(iter(arrays.values())))
    scores: list[Tensor] = []
    with torch.inference_mode(), module.computing():
        for first in range(0, n, 256):
            batch = _batch(built, arrays, slice(first, min(first + 256, n)))
            prediction = module(batch.to(module.device)).prediction
            scores.append(module.objective.scores(prediction.float()).cpu())
    table = torch.cat(scores).numpy()
    temporary = output.with_name(f".{output.name}")
    try:
        if output.suffix == ".npz":
            with temporary.open("wb") as file:
                np.savez_compressed(file, scores=table)
        else:
            _write_csv(temporary, table, built)
        temporary.replace(output)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"--output cannot be written: {error.strerror or error}", given=output
        ) from error
    absent = tuple(name for name in built.dataset.spec.modalities if name not in arrays)
    return Predicted(n, absent)


def _read_inputs(source: Path, built: Built) -> dict[str, np.ndarray]:
    modalities = built.dataset.spec.modalities
    arrays: dict[str, np.ndarray] = {}
    for name, spec in modalities.items():
        path = source / f"{name}.npy"
        if not path.exists():
            continue
        try:
            with path.open("rb") as file:  # unlike numpy.load, this knows no other format
                array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        except (OSError, ValueError, EOFError, SyntaxError, TokenError) as error:
            remedy = "Write it with numpy.save, as plain numbers."
            raise UserError("this is no .npy file", given=path, remedy=remedy) from error
        if array.dtype.kind not in "fiub":
            raise UserError("inputs are numbers", given=f"{path}: {array.dtype}")
        wanted = int(np.prod(spec.shape))
        if array.ndim < 1 or len(array) == 0 or array.size != len(array) * wanted:
            raise UserError(
                f"{name} has the wrong shape",
                given=f"{path}: {list(array.shape)}",
                remedy=f"The model takes [N, {', '.join(map(str, spec.shape))}].",
            )
        if spec.kind == "text" and not (array.min() >= 0 and array.max() < spec.vocabulary):
            raise UserError(
                f"{name} has ids that the model does not know",
                given=f"{path}: {array.min()} to {array.max()}",
                remedy=f"Ids are 0 (padding) to {spec.vocabulary - 1}.",
            )
        if spec.kind == "text" and not (array == np.floor(array)).all():
            raise UserError(
                f"{name} has ids that are no whole numbers",
                given=path,
                remedy="Ids count the tokens of the vocabulary.",
            )
        # As a dataset reads them; it also makes big-endian and long numbers what torch knows.
        with np.errstate(over="ignore"):
            array = array.astype(np.int64 if spec.kind == "text" else np.float32)
        if not np.isfinite(array).all():
            raise UserError(f"{name} has values that are not finite", given=path)
        arrays[name] = array.reshape(len(array), *spec.shape)
    if not arrays:
        raise UserError(
            "there is no input in this folder",
            given=source,
            remedy=f"It needs one of {', '.join(f'{name}.npy' for name in modalities)}.",
        )
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise UserError("the inputs have different numbers of samples", given=lengths)
    return arrays


def _batch(built: Built, arrays: Mapping[str, np.ndarray], rows: slice) -> Batch:
    dataset = built.dataset
    n = rows.stop - rows.start
    inputs: dict[str, Tensor] = {}
    mask: dict[str, Tensor] = {}
    for name, spec in dataset.spec.modalities.items():
        if name in arrays:
            values = dataset.prepare(name, torch.from_numpy(np.array(arrays[name][rows])))
        else:
            values = torch.zeros(n, *spec.shape, dtype=_dtype(spec))
        inputs[name] = values if spec.kind == "text" else values.to(built.module.dtype_of_weights)
        if spec.padded:
            mask[name] = values != 0 if spec.kind == "text" else values.flatten(2).ne(0).any(2)
    present = {name: torch.full((n,), name in arrays) for name in dataset.spec.modalities}
    return Batch(inputs, present, mask, torch.zeros(n, 0), torch.arange(rows.start, rows.stop))


def _dtype(spec: ModalitySpec) -> torch.dtype:
    return torch.int64 if spec.kind == "text" else torch.float32


def _write_csv(path: Path, table: np.ndarray, built: Built) -> None:
    spec = built.dataset.spec
    flat = table.reshape(len(table), -1)
    names = [str(k) for k in range(flat.shape[1])]
    if spec.target == "class" and len(spec.class_names) == flat.shape[1]:
        names = list(spec.class_names)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        chosen = ["class"] if spec.target == "class" else []
        writer.writerow(["sample", *chosen, *(f"score/{name}" for name in names)])
        for k, row in enumerate(flat):
            best = [names[int(row.argmax())]] if chosen else []
            writer.writerow([k, *best, *(f"{value:.6g}" for value in row)])
