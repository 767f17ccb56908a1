"""vLLM's transformers backend with decoder layers of their own sizes.

The backend has transformers build the model on no memory, puts its own parallel layers in the place of transformers',
makes one `Attention` a layer, and loads the weights into that. transformers builds all layers of one size, so they are
resized in between; what follows reads the sizes from the modules, and the heads of each layer from its config.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

from vllm.model_executor.models.transformers import base
from vllm.transformers_utils.config import get_safetensors_params_metadata

from lop_vllm.pruned import architecture_of, is_extended, mark
from lop_vllm.sizes import attention_runs
from pruning.anatomy.decoder_view import decoder_view
from pruning.checkpoints.resizing import add_biases, biased_layers, resize_layers


def extend_backend() -> None:
    """For all of the backend's classes: those of text, and those that see."""
    if not is_extended(base.Base.recursive_replace):
        base.Base.recursive_replace = _resizing(base.Base.recursive_replace)
        base.Base._create_attention_instances = _passing_by(base.Base._create_attention_instances)


def _resizing(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def recursive_replace(self: base.Base) -> None:
        architecture = architecture_of(self.config)
        if architecture is not None:
            view = decoder_view(self.model)
            resize_layers(view, self.config, architecture)
            add_biases(view, biased_layers(self.config, _stored_names(self.model_config)))
        original(self)

    mark(recursive_replace)
    return recursive_replace


def _stored_names(model_config: Any) -> Sequence[str]:
    """The tensors in the weight files: a bias that compensates is recorded nowhere else."""
    return list(get_safetensors_params_metadata(model_config.model, revision=model_config.revision))


def _passing_by(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def create(self: base.Base, prefix: str = "") -> None:
        architecture = architecture_of(self.config)
        if architecture is None:
            original(self, prefix)
            return
        for run in attention_runs(architecture, self.text_config.num_hidden_layers):
            with _layers_are(run):
                original(self, prefix)

    return create


@contextmanager
def _layers_are(run: range) -> Iterator[None]:
    """The backend asks one function for the layers that this process has: for a moment they are those of `run`.

    It makes an `Attention`, and with it a KV cache, for each of them, and refuses a layer that has none.
    """
    asked = base.get_pp_indices
    base.get_pp_indices = lambda *_args: (run.start, run.stop)
    try:
        yield
    finally:
        base.get_pp_indices = asked
