"""The constants of a model's values."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kernel:
    """What was chosen for one model.

    Attributes:
        scale: s, in log KL.
        length: multiplies all correlation lengths.
        noise: standard deviation over s of a sample of weight 1.
        slack: prior variance over s^2 of the regression's weights.
        drift: how far predictions go astray with the distance from the nearest anchor, a standard deviation over s a
            unit of distance. 0 of predictors from before it was measured.
    """

    scale: float
    length: float
    noise: float
    slack: float
    drift: float = 0.0
