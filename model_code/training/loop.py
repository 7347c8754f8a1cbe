"""The training loop: AdamW, warm-up, EMA, guards, atomic checkpoints and exact resume.

Everything random in step n is drawn from (seed, n), so a run that was killed and resumed makes the same
updates as one that was not; on CPU the weights are bit-identical. Several processes make the updates of one
(see `parallel`): each draws the whole batch and trains on its part, in one pass or several.

Updates that are not finite, or spike, are skipped. After `skips_before_rollback` in a row the run goes back to the
last checkpoint (they are written after updates that were made) and on with other data: the seed of everything random
then depends on how often it went back. If it has to go back again before it wrote another checkpoint, that one was no
good, and the one before is taken.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model_code.config import PhaseConfig
from model_code.seeding import seed_for
from model_code.training.checkpoint import (
    Checkpoint,
    go_back_to,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from model_code.training.data import Batch, TrainingSet
from model_code.training.parallel import ALONE, Team, fill, whole
from model_code.training.phases import Phase, takes_context
from model_code.training.record import Curves
from model_code.training.speed import Meter
from model_code.training.step import ModelInputs, StepResult

logger = logging.getLogger(__name__)

GUARD_MEMORY = 50
"""Gradient norms remembered by the spike guard."""
GUARD_FACTOR = 12.0
"""A gradient this many times the median of the remembered ones is a spike; its update is skipped."""
PREFETCH = 4
"""Batches made ahead for an accelerator."""

Progress = Callable[[int, int, dict[str, float]], None]
Validate = Callable[[nn.Module, int], dict[str, Any]]
"""Told the model, its averaged weights in it, and the step; gives what the curves shall show."""


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
        model: The transformer, already on its device.
        phase: What goes in and what loss comes out.
        data: Windows by (seed, step).
        config: Budget and optimiser.
        folder: Where checkpoints go; None writes none.
        progress: Told (step, steps, means of the last logging interval).
        team: The processes that train this model together.
        validate: Looks at the model every `config.validate_every` steps and at the end; in every process.

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
        validate: Validate | None = None,
    ) -> None:
        team.check(config.batch_size, config.accumulate)
        self.model, self.phase, self.data, self.config = model, phase, data, config
        self.folder, self.progress, self.team, self.validate = folder, progress, team, validate
        if config.gradient_checkpointing:
            model.enable_gradient_checkpointing()  # type: ignore[operator]
        self.called = team.wrap(model, config.precision)
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
        words = 0 if phase.text is None else len(phase.text)
        self.meter = Meter(model, config, phase.flow, self.device, team.size, words)
        self.saved = -1
        self._resume()

    def run(self, until: int | None = None) -> Curves:
        """Trains up to `until` steps (default: the budget); ends with the averaged weights in the model.

        Raises:
            RuntimeError: The loss or its gradient was not finite, or spiked, and going back did not help.
        """
        self.model.train()
        last = min(self.config.steps, until if until is not None else self.config.steps)
        if self.saved < 0:
            self.save()  # there is always one to go back to
        while self.step < last:
            self._train(last)
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
        """Writes a checkpoint of this step, unless there is one."""
        if self.folder is None or self.saved == self.step:
            return
        checkpoint = Checkpoint(
            step=self.step,
            weights=self.team.collect(self.parameters),
            average=self.team.collect(self.average),
            optimizer=self.team.collect(optimizer_tensors(self.optimizer, self.names)),
            state=vars(self.curves),
        )
        if self.team.leads:
            save_checkpoint(self.folder, checkpoint, self.config.keep_checkpoints)
        self.saved = self.step

    def _train(self, last: int) -> None:
        """Steps up to `last`, or until the run went back."""
        config = self.config
        self.meter.begin()
        for batch in self._batches(last):
            self._one_step(batch)
            skipped = self.curves.skipped_before(self.step)
            if skipped >= config.skips_before_rollback:
                self._go_back()
                return
            pauses = self._validates(self.step)
            if pauses:
                self._validate()
            if self.step % config.checkpoint_every == 0 and self.step < last and not skipped:
                pauses = True
                self.save()
            if pauses:
                self.meter.begin()

    def _resume(self) -> None:
        checkpoint = load_checkpoint(self.folder) if self.folder is not None else None
        self.team.wait()  # until all have read it: the leader may be about to replace it
        if checkpoint is None:
            return
        self._restore(checkpoint)
        logger.info("resumed at step %d of %d", self.step, self.config.steps)

    def _restore(self, checkpoint: Checkpoint) -> None:
        with torch.no_grad():
            for name, value in self.parameters.items():
                fill(value, checkpoint.weights[name])
                fill(self.average[name], checkpoint.average[name])
        restore_optimizer(self.optimizer, checkpoint.optimizer, self.names)
        self.curves, self.step = Curves(**checkpoint.state), checkpoint.step
        self.saved = checkpoint.step
        again = len(self.curves.rollbacks)
        seed = seed_for("rollback", self.config.seed, again) if again else self.config.seed
        self.phase = replace(self.phase, config=self.phase.config.model_copy(update={"seed": seed}))

    def _go_back(self) -> None:
        """To the last good checkpoint, and on with other data.

        Raises:
            RuntimeError: The run went back too often, or there is nothing to go back to.
        """
        config, before = self.config, self.curves.rollbacks
        checkpoint = load_checkpoint(self.folder) if self.folder is not None else None
        if checkpoint is None or len(before) >= config.max_rollbacks:
            raise RuntimeError(
                f"training diverged: {config.skips_before_rollback} updates in a row skipped before step {self.step}, "
                f"after going back {len(before)} times; lower the learning rate {config.learning_rate}"
            )
        assert self.folder is not None
        if before and before[-1][1] == checkpoint.step:
            checkpoint = load_checkpoint(self.folder, below=checkpoint.step) or checkpoint
        checkpoint.state["rollbacks"] = [*before, [self.step, checkpoint.step]]
        self.team.wait()  # until all have read it
        if self.team.leads:
            go_back_to(self.folder, checkpoint)
        logger.warning(
            "%d updates in a row skipped: back from step %d to %d, and on with other data",
            config.skips_before_rollback,
            self.step,
            checkpoint.step,
        )
        self._restore(checkpoint)

    def _validates(self, step: int) -> bool:
        every = self.config.validate_every
        return self.validate is not None and every > 0 and (step % every == 0 or step == self.config.steps)

    def _validate(self) -> None:
        """Shows the averaged model to `validate`; what it finds stands in this step's row."""
        assert self.validate is not None
        with self._averaged(), autocast(self.device, self.config.precision):
            found = self.validate(self.model, self.step)
        if self.curves.rows and self.curves.rows[-1]["step"] == self.step:
            self.curves.rows[-1].update(found)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The averaged weights in the model for a while, without gradients."""
        trained = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.use_average()
        try:
            with torch.no_grad():
                yield
        finally:
            with torch.no_grad():
                for name, value in self.parameters.items():
                    value.copy_(trained[name])
            self.team.forget(self.called)
            self.model.train()

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
        generator = torch.Generator().manual_seed(seed_for("step", self.phase.config.seed, config.phase, step))
        rate = learning_rate(config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        inputs = self.phase.inputs(batch, generator, with_context=takes_context(self.called))
        result = self._backward(batch, inputs)
        norm = self._update()
        self.meter.end(inputs)
        self._record(result, norm, rate)
        self.step += 1

    def _backward(self, batch: Batch, inputs: ModelInputs) -> StepResult:
        """The gradients of the batch's mean loss, in as many passes as it takes."""
        self.optimizer.zero_grad(set_to_none=True)
        passes, results = self.team.passes(self.config.accumulate), []
        for part in passes:
            with self.team.summing(self.called, last=part is passes[-1]):
                with autocast(self.device, self.config.precision):
                    result = self.phase.losses(self.called, batch, inputs, part)
                (result.loss / len(passes)).backward()
            results.append(result.detached())
        return StepResult.of_passes(results)

    def _update(self) -> float:
        norm = float(whole(nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)))
        if self._is_spike(norm):
            self.curves.skipped.append(self.step)
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
            parts = self.team.mean(torch.stack([value.float() for value in result.parts.values()]))
            self.curves.pending.append(
                {
                    "parts": dict(zip(result.parts, parts.tolist(), strict=True)),
                    "norm": norm,
                    "t": self.team.gather(result.t).tolist(),
                    "losses": self.team.gather(result.per_sample).tolist(),
                }
            )
        done = self.step + 1
        if done % self.log_every and done < self.config.steps and not self._validates(done):
            return
        means = self.curves.close_row(done, rate)
        if means is None:
            return
        speed = self.meter.row()
        self.curves.speed.append({"step": done, **speed})
        if self.progress is not None:
            self.progress(done, self.config.steps, {**means, **speed})
