"""Several processes that train one model, each with its share of every batch.

`replicated`: every process holds the weights, and gradients are averaged (DDP). `sharded`: each holds only its part of
weights, gradients and moments (FSDP). Torch's own, not accelerate's: that one refuses FSDP on CPUs, where it could be
tested anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from model_code.config import Sharding
from model_code.errors import InputError
from model_code.team import Member, started

A = TypeVar("A")
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Team(Member):
    """This process's place among those that train together; alone by default.

    Attributes:
        sharding: Whether they share the weights out.
    """

    sharding: Sharding = "replicated"

    @property
    def part(self) -> slice:
        """This process's samples of a batch."""
        return slice(self.rank, None, self.size)

    def passes(self, count: int) -> list[slice]:
        """This process's samples of a batch, in so many passes."""
        return [slice(self.rank + self.size * index, None, self.size * count) for index in range(count)]

    def check(self, batch_size: int, passes: int = 1) -> None:
        """Raises `InputError` if a batch cannot be shared out evenly: its mean would not be the samples' mean."""
        if batch_size % (self.size * passes):
            shared = f"{self.size} processes" + (f" in {passes} passes" if passes > 1 else "")
            raise InputError(
                f"a batch of {batch_size} for {shared}",
                "make batch_size a multiple of the processes" + (" times accumulate" if passes > 1 else ""),
            )

    def wrap(self, model: nn.Module, precision: str = "fp32") -> nn.Module:
        """What to call in `model`'s place in training; sharding changes `model` itself.

        In bf16 shared out weights are gathered as such, for half of the traffic; each process's part of them, what it
        sums of the gradients, and the moments are fp32. Inputs stay as they are: times would lose their digits, and
        autocast knows what to cast.
        """
        if self.size == 1:
            return model
        device = next(model.parameters()).device
        if self.sharding == "replicated":
            return DistributedDataParallel(
                model,
                device_ids=None if device.type == "cpu" else [device],
                gradient_as_bucket_view=True,
                find_unused_parameters=True,  # parts sit out steps: what hears, the silent ones
            )
        mesh = init_device_mesh(device.type, (self.size,))
        low = torch.bfloat16 if precision == "bf16" else None
        policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for block in getattr(model, "blocks", ()):
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
        return model

    def summing(self, called: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Around a pass, what sums its gradients with those of the others that make the update.

        Copies of the model exchange gradients in the last pass alone. A model that is shared out does so in every one:
        kept whole until the last, they would take the memory that sharing saves.
        """
        if isinstance(called, DistributedDataParallel) and not last:
            return called.no_sync()
        return nullcontext()

    def forget(self, called: nn.Module) -> None:
        """Drops what a pass without gradients gathered: it would outlive a change of the weights."""
        if isinstance(called, FSDPModule):
            called.reshard()

    def collect(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors that may be shared out, one after another in one piece in the leader's memory; nothing elsewhere."""
        pieces = {}
        for name, value in values.items():
            piece = whole(value.detach())
            if self.leads:
                pieces[name] = piece.cpu()
        return pieces

    def mean(self, values: Tensor) -> Tensor:
        """The processes' mean."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def gather(self, values: Tensor) -> Tensor:
        """A batch's values (B, ...) from every process's part of them."""
        if self.size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(parts, values.contiguous())
        return torch.stack(parts, 1).flatten(0, 1)


def whole(value: Tensor) -> Tensor:
    """A tensor that may be shared out, in one piece; every process must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def filled_like(target: Tensor, values: Tensor) -> Tensor:
    """A copy of whole `values` where and as `target` is: shared out if it is."""
    values = values.to(target.device, copy=True)
    if isinstance(target, DTensor):
        return distribute_tensor(values, target.device_mesh, target.placements)
    return values


def fill(target: Tensor, values: Tensor) -> None:
    """Writes whole `values` into a tensor that may be shared out."""
    target.copy_(filled_like(target, values))


def in_one_piece(model: M, trained: Mapping[str, Tensor], build: Callable[[], M], own: Team) -> M:
    """A model that may be shared out as one that is not; every process must ask.

    Only the leading one gets it; the others keep their parts.

    Args:
        model: What was trained.
        trained: Its parameters that were, by name. Frozen ones are not sent: they are what `build` starts from.
        build: Makes the model that training began with.
        own: This process's place.
    """
    if not any(isinstance(value, DTensor) for value in trained.values()):
        return model
    state = own.collect(trained)
    if not own.leads:
        return model
    plain = build()
    unknown = plain.load_state_dict(state, strict=False).unexpected_keys
    assert not unknown, unknown
    return plain


ALONE = Team()


def team(
    size: int, sharding: Sharding, device: str, work: Callable[[A, Team], Any], argument: A, folder: Path
) -> AbstractContextManager[Team]:
    """Starts the other processes, which do `work(argument, team)`, and gives this one's place.

    Args:
        size: How many processes train, this one included.
        sharding: Whether they share the weights out.
        device: As in `started`, as what follows.
        work: What the others do.
        argument: Its first argument.
        folder: Where they meet.
    """
    return started([Team(rank, size, sharding) for rank in range(size)], "training", device, work, argument, folder)
