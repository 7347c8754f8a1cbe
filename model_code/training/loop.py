"""The training loop: AdamW, warm-up, EMA, guards, atomic checkpoints and exact resume.

Everything random in step n is drawn from (seed, n), so a run that was killed and resumed makes the same
updates as one that was not; on CPU the weights are bit-identical. Several processes make the updates of one
(see `parallel`): each draws the whole batch and trains on its part.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model_code.config import PhaseConfig
from model_code.seeding import seed_for
from model_code.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from model_code.training.data import Batch, TrainingSet
from model_code.training.parallel import ALONE, Team, fill, whole
from model_code.training.phases import Phase, StepResult

logger = logging.getLogger(__name__)

T_BINS = 5
"""Bins of t in which the loss is recorded."""
GUARD_MEMORY = 50
"""Gradient norms remembered by the spike guard."""
GUARD_FACTOR = 12.0
"""A gradient this many times the median of the remembered ones is a spike; its update is skipped."""
MAX_SKIPS = 25
"""Consecutive skipped updates after which the run stops."""
PREFETCH = 4
"""Batches made ahead for an accelerator."""

Progress = Callable[[int, int, dict[str, float]], None]


@dataclass
class Curves:
    """What a run records.

    Attributes:
        rows: One row per logging interval: step, loss, its parts, grad_norm, learning_rate, bins
            (mean loss in each fifth of t, None where no sample fell).
        skipped: Steps whose update the guard skipped.
        norms: The guard's memory.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    pending: list[dict[str, Any]] = field(default_factory=list)


def learning_rate(config: PhaseConfig, step: int) -> float:
    """Linear warm-up, then constant or half-cosine to a tenth."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "constant":
        return config.learning_rate * warm
    done = min(1.0, step / max(1, config.steps))
    return config.learning_rate * warm * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """bf16 autocast or nothing."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


