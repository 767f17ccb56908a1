"""Tensor-parallel sizes must divide every layer; vLLM itself looks at the largest alone."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from vllm.config import ModelConfig

from lop_vllm.pruned import architecture_of, is_extended, mark
from lop_vllm.sizes import check_parallel_sizes
from pruning.anatomy.families import family_of
from pruning.checkpoints.anatomy_reader import layer_shapes


def extend_parallel_checks() -> None:
    """Asked before a worker is started."""
    original = ModelConfig.verify_with_parallel_config
    if not is_extended(original):
        ModelConfig.verify_with_parallel_config = _checked(original)


def _checked(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def verify(self: ModelConfig, parallel_config: Any) -> None:
        architecture = architecture_of(self.hf_config)
        if architecture is not None:
            fused = family_of(self.hf_config.get_text_config(decoder=True)).rows_from_config
            check_parallel_sizes(
                architecture,
                layer_shapes(self.hf_config),
                tensor_parallel=parallel_config.tensor_parallel_size,
                pipeline_parallel=parallel_config.pipeline_parallel_size,
                fused=fused,
            )
        original(self, parallel_config)

    mark(verify)
    return verify
