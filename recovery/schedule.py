"""Which batches make a step, and at which learning rate: functions of the step alone, so any step can be begun at."""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Schedule:
    """Of a whole training.

    Attributes:
        num_batches: of an epoch.
        batches_per_step: whose gradients add up.
        num_steps: of all epochs.
        warmup: share of the steps.
        learning_rate: the highest.
        seed: of each epoch's order.
    """

    num_batches: int
    batches_per_step: int
    num_steps: int
    warmup: float
    learning_rate: float
    seed: int

    def batches(self, step: int) -> list[int]:
        """Numbers of the batches of a step; epochs follow one another without a gap."""
        first = step * self.batches_per_step
        places = range(first, first + self.batches_per_step)
        orders = {epoch: self._order(epoch) for epoch in {place // self.num_batches for place in places}}
        return [orders[place // self.num_batches][place % self.num_batches] for place in places]

    def rate(self, step: int) -> float:
        """Up in a line, down to nothing as half a cosine (Loshchilov and Hutter, arXiv 1608.03983)."""
        rising = math.ceil(self.warmup * self.num_steps)
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        done = (step - rising) / max(1, self.num_steps - rising)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order: list[int] = torch.randperm(self.num_batches, generator=generator).tolist()
        return order


def batches_per_step(answer_tokens: int, num_batches: int, step_tokens: int) -> int:
    """How many batches have about `step_tokens` answer tokens, where all of them have `answer_tokens`."""
    return max(1, min(num_batches, round(step_tokens * num_batches / answer_tokens)))
