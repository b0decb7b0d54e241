"""The LightningModule: wires model, objective, balance and gradient pipeline together; owns no law."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mmrun.balance import Balance
from mmrun.batch import Batch, Output
from mmrun.gradients import GradientPipeline, Telemetry, rows
from mmrun.model import MultimodalModel
from mmrun.objectives import Objective
from mmrun.watching import UNWATCHED, FeatureMeter, Watch


@dataclass(frozen=True)
class Scores:
    """What a model made of a whole split, in the split's order.

    Args:
        metrics: {name: value}, ``loss`` among them.
        prediction: [N, ...].
        target: [N, ...].
        index: int64 [N], rows of the split.
    """

    metrics: dict[str, float]
    prediction: Tensor
    target: Tensor
    index: Tensor


class MultimodalModule(LightningModule):
    """Encoders, fusion and objective under one gradient pipeline.

    Args:
        model: encoders, missing and fusion.
        objective: head, losses and metrics.
        balance: how modalities share the gradient.
        pipeline: combine, modulate, clip and measure; called once per optimizer step.
        make_optimizer: -> the optimizer over ``scopes``.
        make_schedule: optimizer, total steps -> its schedule.
        total_steps: optimizer steps that training is planned for.
        accumulate: micro-batches per optimizer step.
        autocast: type that evaluation outside of a fit computes in; None for the weights' own.
        hyperparameters: plain dict, kept in checkpoints and sent to loggers.
    """

    def __init__(
        self,
        model: MultimodalModel,
        objective: Objective,
        balance: Balance,
        pipeline: GradientPipeline,
        *,
        make_optimizer: Callable[[], Optimizer],
        make_schedule: Callable[[Optimizer, int], LambdaLR],
        total_steps: int,
        accumulate: int,
        autocast: torch.dtype | None,
        hyperparameters: dict[str, Any],
    ) -> None:
        super().__init__()
        self.save_hyperparameters(hyperparameters)
        self.model = model
        self.objective = objective
        self.balance = balance
        self.pipeline = pipeline
        self.make_optimizer = make_optimizer
        self.make_schedule = make_schedule
        self.total_steps = total_steps
        self.accumulate = accumulate
        self.autocast = autocast
        self.automatic_optimization = not balance.per_loss
        self.micro_losses: list[Tensor] = []
        # One per optimizer step since the recorder last took them; nothing is worked out in the step.
        self.step_losses: list[Tensor] = []
        self.telemetry: list[Telemetry] = []
        self.meter = FeatureMeter(*model.bounds)
        self.validation: Scores | None = None  # of the last one
        self._collected: list[tuple[Tensor, ...]] = []
        self._per_loss: dict[str, dict[str, Tensor]] = {}
        self._scaler: torch.amp.GradScaler | None = None  # of this fit, with 16-mixed

    def forward(self, batch: Batch, watch: Watch = UNWATCHED) -> Output:
        """The model's output for a batch."""
        tokens, fused = self.model(batch, watch)
        return Output(tokens, fused, self.objective(tokens, fused, batch))

    def losses(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """{name: scalar} of everything that is minimised."""
        return {
            **self.objective.losses(batch, output),
            **self.model.missing.losses(),
            **self.balance.losses(batch, output),
        }

    # Training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """One micro-batch: its loss; under per-loss balancing the whole step."""
        if (
            self._scaler is not None
        ):  # 1, scaled as the loss will be: there is no waiting for the device
            one = torch.ones((), device=self.device)
            self.model.gradient_scale = self._scaler.scale(one) * self.trainer.world_size
        losses = self.losses(batch, self(batch, self.meter))
        total = sum_of(losses)
        self.micro_losses.append(total.detach())
        if self.objective.sums and self.trainer.world_size > 1:
            # DDP averages gradients over ranks; a loss that sums over the batch wants their sum.
            scale = self.trainer.world_size
            losses = {name: loss * scale for name, loss in losses.items()}
            total = total * scale
        if self.automatic_optimization:
            return total
        self._manual_step(losses, batch_idx)
        return None

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Lightning's place for clipping: after accumulation and all-reduce, on unscaled gradients."""
        assert gradient_clip_val is None, "the Trainer must not clip: the pipeline does"
        assert gradient_clip_algorithm is None
        self._apply_pipeline(optimizer)

    def _apply_pipeline(self, optimizer: Optimizer) -> None:
        self.telemetry.append(self.pipeline.apply(optimizer))
        loss = self.micro_losses[0]
        if len(self.micro_losses) > 1:
            loss = torch.stack(self.micro_losses).mean()
        self.micro_losses.clear()
        self.step_losses.append(loss)
        self.meter.end_step()

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what a row holds beside the loss: of gradients, and of the features that are clipped."""
        return (*self.pipeline.columns, *self.meter.columns)

    def take_rows(self) -> Tensor | None:
        """[T, 1 + C]: loss and telemetry of the T steps since the last call; None when there was none."""
        if not self.telemetry:
            return None
        taken = rows(self.telemetry)
        losses = torch.stack(self.step_losses).to(taken.dtype)
        self.telemetry, self.step_losses = [], []
        return torch.cat((losses.unsqueeze(1), taken, self.meter.take(taken)), dim=1)

    def take_gradients(self, losses: Mapping[str, Tensor]) -> None:
        """Under per-loss balancing: the gradient of each loss, added to that of the micro-batches before."""
        named = {n: p for n, p in self.named_parameters() if p.requires_grad}
        for k, (name, loss) in enumerate(losses.items()):
            gradients = torch.autograd.grad(
                loss / self.accumulate,
                list(named.values()),
                retain_graph=k < len(losses) - 1,
                allow_unused=True,
            )
            kept = self._per_loss.setdefault(name, {})
            for parameter, gradient in zip(named, gradients, strict=True):
                if gradient is not None:
                    kept[parameter] = kept[parameter] + gradient if parameter in kept else gradient

    def combine_gradients(self) -> None:
        """Under per-loss balancing: what the balance makes of them, over all ranks, goes into ``.grad``."""
        if dist.is_initialized():  # autograd.grad goes past DDP's reducer
            for kept in self._per_loss.values():
                for gradient in kept.values():
                    dist.all_reduce(gradient.div_(dist.get_world_size()))
        self.pipeline.combine(self._per_loss)
        self._per_loss = {}

    def _manual_step(self, losses: Mapping[str, Tensor], batch_idx: int) -> None:
        """Per-loss gradients, summed over micro-batches, then one pipeline call and one step."""
        self.take_gradients(losses)
        last = batch_idx + 1 == self.trainer.num_training_batches
        if (batch_idx + 1) % self.accumulate and not last:
            return
        optimizer = self.optimizers()
        schedule = self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer)
        assert isinstance(schedule, LambdaLR)
        self.combine_gradients()
        self._apply_pipeline(optimizer.optimizer)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()

    def configure_optimizers(self) -> Any:
        """One optimizer over all scopes and its schedule, stepped once per optimizer step."""
        optimizer = self.make_optimizer()
        self.pipeline.attach(optimizer)
        schedule = self.make_schedule(optimizer, self.total_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    # Evaluation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002 (Lightning's signature)
        """Collects what the metrics of the whole split need."""
        self._collect(batch)

    def on_validation_epoch_end(self) -> None:
        """Metrics over the whole split, equal on every rank."""
        self.validation = self._scores(gather=True)

    @torch.inference_mode()
    def score(self, batches: Iterable[Batch], limit: int, *, gather: bool = False) -> Scores:
        """Predict at most ``limit`` batches, in evaluation mode; ``gather`` adds what other ranks have."""
        was_training = self.training
        self.eval()
        self._collected = []
        with self.computing():
            for batch in islice(batches, limit):
                self._collect(cast(batch.to(self.device), self.dtype_of_weights))
        self.train(was_training)
        return self._scores(gather)

    def computing(self) -> torch.autocast:
        """The context in which the model computes outside of a fit, as it does in one."""
        return torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None)

    @property
    def dtype_of_weights(self) -> torch.dtype:
        """The type of the parameters; float64 under trainer.precision=64-true."""
        return next(self.parameters()).dtype

    def _collect(self, batch: Batch) -> None:
        output = self(batch)
        loss = sum_of(self.losses(batch, output))
        weight = 1.0 if self.objective.sums else float(len(batch.index))
        share = loss.new_full((len(batch.index),), 1.0 / len(batch.index)) * loss * weight
        self._collected.append((output.prediction, batch.target, batch.index, share))

    def _scores(self, gather: bool) -> Scores:
        collected, self._collected = self._collected, []
        prediction, target, index, share = (
            torch.cat(column) for column in zip(*collected, strict=True)
        )
        if gather and dist.is_initialized():
            parts: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(parts, [t.cpu() for t in (prediction, target, index, share)])
            prediction, target, index, share = (
                torch.cat(column) for column in zip(*parts, strict=True)
            )
        order = index.argsort()
        prediction, target = prediction[order].float(), target[order]
        loss = share.double().sum() if self.objective.sums else share.double().mean()
        metrics = {name: float(v) for name, v in self.objective.metrics(prediction, target).items()}
        return Scores(
            {"loss": float(loss), **metrics}, prediction.cpu(), target.cpu(), index[order].cpu()
        )

    # Checkpoints: the clip's state lies apart from the weights

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the state of the clip law, and every rank's random state and half gradients."""
        checkpoint["clip"] = self.pipeline.state_dict()
        random: dict[str, Any] = {"torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        checkpoint["rng"] = _of_all_ranks(random)
        # A validation may fall between two micro-batches of one step: half a gradient is state too.
        pending = {n: p.grad for n, p in self.named_parameters() if p.grad is not None}
        accumulated = {
            "losses": [loss.cpu() for loss in self.micro_losses],
            "gradients": _on(torch.device("cpu"), pending) if self.micro_losses else {},
            "features": self.meter.pending(),
            "per_loss": {k: _on(torch.device("cpu"), kept) for k, kept in self._per_loss.items()},
        }
        checkpoint["accumulated"] = _of_all_ranks(accumulated)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the clip law; random state and half gradients wait for ``on_train_start``."""
        self.pipeline.load_state_dict(checkpoint["clip"])
        self._restored = {key: checkpoint[key] for key in ("rng", "accumulated")}

    def on_train_start(self) -> None:
        """Random state as it was at the checkpoint: set last, since setting up draws numbers."""
        # A rank's loss is over its own samples, and gradients are averaged over ranks after the backward pass.
        self.model.gradient_scale = float(self.trainer.world_size)
        self._scaler = self.trainer.scaler if self.automatic_optimization else None
        restored = self.__dict__.pop("_restored", None)
        if restored is None:
            return
        ranks = restored["accumulated"]
        if len(ranks) == self.trainer.world_size:
            ranks = [ranks[self.global_rank]]
        # On another number of ranks each takes their mean: what will be averaged is the same then.
        self.micro_losses = [_mean(each).to(self.device) for each in _across(ranks, "losses")]
        self.meter.resume([rank["features"] for rank in ranks], self.device)
        named = dict(self.named_parameters())
        for name in ranks[0]["gradients"]:
            gradient = _mean([rank["gradients"][name] for rank in ranks])
            named[name].grad = gradient.to(self.device)
        self._per_loss = {
            loss: {
                name: _mean([rank["per_loss"][loss][name] for rank in ranks]).to(self.device)
                for name in gradients
            }
            for loss, gradients in ranks[0]["per_loss"].items()
        }
        if len(restored["rng"]) != self.trainer.world_size:
            return
        state = restored["rng"][self.global_rank]
        torch.set_rng_state(state["torch"].cpu())
        if "cuda" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"].cpu(), self.device)


def _of_all_ranks(state: Any) -> list[Any]:
    """The state of every rank, on every rank."""
    states = [state]
    if dist.is_initialized():
        states = [None] * dist.get_world_size()
        dist.all_gather_object(states, state)
    return states


def _on(device: torch.device, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _across(ranks: list[Any], key: str) -> Iterable[tuple[Tensor, ...]]:
    """The k-th entries of all ranks, together."""
    return zip(*(rank[key] for rank in ranks), strict=True)


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    """Of one, itself: its bits are kept."""
    return tensors[0] if len(tensors) == 1 else torch.stack(list(tensors)).mean(dim=0)


def cast(batch: Batch, dtype: torch.dtype) -> Batch:
    """The batch with its real inputs in another type; itself for float32."""
    if dtype is torch.float32:
        return batch
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.inputs.items()}
    target = batch.target.to(dtype) if batch.target.is_floating_point() else batch.target
    return replace(batch, inputs=inputs, target=target)


def sum_of(losses: Mapping[str, Tensor]) -> Tensor:
    """The sum of {name: scalar}, without a needless zero."""
    first, *rest = losses.values()
    for loss in rest:
        first = first + loss
    return first
