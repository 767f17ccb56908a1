"""By what a model's units are ranked on data."""

from enum import StrEnum


class Criterion(StrEnum):
    """ACTIVATIONS: by the size of what a unit adds (`pruning.measuring.importance`). ELIMINATION: by what is lost
    without it, once the others have taken over what they can (`pruning.measuring.elimination`)."""

    ACTIVATIONS = "activations"
    ELIMINATION = "elimination"