class Trainer:
    """Trains the parameters of `model` that require gradients.

    Args:
        model: The network, already on `device`.
        phase: What goes in and what loss comes out.
        data: Windows by (seed, step).
        config: Budget and optimiser.
        folder: Where checkpoints go; None writes none.
        progress: Told (step, steps, means of the last logging interval).
        team: The processes that train this model together.

    Raises:
        InputError: The batch cannot be shared out.
    """

    def __init__(
        self,
        model: nn.Module,
        phase: Phase,
        data: TrainingSet,
        config: PhaseConfig,
        folder: Path | None = None,
        progress: Progress | None = None,
        team: Team = ALONE,
    ) -> None:
        team.check(config.batch_size)
        self.model, self.phase, self.data, self.config = model, phase, data, config
        self.folder, self.progress, self.team = folder, progress, team
        self.called = team.wrap(model)
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.names: dict[Tensor, str] = {value: name for name, value in self.parameters.items()}
        self.device = next(iter(self.parameters.values())).device
        self.average = {name: value.detach().clone() for name, value in self.parameters.items()}
        decay = [value for value in self.parameters.values() if value.ndim > 1]
        plain = [value for value in self.parameters.values() if value.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decay, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=config.learning_rate,
            betas=(0.9, 0.98),
        )
        self.curves = Curves()
        self.step = 0
        self.log_every = max(1, min(50, config.steps // 40))
        self._resume()

    def run(self, until: int | None = None) -> Curves:
        """Trains up to `until` steps (default: the budget); ends with the averaged weights in the model.

        Raises:
            RuntimeError: the loss or its gradient was not finite, or spiked, `MAX_SKIPS` times in a row.
        """
        self.model.train()
        last = min(self.config.steps, until if until is not None else self.config.steps)
        for batch in self._batches(last):
            self._one_step(batch)
            if self.folder is not None and self.step % self.config.checkpoint_every == 0 and self.step < last:
                self.save()
        if self.folder is not None:
            self.save()
        if self.step >= self.config.steps:
            self.use_average()
        return self.curves

    def use_average(self) -> None:
        """Puts the averaged weights into the model and switches it to evaluation."""
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(self.average[name])
        self.model.eval()

    def save(self) -> None:
        """Writes a checkpoint of this step."""
        assert self.folder is not None
        checkpoint = Checkpoint(
            step=self.step,
            weights=self.team.collect(self.parameters),
            average=self.team.collect(self.average),
            optimizer=self.team.collect(optimizer_tensors(self.optimizer, self.names)),
            state=vars(self.curves),
        )
        if self.team.leads:
            save_checkpoint(self.folder, checkpoint)

    def _resume(self) -> None:
        checkpoint = load_checkpoint(self.folder) if self.folder is not None else None
        self.team.wait()  # until all have read it: the leader may be about to replace it
        if checkpoint is None:
            return
        with torch.no_grad():
            for name, value in self.parameters.items():
                fill(value, checkpoint.weights[name])
                fill(self.average[name], checkpoint.average[name])
        restore_optimizer(self.optimizer, checkpoint.optimizer, self.names)
        self.curves, self.step = Curves(**checkpoint.state), checkpoint.step
        logger.info("resumed at step %d of %d", self.step, self.config.steps)

    def _batches(self, last: int) -> Iterator[Batch]:
        """The batches up to step `last`; beside an accelerator the next one is put together meanwhile."""
        steps = range(self.step, last)
        if self.device.type == "cpu":
            yield from (self.phase.draw(self.data, step) for step in steps)
            return
        with ThreadPoolExecutor(PREFETCH) as pool:
            futures = {step: pool.submit(self.phase.draw, self.data, step) for step in steps[:PREFETCH]}
            for step in steps:
                yield futures.pop(step).result().to(self.device)
                if step + PREFETCH < last:
                    futures[step + PREFETCH] = pool.submit(self.phase.draw, self.data, step + PREFETCH)

    def _one_step(self, batch: Batch) -> None:
        config, step = self.config, self.step
        generator = torch.Generator().manual_seed(seed_for("step", config.seed, config.phase, step))
        rate = learning_rate(config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with autocast(self.device, config.precision):
            result = self.phase.training_step(self.called, batch, generator, self.team.part)
        norm = self._update(result.loss)
        self._record(result, norm, rate)
        self.step += 1

    def _update(self, loss: Tensor) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(whole(nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)))
        if self._is_spike(norm):
            self.curves.skipped.append(self.step)
            recent = self.curves.skipped[-MAX_SKIPS:]
            if len(recent) == MAX_SKIPS and recent[0] == self.step - MAX_SKIPS + 1:
                raise RuntimeError(
                    f"training diverged: {MAX_SKIPS} updates in a row skipped before step {self.step} "
                    f"(last gradient norm {norm:.3g}); lower the learning rate {self.config.learning_rate}"
                )
            return norm
        self.curves.norms = [*self.curves.norms, norm][-GUARD_MEMORY:]
        self.optimizer.step()
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1.0 - decay)
        return norm

    def _is_spike(self, norm: float) -> bool:
        if not math.isfinite(norm):
            return True
        memory = sorted(self.curves.norms)
        return len(memory) >= GUARD_MEMORY // 2 and norm > GUARD_FACTOR * memory[len(memory) // 2]

    def _record(self, result: StepResult, norm: float, rate: float) -> None:
        if math.isfinite(norm):
            parts = self.team.mean(torch.stack([value.detach().float() for value in result.parts.values()]))
            self.curves.pending.append(
                {
                    "parts": dict(zip(result.parts, parts.tolist(), strict=True)),
                    "norm": norm,
                    "t": self.team.gather(result.t).tolist(),
                    "losses": self.team.gather(result.per_sample.detach()).tolist(),
                }
            )
        if (self.step + 1) % self.log_every and self.step + 1 < self.config.steps:
            return
        pending, self.curves.pending = self.curves.pending, []
        if not pending:
            return
        bins: list[list[float]] = [[] for _ in range(T_BINS)]
        for entry in pending:
            for t, value in zip(entry["t"], entry["losses"], strict=True):
                bins[min(T_BINS - 1, int(t * T_BINS))].append(value)
        names = {name for entry in pending for name in entry["parts"]}
        means = {
            name: _mean([entry["parts"][name] for entry in pending if name in entry["parts"]]) for name in sorted(names)
        }
        row: dict[str, Any] = {
            "step": self.step + 1,
            **means,
            "grad_norm": _mean([entry["norm"] for entry in pending]),
            "learning_rate": rate,
            "bins": [_mean(values) if values else None for values in bins],
        }
        self.curves.rows.append(row)
        if self.progress is not None:
            self.progress(self.step + 1, self.config.steps, means)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
