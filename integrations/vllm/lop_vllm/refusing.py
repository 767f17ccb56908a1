"""A version of vLLM that was not tried: pruned checkpoints are refused by name, before anything is loaded.

vLLM would stop at the first shape that differs, or serve something else. All other models are served as before.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from lop_vllm.pruned import is_extended, is_pruned, mark
from pruning.errors import UnsupportedVersionError

_ASKED_OF = ("verify_with_parallel_config", "__post_init__")
"""Functions of `ModelConfig` that every model passes before its weights; the first that is there."""


def refuse_pruned(version: str, tested: str) -> bool:
    """From now on `ModelConfig` takes no pruned model; False if this vLLM, `version`, has no place to say so."""
    try:
        from vllm.config import ModelConfig
    except ImportError:
        return False
    for name in _ASKED_OF:
        original = getattr(ModelConfig, name, None)
        if callable(original):
            if not is_extended(original):
                setattr(ModelConfig, name, _refusing(original, version, tested))
            return True
    return False


def _refusing(original: Callable[..., Any], version: str, tested: str) -> Callable[..., Any]:
    @wraps(original)
    def asked(self: Any, *args: Any, **kw: Any) -> Any:
        found = original(self, *args, **kw)
        if is_pruned(self.hf_config):
            raise UnsupportedVersionError(
                f"lop-vllm serves pruned checkpoints in vLLM {tested}",
                values=f"vLLM {version}, and per_layer_config in config.json",
                remedy=f"Install vLLM {tested}.* (the extras of lop-vllm do), or a lop-vllm for this version, or load "
                "the folder with lop.load_pruned",
            )
        return found

    mark(asked)
    return asked
