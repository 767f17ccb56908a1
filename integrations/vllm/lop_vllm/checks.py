"""What vLLM would get wrong, or stop at late, is refused before a worker is started."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from vllm.config import ModelConfig

from lop_vllm.pruned import architecture_of, is_extended, mark
from lop_vllm.sizes import check_parallel_sizes, check_weights
from pruning.anatomy.families import family_of
from pruning.checkpoints.anatomy_reader import layer_shapes
from pruning.errors import UnsupportedModelError


def extend_checks() -> None:
    """vLLM verifies each model against its parallel settings once it has read all of them."""
    original = ModelConfig.verify_with_parallel_config
    if not is_extended(original):
        ModelConfig.verify_with_parallel_config = _checked(original)


def _checked(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def verify(self: ModelConfig, parallel_config: Any) -> None:
        architecture = architecture_of(self.hf_config)
        if architecture is not None:
            check_parallel_sizes(
                architecture,
                layer_shapes(self.hf_config),
                tensor_parallel=parallel_config.tensor_parallel_size,
                pipeline_parallel=parallel_config.pipeline_parallel_size,
                fused=family_of(self.hf_config.get_text_config(decoder=True)).rows_from_config,
            )
            check_weights(self.hf_config, parallel_config.tensor_parallel_size)
            check_pictures(self.hf_config, self.multimodal_config)
        original(self, parallel_config)

    mark(verify)
    return verify


def check_pictures(config: Any, multimodal: Any) -> None:
    """Raises UnsupportedModelError where vLLM's transformers backend would see less than the model does.

    It hands a picture to the decoder as embeddings alone: what Qwen3-VL adds to its first layers from deeper in the
    tower (`deepstack_visual_indexes`) gets lost, of dense models too.
    """
    tower = getattr(config, "vision_config", None)
    sees = multimodal is None or any(multimodal.get_limit_per_prompt(kind) for kind in ("image", "video"))
    if getattr(tower, "deepstack_visual_indexes", None) and sees:
        raise UnsupportedModelError(
            "vLLM's transformers backend has no place for features that a tower adds to several decoder layers",
            values=f"model_type={config.model_type!r}",
            remedy="""Serve it without pictures, --limit-mm-per-prompt '{"image": 0, "video": 0}', or load it with """
            "lop.load_pruned",
        )
