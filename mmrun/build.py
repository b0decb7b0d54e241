"""Config -> objects: one function per group, joined into what ``train`` and ``evaluate`` work with.

The only caller of ``hydra.utils.instantiate``. Widths are derived here and nowhere written: dataset spec -> ``encoder.dim`` ->
``fusion.dim`` -> head. Everything that a user can get wrong is raised as ``UserError`` from here,
before a run directory exists; the last check is a forward pass of two samples.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
import yaml
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from torch import nn
from torch.optim import Optimizer

from mmrun.balance import Balance
from mmrun.clip.anatomy import anatomy
from mmrun.clip.engine import Clipper
from mmrun.clip.law import Law
from mmrun.datasets import Dataset, SplitName
from mmrun.diagnostics import Diagnostics
from mmrun.encoders import Encoder
from mmrun.errors import UserError, nearest
from mmrun.fusion import Fusion
from mmrun.gradients import GradientPipeline
from mmrun.loader import Loader
from mmrun.missing import Missing
from mmrun.model import MultimodalModel
from mmrun.module import MultimodalModule, sum_of
from mmrun.objectives import Objective
from mmrun.options import ENCODER, options
from mmrun.signature import check
from mmrun.spec import FUSION, MISSING, OBJECTIVE, SHARED, DatasetSpec
from mmrun.trainer import TrainerOptions
from mmrun.trust import OWN_PACKAGES, check_numbers, check_targets, check_whole, whole
from mmrun.user_code import why_not_imported

# Settings of ``clip`` that are the engine's; all others are the law's own.
ENGINE = tuple(inspect.signature(Clipper).parameters)[1:]
COMPOSED = ("calibrate_from",)  # what composing has made numbers of
MOST_THREADS = 1024  # torch dies of a million


@dataclass(frozen=True)
class Built:
    """A point as objects: the module, its data, and how it is to be trained."""

    module: MultimodalModule
    dataset: Dataset
    diagnostics: Diagnostics
    options: TrainerOptions
    batch_size: int
    data_seed: int

    def loader(
        self,
        split: SplitName,
        *,
        shuffle: bool = False,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
    ) -> Loader:
        """Batches of a split, held on ``device``; shuffled by ``data_seed`` and epoch, for training."""
        samples = self.dataset.split(split)
        if torch.device(device).type != "cpu":
            samples = samples.to(device)
        return Loader(
            samples,
            batch_size=self.batch_size,
            shuffle=shuffle,
            seed=self.data_seed,
            rank=rank,
            world=world,
            device=device,
        )


def build(config: Mapping[str, Any], trust: Collection[str] = ()) -> Built:
    """All objects of a point.

    Args:
        config: a point's resolved config.
        trust: packages beside mmrun and torch.optim that ``_target_`` may name.

    Raises:
        UserError: for anything in the config or the data that the user can mend.
    """
    check_targets(config, trust)
    check_whole(config)
    check_numbers(config)
    seed, data_seed = whole(config, "seed", 0), whole(config, "data_seed", 0)
    torch.set_num_threads(whole(config, "threads", 1, MOST_THREADS))
    training = trainer_options(config["trainer"])
    data = dataset(config["dataset"], data_seed)
    torch.manual_seed(seed)
    parts = encoders(config["encoder"], data.spec)
    dims = {name: each.dim for name, each in parts.items()}
    fused = fusion(config["fusion"], dims)
    goal = objective(config["objective"], data.spec, dims, fused.dim)
    model = multimodal(
        config["model"], parts, missing(config["missing"], data.spec), fused, goal, data_seed
    )
    clipper = clip(config["clip"], planned_steps(config, data.spec))
    sharing = balance(config["balance"])
    scopes = scopes_of(model, goal)
    size = batch_size(config["dataset"], data.spec)
    training.check_batches({split: -(-n // size) for split, n in data.spec.sizes.items()})
    module = MultimodalModule(
        model,
        goal,
        sharing,
        GradientPipeline(clipper, sharing, scopes, anatomy(model, goal)),
        make_optimizer=optimizer(config["optimizer"], scopes),
        make_schedule=schedule(config["schedule"]),
        total_steps=planned_steps(config, data.spec),
        accumulate=training.accumulate_grad_batches,
        autocast=training.mixed,
        hyperparameters={
            "gradient_clip_val": config["clip"].get("threshold", math.inf),
            "gradient_clip_algorithm": clipper.algorithm,
        },
    )
    measured = diagnostics(config.get("diagnostics"), scopes, tuple(data.spec.modalities))
    built = Built(module, data, measured, training, size, data_seed)
    _try_forward(built)
    if training.precision == "64-true":
        module.double()  # before anything is loaded: a float32 module would round it
    return built


def make(node: Mapping[str, Any], group: str, kind: type | None = None) -> Callable[..., Any]:
    """The callable that a group's config names, with its knobs bound and checked."""
    if "_target_" not in node:
        raise UserError(f"{group} names no _target_", given=dict(node), remedy="See mmrun list.")
    try:
        bound = instantiate(dict(node), _partial_=True, _convert_="all", _recursive_=False)
    except (InstantiationException, HydraException, ImportError, SystemExit) as error:
        raise UserError(
            f"{group}._target_ cannot be loaded",
            given=node["_target_"],
            remedy=f"{why_not_imported(str(node['_target_']), error)}.",
        ) from error
    target, knobs = bound.func, bound.keywords
    named, home = str(node["_target_"]), str(getattr(target, "__module__", ""))
    if not any(_inside(named, each) and _inside(home, each) for each in _packages(named)):
        raise UserError(
            f"{group}._target_ names something that its package has only imported",
            given=named,
            remedy=f"It is of {home or 'no module'}; name it there, and trust that.",
        )
    if kind is not None and not (isinstance(target, type) and issubclass(target, kind)):
        raise UserError(
            f"{group}._target_ is no {kind.__name__}",
            given=node["_target_"],
            remedy=f"Name a subclass of {kind.__module__}.{kind.__name__}.",
        )
    check(target, knobs, group)
    return partial(_call, target, group, knobs)


