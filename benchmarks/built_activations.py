"""What a forward pass really takes beside the weights, by torch's own account of its allocations.

A prompt with its picture, then tokens one by one on a cache, on the CPU. Every allocation and release of the allocator
is an event of the profiler: their running sum is what lives at once, beside what was there before. That holds the KV
cache too, so it is held against the bound on activations and the cache together. oneDNN is left out: it copies weights
into an order of its own, and the bound counts what a model needs, not what a kernel library takes.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile

from pruning.planning.workload import Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def peak_bytes(model: "PreTrainedModel", inputs: dict[str, torch.Tensor], output_tokens: int) -> int:
    """The most that lives at once of what answering `inputs` allocates, `output_tokens` a sequence, in bytes."""
    with (
        torch.no_grad(),
        _without_onednn(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found,
    ):
        _answer(model, inputs, output_tokens)
    result: Any = found.profiler
    events = [x for x in result.kineto_results.events() if x.name() == "[memory]"]
    events.sort(key=lambda x: x.start_ns())
    return max(accumulate((int(x.nbytes()) for x in events), initial=0))


@contextmanager
def _without_onednn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*TF32 acceleration on top of oneDNN")  # of GPUs that are not there
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def workload_of(inputs: dict[str, torch.Tensor], output_tokens: int) -> Workload:
    """What `peak_bytes` asks of a model."""
    batch, prompt = inputs["input_ids"].shape
    return Workload(batch=batch, prompt_tokens=prompt, output_tokens=output_tokens)


def _answer(model: "PreTrainedModel", inputs: dict[str, torch.Tensor], output_tokens: int) -> None:
    found = model(**inputs, use_cache=True, logits_to_keep=1)
    for _ in range(output_tokens - 1):
        token, cache = found.logits[:, -1:].argmax(-1), found.past_key_values
        found = model(input_ids=token, past_key_values=cache, use_cache=True)
