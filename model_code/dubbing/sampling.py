"""Sampling of windows: which experts act, when it may end, and how several processes do it together.

Every process then runs the same loop over the same inputs, and the transformer shares out the tokens (`sample_with`).
The leading one hands the inputs round, and says before each step whether the run goes on: whoever ends a dub raises
there, and all processes leave the loop at the same step. Orders are JSON and bare tensors; nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model_code.backbones.transformer import DubbingTransformer
from model_code.config import FlowConfig
from model_code.diffusion.guidance import Guidance
from model_code.diffusion.sampler import sample
from model_code.diffusion.schedule import expert_windows, experts_by_step, sampling_times
from model_code.team import Member

Beat = Callable[[], None]
"""Called before every step of sampling; what it raises ends the dub."""


class EndedError(Exception):
    """The leading process ended a run."""


class Crew:
    """Processes that sample together; each has one of these.

    Args:
        own: This process's place.
        device: Where it computes.

    Attributes:
        holds: The leading process's sampler whose networks the others have.
        broken: Whether the leading process left a run that the others may still be in: nothing more can be done.
    """

    def __init__(self, own: Member, device: torch.device) -> None:
        self.own, self.device = own, device
        self.holds: object = None
        self.broken = False

    def tell(self, order: dict[str, Any], given: Mapping[str, Tensor] | None = None) -> None:
        """Hands an order and tensors round; the others `hear` it.

        Raises:
            RuntimeError: A run broke before.
        """
        if self.broken:
            raise RuntimeError("the sampling processes lost step with each other; start again")
        given = given or {}
        forms = {name: [str(value.dtype).removeprefix("torch."), *value.shape] for name, value in given.items()}
        content = json.dumps({"order": order, "tensors": forms}).encode()
        with self.in_step():
            self.own.leaders(torch.tensor([len(content)], device=self.device))
            self.own.leaders(torch.frombuffer(bytearray(content), dtype=torch.uint8).to(self.device))
            for value in given.values():
                self.own.leaders(value.contiguous())

    def hear(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Waits for what the leading process tells."""
        length = self.own.leaders(torch.zeros(1, dtype=torch.int64, device=self.device))
        content = self.own.leaders(torch.zeros(int(length), dtype=torch.uint8, device=self.device))
        told = json.loads(bytes(content.cpu().numpy()))
        given = {
            name: self.own.leaders(torch.empty(shape, dtype=getattr(torch, kind), device=self.device))
            for name, (kind, *shape) in told["tensors"].items()
        }
        return told["order"], given

    def load(self, sampler: object, folder: Path, experts: Sequence[str]) -> None:
        """The others load what the leading process's `sampler` has; returns when they have."""
        self.holds = None
        self.tell({"do": "load", "folder": str(folder), "experts": list(experts)})
        with self.in_step():
            self.own.wait()
        self.holds = sampler

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Around what all take part in: until it is over they are not known to be where this process is."""
        self.broken = True
        yield
        self.broken = False

    def go_on(self, beat: Beat | None) -> None:
        """Before every step, in every process: the leading one may end the run for all.

        Raises:
            EndedError: It did; in the leading one what `beat` raised.
        """
        ended = torch.zeros(1, dtype=torch.uint8, device=self.device)
        try:
            if beat is not None:
                beat()
        except BaseException:
            self.own.leaders(ended + 1)
            self.broken = False  # all of them leave the run here
            raise
        if self.own.leaders(ended):
            raise EndedError


class WindowSampler:
    """Samples windows with the experts that act at each step.

    Args:
        transformer: With `experts` as loaded adapters.
        experts: LoRA adapters: `lip`, `texture`.

    Attributes:
        crew: Processes that sample with this one; None: it is alone.
    """

    def __init__(self, transformer: DubbingTransformer, experts: Sequence[str]) -> None:
        self.transformer, self.experts = transformer, tuple(experts)
        self.crew: Crew | None = None
        self._active: tuple[str, ...] = ()
        if experts:
            transformer.disable_adapters()

    def join(self, crew: Crew) -> None:
        """From now on samples with these processes, which have the same networks.

        Raises:
            InputError: The transformer's heads cannot be shared out among so many.
        """
        self.transformer.sample_with(crew.own)
        self.crew = crew

    def __call__(self, flow: FlowConfig, given: Mapping[str, Tensor], beat: Beat | None = None) -> Tensor:
        """Clean latents (B,C,F,h,w) of a batch of windows.

        Args:
            flow: The sampler's settings.
            given: `noise`, `reference` and `audio` of `sample`; `text`, `negative`, `context`, `masked` and `face`,
                `motion` if there are.
            beat: Called before every step.

        Raises:
            RuntimeError: The other processes were given another model, or a run with them broke before.
        """
        if self.crew is None:
            return self._run(flow, given, beat)
        if self.crew.holds is not self:
            raise RuntimeError("the sampling processes hold another model")
        self.crew.tell({"do": "sample", "flow": flow.model_dump(mode="json")}, given)
        with self.crew.in_step():
            return self._run(flow, given, beat)

    def follow(self, order: Mapping[str, Any], given: Mapping[str, Tensor]) -> None:
        """What another process than the leading one does of a run."""
        with suppress(EndedError):
            self._run(FlowConfig.model_validate(order["flow"]), given, None)

    def _run(self, flow: FlowConfig, given: Mapping[str, Tensor], beat: Beat | None) -> Tensor:
        times = sampling_times(flow)
        every = expert_windows(flow)
        acting = experts_by_step(times, {name: every[name] for name in self.experts})

        def before_step(step: int, _: float) -> tuple[str, ...]:
            self._go_on(beat)
            return self._use(acting[step])

        noise, more = given["noise"], {name: value for name, value in given.items() if name != "noise"}
        try:
            return sample(
                self.transformer,
                noise,
                times=times,
                guidance=Guidance.of(flow),
                prediction=flow.prediction,
                noise_scale=flow.sampling_noise,
                border=flow.border,
                companion_share=flow.companion_share,
                before_step=before_step,
                remember=flow.remember,
                step_reuse=flow.step_reuse,
                **more,
            )
        finally:
            self._use(())

    def _go_on(self, beat: Beat | None) -> None:
        if self.crew is not None:
            self.crew.go_on(beat)
        elif beat is not None:
            beat()

    def _use(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Switches to these experts' adapters, whose parts add up, or to the plain transformer; who acts now."""
        if not self.experts or names == self._active:
            return self._active
        if names:
            self.transformer.set_adapter(list(names))
            self.transformer.enable_adapters()
        else:
            self.transformer.disable_adapters()
        self._active = names
        return names
