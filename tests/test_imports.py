"""The import graph: floors, no cycles, who may import what; and which commands never load torch.

The floors are those of mmrun's own docstring. Every rule is a function from sources to complaints, and
is shown a source that breaks it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest
import yaml

import mmrun as package
from tests.running import CONF, PACKAGE, ROOT, run_python

Sources = Mapping[str, str]

ABOVE_ALL = ("mmrun", "mmrun.__main__")  # the package's face and ``python -m mmrun`` stand with cli
NO_TORCH = (
    "cli verbs completion shells launch compare wandb_sync compose point ranks tracking sources runs settings spec errors "
    "options trust user_code exits lasting"
)
# Modules of the two launchers that are torch programs themselves.
TORCH_ALLOWED = ("mmrun.launch.vectorized",)
# Groups whose options nobody else may know, and their packages.
CLOSED = {"clip": "clip", "fusion": "fusion", "balance": "balance", "encoder": "encoders"}
# Words that name an option and something else: where they are that something else.
OTHER_MEANING = {
    "sum": ("mmrun.objectives.",),  # objective.reduction
    "value": ("mmrun.objectives.", "mmrun.datasets.", "mmrun.evaluate"),  # a kind of target
}


@cache
def sources() -> dict[str, str]:
    """{module: text} of the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path.read_text()
    return found


@cache
def parsed(text: str) -> ast.Module:
    return ast.parse(text)


def floors() -> dict[str, int]:
    """{top module or package of mmrun: floor, 0 the highest}, from the docstring."""
    assert package.__doc__ is not None
    (text,) = re.findall(r"\n\n((?:    .*\n)+)", package.__doc__)
    levels = [re.findall(r"\w+", level) for level in text.split("|")]
    return {name: number for number, level in enumerate(levels) for name in level}


def imports(module: str, text: str, known: Mapping[str, object]) -> Iterator[tuple[str, int]]:
    """(imported module, line), submodules told from names where ``known`` has them."""
    assert module
    for node in ast.walk(parsed(text)):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            for name in node.names:
                full = f"{node.module}.{name.name}"
                if full != "mmrun.__version__":  # a constant, for whoever says it
                    yield (full if full in known else str(node.module)), node.lineno


