"""One request run on a model with a stopwatch in hand: the prompt, then tokens one by one, as `generate` does."""

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pruning.data.batches import Batch
from pruning.devices.timing.stopwatch import PassTimes, Stopwatch
from pruning.forward.decoder_inputs import decoder_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DECODE_STEPS = 5

_SPECIAL_IDS = ("image_token_id", "image_token_index", "video_token_id", "vision_start_token_id", "vision_end_token_id")


@dataclass(frozen=True)
class RequestTimes:
    """A prompt's pass, and several decode steps right behind it: each attends to one position more than the prompt."""

    prefill: PassTimes
    decode: tuple[PassTimes, ...]


@torch.inference_mode()
def time_request(stopwatch: Stopwatch, prompt: torch.Tensor) -> RequestTimes:
    """Times of a text prompt [B, P] and of the token behind it, `DECODE_STEPS` times over from the same cache."""
    prefill, output = stopwatch.time(input_ids=prompt, use_cache=True, logits_to_keep=1)
    steps = []
    for _ in range(DECODE_STEPS):
        cache = copy.deepcopy(output.past_key_values)
        step, _ = stopwatch.time(input_ids=prompt[:, :1], past_key_values=cache, use_cache=True)
        steps.append(step)
    return RequestTimes(prefill, tuple(steps))


def time_images(model: "PreTrainedModel", inputs: Mapping[str, Any]) -> float:
    """Milliseconds from `inputs` (one image a sequence, as the processor gives them) to what the decoder gets:
    vision tower, projector, and putting their output in the prompt's place.
    """
    _synchronize(model)
    start = time.perf_counter()
    decoder_inputs(model, [Batch(dict(inputs), ())])
    _synchronize(model)
    return (time.perf_counter() - start) * 1e3


def random_prompt(model: "PreTrainedModel", *, batch: int, tokens: int) -> torch.Tensor:
    """Text tokens [B, P]; none of those that stand for images."""
    config = model.config
    vocabulary = config.get_text_config(decoder=True).vocab_size
    special = {getattr(config, name, None) for name in _SPECIAL_IDS}
    usable = torch.tensor([token for token in range(min(vocabulary, 4096)) if token not in special])
    chosen = torch.randint(len(usable), (batch, tokens), generator=torch.Generator().manual_seed(0))
    return usable[chosen].to(model.device)


def _synchronize(model: "PreTrainedModel") -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