def _packages(named: str) -> tuple[str, ...]:
    return (*OWN_PACKAGES, named.split(".", 1)[0]) if not _inside(named, "torch") else OWN_PACKAGES


def _inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _call(
    target: Callable[..., Any], group: str, knobs: dict[str, Any], *args: Any, **kwargs: Any
) -> Any:
    try:
        return target(*args, **kwargs, **knobs)
    except UserError:
        raise
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(
            f"{group} cannot be built",
            given=", ".join(f"{name}={value}" for name, value in knobs.items()),
            remedy=str(error).split("\n", 1)[0],
        ) from error


def _check_finite(node: Mapping[str, Any], where: str) -> None:
    for key, value in node.items():
        if isinstance(value, float) and math.isinf(value):
            raise UserError(f"{where}.{key} must be finite", given=value, remedy="Give a number.")


def trainer_options(node: Mapping[str, Any]) -> TrainerOptions:
    """The trainer group, checked."""
    check(TrainerOptions, node, "trainer")
    for field in fields(TrainerOptions):
        if field.name not in node:
            raise UserError(f"the config has no trainer.{field.name}")
    return TrainerOptions(**node)


def dataset(node: Mapping[str, Any], seed: int) -> Dataset:
    """The dataset, which checks its own data."""
    knobs = {key: value for key, value in node.items() if key != "batch_size"}
    return make(knobs, "dataset", Dataset)(seed=seed)


