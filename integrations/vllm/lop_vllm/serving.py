"""Pruned checkpoints go to vLLM's transformers backend, without a word on the command line."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from vllm.model_executor.models.registry import _ModelRegistry

from lop_vllm.pruned import architecture_of, is_extended, mark
from pruning.errors import InputError


def extend_registry() -> None:
    """vLLM asks its registry for a model's class before it has built anything, and again to build it."""
    for name in ("inspect_model_cls", "resolve_model_cls"):
        original = getattr(_ModelRegistry, name)
        if not is_extended(original):
            setattr(_ModelRegistry, name, _through_transformers(original))


def _through_transformers(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def find(self: _ModelRegistry, architectures: Any, model_config: Any) -> Any:
        if architecture_of(model_config.hf_config) is not None:
            choose_backend(model_config)
        return original(self, architectures, model_config)

    mark(find)
    return find


def choose_backend(model_config: Any) -> None:
    """Say `--model-impl transformers` for a pruned checkpoint; raises InputError if the user said another."""
    if model_config.model_impl not in ("auto", "transformers"):
        raise InputError(
            "vLLM builds layers of different sizes through transformers only",
            values=f"--model-impl {model_config.model_impl}, and per_layer_config in config.json",
            remedy="Leave --model-impl out",
        )
    model_config.model_impl = "transformers"
