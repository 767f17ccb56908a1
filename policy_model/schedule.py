"""The learning rate over a training."""

import math

WARM_UP_STEPS = 20
LOWEST = 0.02


def scheduled(learning_rate: float, step: int, num_steps: int) -> float:
    """Linear warm-up, then a cosine from `learning_rate` to 2% of it at `num_steps`."""
    cosine = 0.5 * (1.0 + math.cos(math.pi * step / num_steps))
    return learning_rate * (LOWEST + (1.0 - LOWEST) * cosine) * min(1.0, (step + 1) / WARM_UP_STEPS)