def planned_steps(config: Mapping[str, Any], spec: DatasetSpec) -> int:
    """Optimizer steps that a point plans: fewer where it stops early."""
    size = batch_size(config["dataset"], spec)
    return trainer_options(config["trainer"]).total_steps(-(-spec.sizes["train"] // size))


def batch_size(node: Mapping[str, Any], spec: DatasetSpec) -> int:
    """Samples per optimizer micro-batch over all ranks; ``all`` is the training set."""
    size = node.get("batch_size", 64)
    if size == "all":
        return spec.sizes["train"]
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise UserError(
            "dataset.batch_size is a number of samples",
            given=size,
            remedy="Give 1 or more, or all.",
        )
    return min(size, spec.sizes["train"])


def encoders(nodes: Mapping[str, Any], spec: DatasetSpec) -> dict[str, Encoder]:
    """{modality: its encoder}, the kinds checked."""
    built: dict[str, Encoder] = {}
    for name, modality in spec.modalities.items():
        group = f"encoder.{name}"
        if not nodes.get(name):
            raise UserError(
                f"modality {name} has no encoder", remedy=f"Choose encoder/{name}=OPTION."
            )
        constructor = make(nodes[name], group, Encoder)
        kinds = getattr(instantiate_target(nodes[name]), "kinds", ())
        if modality.kind not in kinds:
            raise UserError(
                f"this encoder takes {' or '.join(kinds)}, and modality {name} is {modality.kind}",
                given=f"{ENCODER}/{name}={str(nodes[name]['_target_']).rsplit('.', 1)[-1].lower()}",
                remedy=f"Encoders for {modality.kind}: {', '.join(_encoders_for(modality.kind))}.",
            )
        built[name] = constructor(modality)
    return built


def _encoders_for(kind: str) -> list[str]:
    """The options of the encoder group that take a kind."""
    nodes = {
        option: yaml.safe_load(path.read_text(encoding="utf-8"))
        for option, path in options(ENCODER).items()
    }
    return [
        option
        for option, node in nodes.items()
        if kind in getattr(instantiate_target(node), "kinds", ())
    ]


def instantiate_target(node: Mapping[str, Any]) -> Any:
    """The class that a node's ``_target_`` names."""
    return instantiate({"_target_": node["_target_"], "_partial_": True}).func


def fusion(node: Mapping[str, Any], dims: Mapping[str, int]) -> Fusion:
    """The fusion of features of these widths."""
    return make(node, "fusion", Fusion)(dims)


def objective(
    node: Mapping[str, Any], spec: DatasetSpec, dims: Mapping[str, int], fused_dim: int
) -> Objective:
    """The objective, its target checked against the dataset's."""
    constructor = make(node, "objective", Objective)
    learns = instantiate_target(node).targets
    if spec.target not in learns:
        raise UserError(
            f"this objective learns {' or '.join(learns)} targets, not the dataset's",
            given=f"target: {spec.target}",
            remedy="Choose another objective=; mmrun list objective shows them.",
        )
    return constructor(spec, dims, fused_dim)


def missing(node: Mapping[str, Any], spec: DatasetSpec) -> Missing:
    """What takes modalities away and fills the gaps."""
    made: Missing = make(node, "missing", Missing)()
    for name in ("train_rate", "test_rate"):
        if len(spec.modalities) == 1 and getattr(made, name) > 0:
            raise UserError(
                f"missing.{name} takes nothing from a single modality: a sample keeps one",
                given=getattr(made, name),
                remedy="Use more modalities, or leave it at 0.",
            )
    return made


def balance(node: Mapping[str, Any]) -> Balance:
    """How modalities share the gradient."""
    return make(node, "balance", Balance)()


def clip(node: Mapping[str, Any], total_steps: int) -> Clipper:
    """The clip law at work: its own settings are told from those that every law can be combined with."""
    engine = {key: value for key, value in node.items() if key in ENGINE and key != "scopes"}
    own = {k: v for k, v in node.items() if k not in ENGINE and k not in COMPOSED}
    check(Clipper, engine, "clip")
    scopes = {
        scope: law(each, f"clip.scopes.{scope}")
        for scope, each in (node.get("scopes") or {}).items()
    }
    return Clipper(law(own, "clip"), scopes=scopes, total_steps=total_steps, **engine)


def law(node: Mapping[str, Any], where: str) -> Law:
    """A clip law, and the laws that it is made of: the threshold of a chain is that of its last one."""
    if "laws" not in node:
        return make(node, where, Law)()
    members = node["laws"]
    if not isinstance(members, list) or not all(isinstance(each, Mapping) for each in members):
        raise UserError(
            f"{where}.laws is a list of laws", given=members, remedy="Write e.g. [centralize,norm]."
        )
    made = make({k: v for k, v in node.items() if k not in ("laws", "threshold")}, where, Law)
    laws = [dict(each) for each in members]
    if laws and "threshold" in node:
        laws[-1]["threshold"] = node["threshold"]
    return made(*(law(each, f"{where}.laws[{k}]") for k, each in enumerate(laws)))


def diagnostics(
    node: Mapping[str, Any] | None,
    scopes: Mapping[str, Mapping[str, nn.Parameter]],
    modalities: Sequence[str],
) -> Diagnostics:
    """What is measured beside the training. None: the run is older than the group, and measured nothing."""
    if node is None:
        return Diagnostics(scopes, modalities)
    return make(node, "diagnostics", Diagnostics)(scopes, modalities)


def multimodal(
    node: Mapping[str, Any],
    parts: Mapping[str, Encoder],
    fill: Missing,
    fused: Fusion,
    goal: Objective,
    seed: int,
) -> MultimodalModel:
    """Encoders, fill and fusion in one model, with the clips of features."""
    check(MultimodalModel, node, "model")
    return MultimodalModel(parts, fill, fused if goal.needs_fusion else None, seed=seed, **node)


def scopes_of(model: MultimodalModel, goal: Objective) -> dict[str, dict[str, nn.Parameter]]:
    """{scope: {name: parameter}}: disjoint and complete; what two scopes hold is ``shared``."""
    holders: dict[str, nn.Module | None] = {
        **model.encoders,
        FUSION: model.fusion,
        MISSING: model.missing,
    }
    owned = [
        (scope, f"model.{prefix}{name}", parameter)
        for scope, module in holders.items()
        if module is not None
        for prefix in [f"encoders.{scope}." if scope in model.encoders else f"{scope}."]
        for name, parameter in module.named_parameters()
    ]
    owned += [(OBJECTIVE, f"objective.{name}", p) for name, p in goal.named_parameters()]
    owners: dict[int, set[str]] = {}
    for scope, _, parameter in owned:
        owners.setdefault(id(parameter), set()).add(scope)
    scopes: dict[str, dict[str, nn.Parameter]] = {}
    seen: set[int] = set()
    for scope, name, parameter in owned:
        if id(parameter) in seen or not parameter.requires_grad:
            continue
        seen.add(id(parameter))
        home = scope if len(owners[id(parameter)]) == 1 else SHARED
        scopes.setdefault(home, {})[name] = parameter
    return scopes


def optimizer(
    node: Mapping[str, Any], scopes: Mapping[str, Mapping[str, nn.Parameter]]
) -> Callable[[], Optimizer]:
    """-> the optimizer: a group per scope and decay; vectors (biases, norms) are not decayed."""
    knobs = {key: value for key, value in node.items() if key != "scopes"}
    constructor = make(knobs, "optimizer", Optimizer)
    _check_finite(knobs, "optimizer")
    own = node.get("scopes") or {}
    allowed = {key for key in knobs if key != "_target_"}
    for scope, values in own.items():
        if scope not in scopes:
            raise UserError(
                f"there is no scope {scope}",
                given=f"optimizer.scopes.{scope}",
                remedy=nearest(scope, scopes),
            )
        if not isinstance(values, Mapping):
            raise UserError(
                f"optimizer.scopes.{scope} is a mapping",
                given=values,
                remedy=f"Write e.g. optimizer.scopes.{scope}.lr=0.001.",
            )
        for key in values:
            if key not in allowed:
                raise UserError(
                    f"this optimizer takes no {key}",
                    given=f"optimizer.scopes.{scope}.{key}",
                    remedy=nearest(key, allowed),
                )
        check(instantiate_target(node), values, f"optimizer.scopes.{scope}")
        _check_finite(values, f"optimizer.scopes.{scope}")
    groups: list[dict[str, Any]] = []
    for scope, parameters in scopes.items():
        extra = dict(own.get(scope) or {})
        decayed = [p for p in parameters.values() if p.ndim > 1]
        plain = [p for p in parameters.values() if p.ndim <= 1]
        if decayed:
            groups.append({"params": decayed, **extra})
        if plain and extra.get("weight_decay", knobs.get("weight_decay")) != 0:
            extra["weight_decay"] = 0.0
        if plain:
            groups.append({"params": plain, **extra})
    merged = _merge(groups)
    if not merged:
        raise UserError("there is nothing to train: the model has no parameters")
    constructor(merged)  # a wrong knob is found now, not in the first epoch
    return partial(constructor, merged)


def _merge(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups of equal settings as one: fewer groups, fewer kernels per step."""
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for group in groups:
        settings = {key: value for key, value in group.items() if key != "params"}
        key = tuple(sorted((name, repr(value)) for name, value in settings.items()))
        merged.setdefault(key, {"params": [], **settings})["params"] += group["params"]
    return list(merged.values())


def schedule(node: Mapping[str, Any]) -> Callable[..., Any]:
    """(optimizer, total steps) -> its schedule."""
    constructor = make(node, "schedule")
    _check_finite(node, "schedule")
    weight = nn.Parameter(torch.zeros(1))
    constructor(torch.optim.SGD([weight], lr=1.0), 100)  # a wrong knob is found now
    return constructor


@torch.no_grad()
def _try_forward(built: Built) -> None:
    """Two samples through the model in evaluation mode: shapes that disagree are found before a run exists."""
    module = built.module
    samples = built.dataset.split("train")
    batch = samples.batch(torch.arange(min(2, len(samples))))
    module.eval()
    try:
        output = module(batch)
        sum_of(module.losses(batch, output))
    except (RuntimeError, ValueError, IndexError) as error:
        raise UserError(
            "the model cannot take this data",
            given=str(error).split("\n", 1)[0],
            remedy="Check the shapes in dataset.modalities and the choice of encoder and objective.",
        ) from error
    finally:
        module.train()
