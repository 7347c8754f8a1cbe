"""Several processes that train one model, each with its share of every batch.

`replicated`: every process holds the weights, and gradients are averaged (DDP). `sharded`: each holds only its part of
weights, gradients and moments (FSDP). Torch's own, not accelerate's: that one refuses FSDP on CPUs, where it could be
tested anywhere.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess
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
from model_code.lifetime import THREADS, die_with_parent

PATIENCE = timedelta(days=1)
"""How long one process waits for another that lives."""
PARTING = 10.0
"""Seconds for the others to end, and for this process to notice that one has."""
LOOK_EVERY = 0.5
"""Seconds between two looks at whether the others live."""

logger = logging.getLogger(__name__)
_asking = threading.Lock()
A = TypeVar("A")
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Team:
    """This process's place among those that train together; alone by default.

    Attributes:
        rank: 0 leads: it writes and reports.
        size: How many train.
        sharding: Whether they share the weights out.
    """

    rank: int = 0
    size: int = 1
    sharding: Sharding = "replicated"

    @property
    def leads(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    @property
    def part(self) -> slice:
        """This process's samples of a batch."""
        return slice(self.rank, None, self.size)

    def device(self, kind: str) -> torch.device:
        """Where this process trains: `cuda` means the accelerator of its number."""
        return torch.device(kind, self.rank) if kind == "cuda" else torch.device(kind)

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

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()

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
        """A batch's values (B,) from every process's part of them."""
        if self.size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(parts, values.contiguous())
        return torch.stack(parts, 1).flatten()


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


def in_one_piece(model: M, build: Callable[[], M], own: Team) -> M:
    """A model that may be shared out as one that is not, its values in what `build` makes; every process must ask.

    Only the leading one gets it; the others keep their parts.
    """
    state: dict[str, Any] = model.state_dict()
    if not any(isinstance(value, DTensor) for value in state.values()):
        return model
    state = own.collect(state)
    if not own.leads:
        return model
    plain = build()
    plain.load_state_dict(state)
    return plain


ALONE = Team()


@contextmanager
def team(
    size: int, sharding: Sharding, device: str, work: Callable[[A, Team], Any], argument: A, folder: Path
) -> Iterator[Team]:
    """Starts the other processes, which do `work(argument, team)`, and gives this one's place.

    They end with this process, and it fails with them.

    Args:
        size: How many processes train, this one included.
        sharding: Whether they share the weights out.
        device: `cuda` gives each an accelerator of its own.
        work: What the others do; importable by name.
        argument: Its first argument.
        folder: Where they meet; made anew, and removed.

    Raises:
        InputError: There are fewer accelerators.
        RuntimeError: Another process failed or was killed.
    """
    if device == "cuda" and size > torch.cuda.device_count():
        raise InputError(
            f"{size} training processes for {torch.cuda.device_count()} accelerators",
            "lower processes.training_processes; on Kubernetes, raise the asset's number in kubernetes.gpus instead",
        )
    if size == 1:
        yield ALONE
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    members = [Team(rank, size, sharding) for rank in range(size)]
    threads = max(1, torch.get_num_threads() // size)
    torch.set_num_threads(threads)
    os.environ.update(dict.fromkeys(THREADS, str(threads)))
    others: list[SpawnProcess] = []
    done = threading.Event()
    try:
        others += [_start(_join, threads, work, argument, member, device, folder) for member in members[1:]]
        threading.Thread(target=_watch, args=(others, done), daemon=True).start()
        with _joined(members[0], device, folder, lambda: _check(others)):
            yield members[0]
    except RuntimeError as error:
        # A lost connection does not say why; that a process was lost does.
        for other in others:
            _status(other, PARTING)
        lost = _lost(others)
        if lost is None:
            raise
        raise RuntimeError(f"{lost}; the leading one: {error}") from error
    else:
        # What they were needed for is done, however they end.
        for other in others:
            _status(other, PARTING)
    finally:
        done.set()
        for other in others:
            other.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _start(function: Callable[..., None], *arguments: Any) -> SpawnProcess:
    process = get_context("spawn").Process(target=function, args=(os.getpid(), *arguments), daemon=True)
    process.start()
    return process


def _join(
    parent: int, threads: int, work: Callable[[A, Team], Any], argument: A, own: Team, device: str, folder: Path
) -> None:
    """What another process does from beginning to end."""
    die_with_parent(parent)
    torch.set_num_threads(threads)
    with _joined(own, device, folder, lambda: None):
        work(argument, own)


@contextmanager
def _joined(own: Team, device: str, folder: Path, check: Callable[[], None]) -> Iterator[None]:
    """A member of the process group; `check` raises if the others are not going to come."""
    if device == "cuda":
        torch.cuda.set_device(own.device(device))
    store = dist.FileStore(str(folder / "store"), own.size)
    store.set(f"here {own.rank}", "yes")
    while not store.check([f"here {rank}" for rank in range(own.size)]):
        check()
        time.sleep(0.05)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=own.rank, world_size=own.size, timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _watch(others: Sequence[SpawnProcess], done: threading.Event) -> None:
    """Ends this process if another was lost and it does not notice: it may wait for that one in a library, for ever."""
    while not done.wait(LOOK_EVERY):
        lost = _lost(others)
        if lost and not done.wait(PARTING):
            logger.error("%s", lost)
            os._exit(1)


def _status(other: SpawnProcess, patience: float = 0.0) -> int | None:
    """How a process ended, waited for; None if it lives. Of two threads that ask at once one would be told that."""
    until = time.monotonic() + patience
    while True:
        with _asking:
            status = other.exitcode
        if status is not None or time.monotonic() >= until:
            return status
        time.sleep(0.02)


def _lost(others: Sequence[SpawnProcess]) -> str | None:
    for rank, other in enumerate(others, 1):
        status = _status(other)
        if status:
            return f"training process {rank} of {len(others) + 1} ended with status {status}"
    return None


def _check(others: Sequence[SpawnProcess]) -> None:
    lost = _lost(others)
    if lost:
        raise RuntimeError(lost)