def top(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def inside(module: str, names: str) -> bool:
    return any(top(module) == name for name in names.split())


# The rules


def against_floors(given: Sources) -> Iterator[str]:
    """Imports point down, or stay on a floor; every module stands on one."""
    level = floors()
    for module, text in given.items():
        if module not in ABOVE_ALL and top(module) not in level:
            yield f"{module} is on no floor: place it in mmrun's docstring"
            continue
        mine = 0 if module in ABOVE_ALL else level[top(module)]
        for target, line in imports(module, text, given):
            if target.startswith("mmrun.") and level.get(top(target), 99) < mine:
                yield f"{module}:{line} imports {target}, which is above it"
            if target == "mmrun" and mine > 0:
                yield f"{module}:{line} imports the package's face"


def cycles(given: Sources) -> Iterator[str]:
    """No module imports itself, by whatever way, imports inside functions included."""
    graph = {m: {t for t, _ in imports(m, text, given) if t in given} for m, text in given.items()}
    state: dict[str, int] = {}

    def visit(module: str, path: tuple[str, ...]) -> Iterator[str]:
        if state.get(module) == 2:
            return
        if module in path:
            yield " -> ".join([*path[path.index(module) :], module])
            return
        for target in sorted(graph[module]):
            yield from visit(target, (*path, module))
        state[module] = 2

    for module in graph:
        yield from visit(module, ())


def clip_on_its_own(given: Sources) -> Iterator[str]:
    """mmrun.clip works in any PyTorch loop."""
    for module, text in given.items():
        if inside(module, "clip"):
            for target, line in imports(module, text, given):
                own = target.startswith(("mmrun.clip", "mmrun.errors"))
                if target.split(".")[0] in FRAMEWORKS or (target.startswith("mmrun") and not own):
                    yield f"{module}:{line} imports {target}"


FRAMEWORKS = ("pytorch_lightning", "lightning", "hydra", "omegaconf", "wandb")


def hydra_in_its_place(given: Sources) -> Iterator[str]:
    """Composing is compose's and its config source's; instantiating is build's."""
    for module, text in given.items():
        for target, line in imports(module, text, given):
            if target.split(".")[0] not in ("hydra", "omegaconf"):
                continue
            utils = target.startswith("hydra.utils")
            if utils and module != "mmrun.build":
                yield f"{module}:{line} imports {target}"
            elif target == "hydra.errors" and module == "mmrun.build":
                continue
            elif not utils and not inside(module, "compose sources"):
                yield f"{module}:{line} imports {target}"
        for node in ast.walk(parsed(text)):
            name = getattr(node, "attr", getattr(node, "id", None))
            if name in ("instantiate", "get_class") and module != "mmrun.build":
                yield f"{module}:{node.lineno} uses {name}"  # pyright: ignore[reportAttributeAccessIssue]


def lightning_in_its_place(given: Sources) -> Iterator[str]:
    """Lightning is known to what stands beside it and to train, to nothing below."""
    for module, text in given.items():
        for target, line in imports(module, text, given):
            known = inside(module, "train trainer module callbacks")
            if target.split(".")[0] in ("pytorch_lightning", "lightning") and not known:
                yield f"{module}:{line} imports {target}"


def no_torch(given: Sources) -> Iterator[str]:
    """Modules without torch reach it by no import that runs when they are imported."""
    heavy = ("torch", "torchmetrics", "pytorch_lightning", "lightning", "wandb")

    def reached(module: str, seen: set[str]) -> Iterator[str]:
        if module in seen:
            return
        seen.add(module)
        for target in at_import(given[module], given):
            if target.split(".")[0] in heavy:
                yield f"{module} imports {target}"
            elif target in given:
                yield from reached(target, seen)

    for module in given:
        if inside(module, NO_TORCH) and module not in TORCH_ALLOWED:
            for complaint in reached(module, set()):
                yield f"{module}: {complaint}"


def at_import(text: str, known: Mapping[str, object]) -> Iterator[str]:
    """What is imported when a module is, and not later inside a function or for type checkers."""

    def walk(body: list[ast.stmt]) -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield from (t for t, _ in imports("?", ast.unparse(node), known))
            elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
                yield from walk([*node.body, *node.orelse])
            elif isinstance(node, ast.Try | ast.With | ast.ClassDef):
                yield from walk(node.body)

    return walk(parsed(text).body)


def options_of(group: str) -> set[str]:
    return {path.stem for path in (CONF / group).glob("*.yaml")} - {"none"}


def option_modules(group: str) -> set[str]:
    nodes = [yaml.safe_load(path.read_text()) for path in (CONF / group).glob("*.yaml")]
    return {node["_target_"].rpartition(".")[0] for node in nodes if "_target_" in node}


def options_known_to_others(given: Sources) -> Iterator[str]:
    """Nobody imports a concrete law, fusion, balance or encoder, or asks whether one was chosen."""
    for group, folder in CLOSED.items():
        concrete, words = option_modules(group), options_of(group)
        for module, text in given.items():
            if module.startswith(f"mmrun.{folder}") or module == "mmrun.build":
                continue
            for target, line in imports(module, text, given):
                if target in concrete:
                    yield f"{module}:{line} imports {target}"
            for word, line in compared_words(text):
                if word in words and not module.startswith(OTHER_MEANING.get(word, ())):
                    yield f"{module}:{line} compares with {word}, an option of {group}"


AFFIXES = ("startswith", "endswith")


def compared_words(text: str) -> Iterator[tuple[str, int]]:
    """Strings that something is compared with: ==, !=, in, match, startswith."""
    for node in ast.walk(parsed(text)):
        sides: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            sides = [node.value]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in AFFIXES:
            sides = node.args
        for side in sides:
            inner = side.elts if isinstance(side, ast.Tuple | ast.List | ast.Set) else [side]
            for each in inner:
                if isinstance(each, ast.Constant) and isinstance(each.value, str):
                    yield each.value, each.lineno


RULES: tuple[Callable[[Sources], Iterator[str]], ...] = (
    against_floors,
    cycles,
    clip_on_its_own,
    hydra_in_its_place,
    lightning_in_its_place,
    no_torch,
    options_known_to_others,
)


@pytest.mark.parametrize("rule", RULES)
def test_the_code_keeps_the_rule(rule: Callable[[Sources], Iterator[str]]):
    assert list(rule(sources())) == []


@pytest.mark.parametrize(
    ("rule", "module", "text", "complaint"),
    [
        (against_floors, "mmrun.new", "", "mmrun.new is on no floor"),
        (against_floors, "mmrun.model", "from mmrun.module import Scores", "above it"),
        (against_floors, "mmrun.spec", "def f():\n    from mmrun import runs", "above it"),
        (against_floors, "mmrun.runs.table", "from mmrun import load", "face"),
        (cycles, "mmrun.errors", "from mmrun.options import groups", "mmrun.errors -> mmrun"),
        (cycles, "mmrun.spec", "def f():\n    import mmrun.runs.layout", "runs.layout -> mmrun"),
        (clip_on_its_own, "mmrun.clip.norm", "import pytorch_lightning as pl", "lightning"),
        (clip_on_its_own, "mmrun.clip.law", "from mmrun.batch import Batch", "mmrun.batch"),
        (clip_on_its_own, "mmrun.clip.new", "from omegaconf import DictConfig", "omegaconf"),
        (hydra_in_its_place, "mmrun.train", "from hydra.utils import instantiate", "hydra.utils"),
        (
            hydra_in_its_place,
            "mmrun.train",
            "from mmrun.build import instantiate\ninstantiate()",
            "uses",
        ),
        (hydra_in_its_place, "mmrun.build", "from hydra import compose", "hydra"),
        (hydra_in_its_place, "mmrun.runs.layout", "import omegaconf", "omegaconf"),
        (lightning_in_its_place, "mmrun.build", "import pytorch_lightning", "pytorch_lightning"),
        (
            no_torch,
            "mmrun.runs.layout",
            "import torch",
            "mmrun.compare.show: mmrun.runs.layout imports",
        ),
        (no_torch, "mmrun.compare.show", "from mmrun.checkpoint import x", "mmrun.compare.show: "),
        (no_torch, "mmrun.options", "try:\n    import wandb\nfinally: ...", "imports wandb"),
        (
            options_known_to_others,
            "mmrun.module",
            "import mmrun.clip.norm",
            "imports mmrun.clip.norm",
        ),
        (options_known_to_others, "mmrun.module", "from mmrun.clip.value import Value", "imports"),
        (options_known_to_others, "mmrun.fusion.new", "from mmrun.encoders import cnn", "imports"),
        (options_known_to_others, "mmrun.train", "x = a['clip'] == 'norm'", "compares with norm"),
        (options_known_to_others, "mmrun.train", "x = 'rnn' in a", "compares with rnn"),
        (options_known_to_others, "mmrun.train", "x = a in ('b', 'concat')", "with concat"),
        (options_known_to_others, "mmrun.train", "x = a.startswith('value')", "with value"),
        (
            options_known_to_others,
            "mmrun.loader",
            "match x:\n    case 'attention':\n        pass",
            "with attention",
        ),
    ],
)
def test_the_rule_sees_a_breach(
    rule: Callable[[Sources], Iterator[str]], module: str, text: str, complaint: str
):
    broken = {**sources(), module: f"{sources().get(module, '')}\n{text}\n"}
    assert any(complaint in found for found in rule(broken))


def test_weight_and_type_checking_are_no_imports():
    text = "if TYPE_CHECKING:\n    import torch\ndef f():\n    import torch\n"
    broken = {**sources(), "mmrun.options": sources()["mmrun.options"] + text}
    assert list(no_torch(broken)) == []


# What really is loaded

A_RUN = str(ROOT / "tests" / "runs" / "data" / "format1")


def loaded(*words: str, code: int = 0) -> set[str]:
    """Names of all modules that a command imported."""
    done = run_python("-X", "importtime", "-m", "mmrun", *words)
    assert done.returncode == code, done.stderr[-2000:]
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["list"], 0),
        (["list", "fusion"], 0),
        (["show", A_RUN], 0),
        (["suggest", A_RUN], 0),
        (["compare", A_RUN], 0),
        (["compare", A_RUN, "--format", "json"], 0),
        (["train", "--help"], 0),
        (["train", "--cfg", "job", "clip=0.5"], 0),
        (["train", "--info", "defaults-tree"], 0),
        (["train", "fusion=concatenation"], 2),
        (["resume", A_RUN, "fusion=sum"], 2),
        (["resume", "nothing-of-this-name"], 2),
        (["nonsense"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_no_torch_is_loaded(words: list[str], code: int):
    modules = loaded(*words, code=code)
    assert "mmrun.cli" in modules
    assert not {"torch", "pytorch_lightning", "wandb"} & modules
    if words[0] in ("list", "nonsense", "compare", "suggest"):
        assert "hydra" not in modules
    if words[0] == "compare":  # thousands of runs in half a second
        assert not {"numpy", "yaml", "rich", "omegaconf", "matplotlib", "polars"} & modules


def test_doctor_asks_for_torch_in_a_child_process():
    pytest.importorskip("mmrun.doctor")
    done = run_python("-X", "importtime", "-m", "mmrun", "doctor")
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "mmrun.doctor" in names
    assert "torch" not in names


@pytest.mark.parametrize("words", [[], ["--help"], ["--version"]], ids=str)
def test_help_loads_next_to_nothing(words: list[str]):
    modules = loaded(*words)
    foreign = {m.split(".")[0] for m in modules} & {
        "hydra",
        "omegaconf",
        "numpy",
        "rich",
        "yaml",
        "torch",
    }
    assert foreign == set()


def test_the_clip_laws_need_no_import_of_their_own():
    text = (
        "import sys, mmrun; assert 'torch' not in sys.modules; assert mmrun.clip.norm.Norm(threshold=1.0);"
        "import mmrun.clip as c; assert not hasattr(mmrun, 'x') and not hasattr(c, 'x')"
    )
    done = run_python("-c", text)
    assert done.returncode == 0, done.stderr


def test_the_checks_of_loading_can_fail():
    done = run_python("-X", "importtime", "-c", "import mmrun.checkpoint")
    assert any(line.rpartition("|")[2].strip() == "torch" for line in done.stderr.splitlines())
    assert Path(A_RUN).is_dir()
