"""The sizes of the policy, for those who train it with torch and those who decode it without."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class PolicyConfig:
    """L decoder layers of K levels, F static features a layer; D `width`, H `num_heads`."""

    num_layers: int
    num_levels: int
    num_features: int
    width: int = 64
    num_blocks: int = 2
    num_heads: int = 4

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
