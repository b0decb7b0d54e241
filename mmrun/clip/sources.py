"""What a law can be called with: modules, optimizers, parameters, or any of these by scope.

Only a module tells what its parameters are (``mmrun.clip.anatomy``). Of an optimizer's, and of plain parameters, each is
taken to have its output rows along the first dimension, and none to be an embedding table: what goes by rows
(``per="unit"``, AGC, Centralize) wants the modules where there are transposed convolutions or embeddings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeGuard

from torch import Tensor, nn
from torch.optim import Optimizer

from mmrun.clip.anatomy import Anatomy, anatomy
from mmrun.clip.layout import Scopes
from mmrun.errors import UserError

Source = nn.Module | Optimizer | Tensor | Iterable[Tensor] | Mapping[str, Tensor]
Clippable = Source | Mapping[str, Source]
ALL = "parameters"  # the one scope of what is not given by scope


def scopes_of(given: Clippable) -> tuple[Scopes, Anatomy]:
    """{scope: {name: parameter}} of what a law was called with, and what is known of its modules.

    A mapping to tensors alone is {name: parameter}, of one scope; with anything else in it, it is by scope, and a tensor
    in it a scope of its own: {"image": encoder, "temperature": parameter}.

    Raises:
        UserError: there is something in it that has no gradient to clip, or nothing at all.
    """
    by_scope = isinstance(given, Mapping) and not all(isinstance(v, Tensor) for v in given.values())
    sources: Mapping[str, Source] = given if by_scope else {ALL: given}  # pyright: ignore[reportAssignmentType]
    modules = [each for each in sources.values() if isinstance(each, nn.Module)]
    scopes = {scope: _named(each) for scope, each in sources.items()}
    if not any(scopes.values()):
        raise UserError(
            "there are no parameters to clip the gradients of",
            given="" if by_scope else type(given).__name__,
            remedy="model.parameters() can be read once: call it at each step, or give the model.",
        )
    return scopes, anatomy(*modules)


def _named(source: Source) -> dict[str, nn.Parameter]:
    if isinstance(source, nn.Module):
        named: dict[str, Tensor] = dict(source.named_parameters())
    elif isinstance(source, Mapping):
        named = {str(name): each for name, each in source.items()}
    else:
        if isinstance(source, Optimizer):
            source = [p for group in source.param_groups for p in group["params"]]
        several = source if _are_several(source) else [source]
        named = {str(k): each for k, each in enumerate(several)}  # pyright: ignore[reportAssignmentType]
    for name, each in named.items():
        if not isinstance(each, Tensor):
            raise UserError(
                "clipping takes parameters, modules or an optimizer",
                given=f"{name}: {type(each).__name__}",
                remedy="E.g. model.parameters(), or {'image': image_encoder, 'text': text_encoder}.",
            )
    return named  # pyright: ignore[reportReturnType] (a leaf tensor has a gradient as well)


def _are_several(source: Source) -> TypeGuard[Iterable[Tensor]]:
    return isinstance(source, Iterable) and not isinstance(source, Tensor)
