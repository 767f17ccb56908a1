"""Cutting in memory takes no more memory than what is kept."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pruning.anatomy.decoder_view import decoder_view
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.cutting.surgery import cut_model
from tests.pruning.cut_models import WIDTHS, kept_groups, random_ranking
from tests.tiny_models import tiny_model


class Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the elements that are copied as they are."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.clone, torch.ops.aten.copy_):
            self.elements += args[0].numel()
        return func(*args, **(kwargs or {}))


def test_what_is_taken_out_is_copied_once_and_what_stays_is_not() -> None:
    model = tiny_model("phi")  # biases everywhere
    anatomy, view = anatomy_of(model), decoder_view(model)
    kept: dict[str, Any] = {f"{i}.out": view.out_projection(i).bias for i in range(4)}
    kept |= {f"{i}.attention": view.attention_out(i).bias for i in range(4)}
    kept |= {"2.dense": view.out_projection(2).weight}  # this layer keeps all its channels
    with Copies() as copies:
        cut_model(model, anatomy.architecture(WIDTHS, kept_groups(anatomy)), random_ranking(anatomy))
    assert copies.elements == 0
    found: dict[str, Any] = {f"{i}.out": view.out_projection(i).bias for i in range(4)}
    found |= {f"{i}.attention": view.attention_out(i).bias for i in range(4)}
    found |= {"2.dense": view.out_projection(2).weight}
    assert {name: id(x) for name, x in found.items()} == {name: id(x) for name, x in kept.items()}
    cut = view.out_projection(0).weight
    assert cut.shape == (32, WIDTHS[0])
    assert cut.untyped_storage().nbytes() == cut.numel() * cut.element_size()
    assert cut.is_contiguous()
