"""A model in memory whose layers another library has wrapped."""

import pytest
from torch import nn

from pruning.anatomy.decoder_view import decoder_view
from pruning.errors import UnsupportedModelError
from pruning.forward.answer_head import AnswerHead
from tests.tiny_models import tiny_model


class Adapter(nn.Module):
    """Stands where a linear layer stood, as adapters do."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer = base


def test_a_projection_that_is_wrapped_is_named() -> None:
    view = decoder_view(tiny_model("llama"))
    mlp = view.layers[1].get_submodule("mlp")
    mlp.down_proj = Adapter(view.out_projection(1))
    assert view.ffn_width(0) == view.out_projection(0).in_features
    with pytest.raises(UnsupportedModelError, match=r"got mlp.down_proj of layer 1 is a Adapter\). Merge adapters"):
        view.out_projection(1)


def test_a_head_that_is_wrapped_is_named() -> None:
    model = tiny_model("llama")
    model.lm_head = Adapter(model.lm_head)
    with pytest.raises(UnsupportedModelError, match="the output head is a Adapter"):
        AnswerHead(decoder_view(model))
