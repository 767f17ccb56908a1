"""The sizes of the policy, for those who train it with torch and those who decode it without."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class PolicyConfig:
    """D `width`, H `num_heads`, O `option_width`. Nothing depends on the number of decisions, options or limits."""

    width: int = 64
    num_blocks: int = 2
    num_heads: int = 4
    option_width: int = 32

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
