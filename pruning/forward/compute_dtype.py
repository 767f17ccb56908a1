"""What dtype a decoder layer is computed in: many CPUs have no arithmetic for the half types.

torch multiplies half matrices without it one value at a time. A layer of LLaVA-1.5-7B takes eight times as long then
as in float32 (600 tokens, one core, kept to AVX2: 17 s and 2 s). With AVX512-BF16 alone, bfloat16 still takes 1.5 times
as long as float32; with AVX512-FP16, float16 takes 0.8 of it. AMX was not
measured.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

_ARITHMETIC = {torch.float16: ("avx512_fp16", "amx_fp16"), torch.bfloat16: ("amx_bf16",)}
"""CPU features, as torch names them, with which a half type is no slower than float32."""


def compute_dtype(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """What `device` is to compute in with tensors of dtype `stored`: float32 instead of a half type it is slow with."""
    if device.type != "cpu" or stored not in _ARITHMETIC:
        return stored
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return stored if any(capabilities.get(name) for name in _ARITHMETIC[stored]) else torch.float32


def widen(tensors: Iterable[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Give each of `tensors`, in place, the dtype to compute in; returns those that changed, with what they held."""
    changed = []
    with torch.inference_mode(False):  # weights stay ordinary tensors
        for tensor in tensors:
            dtype = compute_dtype(tensor.dtype, tensor.device)
            if dtype != tensor.dtype:
                changed.append((tensor, tensor.data))
                tensor.data = tensor.data.to(dtype)
    return changed


@contextmanager
def widened(tensors: Iterable[torch.Tensor]) -> Iterator[None]:
    """`widen`, for as long as the `with` block lasts; then they hold again what they held."""
    changed = widen(tensors)
    try:
        yield
    finally:
        with torch.inference_mode(False):
            for tensor, stored in changed:
                tensor.data = stored


def widen_output(module: nn.Module) -> RemovableHandle:
    """From now on `module`, embeddings, returns its tensor in the dtype to compute in.

    Gemma's embeddings multiply by a factor, which rounds in a half type: that is done anew in the dtype to compute in.
    """

    # The hook asks for no more than it is told: one that held `module` would keep it, and the file that its weights are
    # mapped from, until Python looks for cycles.
    def widened_output(embeddings: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        factor, weight = getattr(embeddings, "scalar_embed_scale", None), getattr(embeddings, "weight", None)
        if factor is None or weight is None or compute_dtype(weight.dtype, weight.device) == weight.dtype:
            return _converted(output)
        return _converted(nn.functional.embedding(args[0], weight)) * factor

    return module.register_forward_hook(widened_output)


@contextmanager
def converted_calls(layer: nn.Module) -> Iterator[None]:
    """Whatever `layer` is called with is converted to the dtype to compute in, and its output back, in the block."""
    asked: list[torch.dtype] = []

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        asked[:] = [(args[0] if args else kwargs["hidden_states"]).dtype]
        return _converted(args), _converted(kwargs)

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        return output.to(asked[0]) if isinstance(output, torch.Tensor) else output

    handles = [layer.register_forward_pre_hook(before, with_kwargs=True), layer.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _converted(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(compute_dtype(value.dtype, value.device))
    if isinstance(value, dict):
        return {name: _converted(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_converted(inner) for inner in value)
    return value
