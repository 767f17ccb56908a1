"""Several processes, on GPUs or machines, by accelerate: data-parallel training of one model.

torch's DistributedDataParallel is not used: it averages gradients while the one module that it wraps goes backward, as
often in every process. Here a process may have no row of a batch, and the decoder is called without the model around
it. So each process adds up its own gradients over a step, and they are summed once at its end. The loss of a share is
already divided by the tokens of all processes (`recovery.losses.weighted_loss`), so the sum is the gradient that one
process has, but for rounding.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import numpy as np
import torch
from torch import nn

from pruning.arrays import FloatArray
from pruning.errors import InputError, ProcessError
from pruning.missing_packages import needing
from recovery.processes import Processes, launched_number, num_launched

T = TypeVar("T")

WAIT: Final = timedelta(hours=3)
"""How long a process waits for the others, at most: one may have more of the dense model's states to compute, or a
large checkpoint to write. One that died is noticed at once, by the launcher."""

_BUCKET_VALUES: Final = 2**23
"""Gradients that are summed in one message, about; 32 MiB."""

_SHARDED = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")
_ENDED: Final = 2

_HEAD_START_SECONDS: Final = 2.0
"""How long processes wait before they end for another one's error: at the first end `torchrun` ends all, also the one
that has not said yet what went wrong."""


class Several(Processes):
    """The processes that a launcher started together with this one.

    Args:
        device: what this process computes on: `cpu`, or `cuda`, of which it takes the GPU of its own number.

    Raises:
        InputError: there are fewer GPUs than processes on this machine, another device is asked for, the launcher is
            set to split the model, or what it set is no number.
        MissingExtraError: accelerate is not installed.
    """

    def __init__(self, device: torch.device) -> None:
        self.local_count = _check_launch(device)
        with needing("recover"):
            from accelerate import PartialState
        self._state = PartialState(cpu=device.type == "cpu", timeout=WAIT)
        self.number, self.count = self._state.process_index, self._state.num_processes
        self.device: torch.device = self._state.device

    def close(self) -> None:
        """Let go of the others, when all is done; one that is gone by then has done its part, and is the launcher's to
        report."""
        with suppress(ProcessError):
            self._wait()
        self._state.destroy_process_group()

    def summed(self, values: FloatArray) -> FloatArray:
        """Float64 values of any shape, which is the same in all processes, summed over these."""
        found: FloatArray = self._reduced(torch.from_numpy(np.ascontiguousarray(values, np.float64))).cpu().numpy()
        return found

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make every gradient the sum over processes; one that no process has stays None, so that AdamW, whose moments
        move a weight without a gradient, too, leaves that weight alone, as in one process."""
        having = self.summed(np.array([float(p.grad is not None) for p in parameters]))
        wanted = [parameter for parameter, number in zip(parameters, having, strict=True) if number]
        for bucket in _buckets(wanted):
            own = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            whole = self._reduced(torch.cat([gradient.flatten() for gradient in own]))
            parts = torch.split(whole, [parameter.numel() for parameter in bucket])
            for parameter, part in zip(bucket, parts, strict=True):
                parameter.grad = part.view_as(parameter)

    def together(self, make: Callable[[], T]) -> T:
        """What `make` gives in this process. If it fails in any, the first of those raises, and the others end without
        a word, a little later: mostly a file breaks the same rule in all of them, and it is said once."""
        error: Exception | None = None
        try:
            made = make()
        except Exception as own:  # noqa: BLE001 (raised below, once all know of it)
            error = own
        failed = np.flatnonzero(self._of_each(float(error is not None)))
        if len(failed) == 0:
            return made
        if error is None or failed[0] != self.number:
            time.sleep(_HEAD_START_SECONDS)
            raise SystemExit(_ENDED)
        raise error

    def of_main(self, make: Callable[[], T]) -> T:
        """What `make`, of JSON types, gives in the main process, which alone calls it. If it fails, all end."""
        made: Any = self.together(make if self.is_main else lambda: None)
        content = json.dumps(made).encode()
        length = int(self.summed(np.array([float(len(content)) if self.is_main else 0.0]))[0])
        found = torch.zeros(length, dtype=torch.uint8)
        if self.is_main:
            found = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        result: T = json.loads(self._broadcast(found).cpu().numpy().tobytes())
        return result

    def tensors_of_main(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """The main process's tensors in float32 by their names, one at a time, on this process's device."""
        shapes = self.of_main(lambda: {name: list(tensor.shape) for name, tensor in tensors.items()})
        for name, shape in shapes.items():
            yield name, self._broadcast(tensors[name].float() if self.is_main else torch.empty(shape))

    def local_first(self, make: Callable[[], T]) -> T:
        """What `make` gives: one process of each machine calls it before the others there do."""
        if self._state.is_local_main_process:
            made = make()
            self._wait()
            return made
        self._wait()
        return make()

    def each(self, number: int) -> list[int]:
        """What every process says, in their order; exact up to 2^53."""
        return [int(value) for value in self._of_each(float(number))]

    def check_same(self, what: str, digest: str) -> None:
        """Raises InputError if another process has another `digest`, a sha256, of `what`."""
        own = list(bytes.fromhex(digest))
        table = np.zeros((self.count, len(own)))
        table[self.number] = own
        whole = self.summed(table)
        differing = [number for number in range(self.count) if not np.array_equal(whole[number], whole[0])]

        def say() -> None:
            if differing:
                raise InputError(
                    f"all processes must be given the same {what}",
                    values=f"process {differing[0]} of {self.count} has others than process 0",
                    remedy="Copy checkpoints and data to every machine, and give every process the same options",
                )

        self.together(say)

    def of_share(self, folder: Path) -> Path:
        """The folder for what this process alone keeps, in `folder`."""
        return folder / str(self.number)

    def _of_each(self, value: float) -> FloatArray:
        values = np.zeros(self.count)
        values[self.number] = value
        return self.summed(values)

    def _reduced(self, tensor: torch.Tensor) -> torch.Tensor:
        from accelerate.utils import reduce

        with _meeting():
            whole: torch.Tensor = reduce(tensor.to(self.device), "sum")
            return whole

    def _broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        from accelerate.utils import broadcast

        with _meeting():
            whole: torch.Tensor = broadcast(tensor.contiguous().to(self.device))
            return whole

    def _wait(self) -> None:
        with _meeting():
            self._state.wait_for_everyone()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:  # else the others may never come, and the launcher ends them
            self.close()


@contextmanager
def _meeting() -> Iterator[None]:
    """In the block all processes meet; it fails, in words, if they cannot. What this process's own device cannot do is
    raised as it is."""
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except RuntimeError as error:
        # gloo has no type of error for a process that is gone: it may be the network, or what was sent, too.
        said = str(error).strip() or type(error).__name__
        raise ProcessError(
            "all processes of a training must reach each other until its end",
            values=said.splitlines()[0][:200],
            remedy="Mostly one has ended or hangs, and its own messages say why; else the network between them failed. "
            "The same command goes on from the last state",
        ) from error


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """In order, about `_BUCKET_VALUES` values each: few messages, and little memory beside the gradients."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        bucket.append(parameter)
        if sum(p.numel() for p in bucket) >= _BUCKET_VALUES:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def _check_launch(device: torch.device) -> int:
    """How many of the processes are on this machine."""
    if found := [name for name in _SHARDED if os.environ.get(name, "").lower() == "true"]:
        raise InputError(
            "every process of a recovery holds the whole model: neither FSDP, DeepSpeed nor Megatron split it",
            values=found[0],
            remedy="Launch with accelerate's plain multi-GPU settings (`--multi_gpu`), or with torchrun",
        )
    if device not in (torch.device("cpu"), torch.device("cuda")):
        raise InputError(
            "processes that train together compute on CPUs, or each on the GPU of its own number",
            values=f"LOP_TORCH_DEVICE={device}, {num_launched()} processes",
            remedy="Set it to cpu or cuda, or unset it; CUDA_VISIBLE_DEVICES says which GPUs there are",
        )
    here = launched_number("LOCAL_WORLD_SIZE", at_least=1, below=num_launched() + 1, default=1)
    launched_number("LOCAL_RANK", below=here)
    launched_number("MASTER_PORT", below=2**16)
    if device.type == "cuda" and here > torch.cuda.device_count():
        raise InputError(
            "every process on a machine needs a GPU of its own",
            values=f"{here} processes, {torch.cuda.device_count()} GPUs",
            remedy="Launch fewer, or set LOP_TORCH_DEVICE=cpu",
        )
    return here
