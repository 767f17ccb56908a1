"""transformers taught to build pruned models by itself: its own `from_pretrained` then needs no loader of ours.

transformers records sizes that differ by layer (`per_layer_config`), but its models are built from the global ones.
Three of its functions do a little more once `register_transformers` has run, and only for decoders of the family table
whose config records other sizes; for any other model they do what they did:

- `post_init`, which every model calls when its modules are there, gives the decoder's layers their recorded sizes;
- `_load_pretrained_model` adds the biases that the weight files hold and no config field tells of;
- `_finalize_model_loading` refuses a decoder that is not wholly in the files, of which transformers would only warn.
"""

from collections.abc import Callable, Iterable
from functools import wraps
from typing import TYPE_CHECKING, Any

from pruning.anatomy.decoder_view import decoder_view
from pruning.anatomy.families import FAMILIES
from pruning.anatomy.layer_config import recorded_architecture
from pruning.anatomy.tensor_roles import decoder_tensor, is_computed
from pruning.checkpoints.resizing import add_biases, biased_layers, resize_layers
from pruning.errors import CheckpointError, UnsupportedVersionError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TESTED = ("5.23", "5.24")
"""The versions of transformers whose three functions are extended; `make test-newest` tries the next."""

LAYERS_APART = "_lop_layers_apart"
"""Set on classes whose decoder is loaded without its layers, which are read, and held against the files, one by one."""

_MARK = "_lop_extends"


def register_transformers() -> None:
    """Let transformers build and load pruned models: `from_pretrained`, `from_config`, `pipeline`, `Trainer`.

    It holds for this process, for all classes of transformers, and may be called again. Dense models are built and
    loaded as before. transformers has no entry point that would do this when it is imported.

    Raises UnsupportedVersionError if transformers is of a version that this was not tested with; nothing is changed
    then.
    """
    import transformers
    from transformers import PreTrainedModel

    if ".".join(transformers.__version__.split(".")[:2]) not in TESTED:
        raise UnsupportedVersionError(
            f"transformers must be {' or '.join(TESTED)} to build pruned models by itself",
            values=f"transformers {transformers.__version__}",
            remedy=f"pip install 'transformers=={TESTED[-1]}.*', or load pruned folders with lop.load_pruned",
        )
    if is_registered():
        return
    PreTrainedModel.post_init = _sizing(PreTrainedModel.post_init)
    PreTrainedModel._load_pretrained_model = staticmethod(_with_biases(PreTrainedModel._load_pretrained_model))
    PreTrainedModel._finalize_model_loading = staticmethod(_complete(PreTrainedModel._finalize_model_loading))


def is_registered() -> bool:
    """Whether transformers builds models with their recorded sizes."""
    from transformers import PreTrainedModel

    return hasattr(PreTrainedModel.post_init, _MARK)


def _sizing(original: Callable[..., None]) -> Callable[..., None]:
    """`post_init`: the layers of a decoder, whatever model it is part of, get their recorded sizes first."""

    @wraps(original)
    def post_init(self: "PreTrainedModel") -> None:
        if _is_pruned(self) and "layers" in self._modules:  # what wraps a decoder may have its config, and no layers
            architecture = recorded_architecture(self.config)
            assert architecture is not None
            resize_layers(decoder_view(self), self.config, architecture)
        original(self)

    setattr(post_init, _MARK, True)
    return post_init


def _with_biases(original: Callable[..., Any]) -> Callable[..., Any]:
    """`_load_pretrained_model`: down projections get a bias where the weights hold one."""

    @wraps(original)
    def load(
        model: "PreTrainedModel", state_dict: Any, checkpoint_files: list[str] | None, *args: Any, **kw: Any
    ) -> Any:
        if _is_loaded_pruned(model):
            names = state_dict if state_dict is not None else _stored_names(checkpoint_files or ())
            add_biases(decoder_view(model), biased_layers(model.config, names))
        return original(model, state_dict, checkpoint_files, *args, **kw)

    return load


def _complete(original: Callable[..., Any]) -> Callable[..., Any]:
    """`_finalize_model_loading`: nothing of a pruned decoder is made anew at random, nothing is left out."""

    @wraps(original)
    def finalize(model: "PreTrainedModel", load_config: Any, loading_info: Any, *args: Any, **kw: Any) -> Any:
        if _is_loaded_pruned(model):
            for kind, names in (("missing", loading_info.missing_keys), ("unexpected", loading_info.unexpected_keys)):
                if wrong := sorted(name for name in map(str, names) if decoder_tensor(name) and not is_computed(name)):
                    raise CheckpointError(
                        "the weight files of a pruned checkpoint must hold exactly its decoder's tensors",
                        values=f"{load_config.pretrained_model_name_or_path}: {len(wrong)} {kind}, first {wrong[0]}",
                        remedy="What each layer has is in per_layer_config of config.json: use the one that belongs "
                        "to these weights, or copy the checkpoint again",
                    )
        return original(model, load_config, loading_info, *args, **kw)

    return finalize


def _is_pruned(model: "PreTrainedModel") -> bool:
    """Whether a decoder of the family table is in it, with layers of sizes of their own."""
    text = model.config.get_text_config(decoder=True)
    return getattr(text, "is_heterogeneous", False) and text.model_type in FAMILIES


def _is_loaded_pruned(model: "PreTrainedModel") -> bool:
    """Whether such a decoder is loaded with its layers, not without them (LAYERS_APART)."""
    return _is_pruned(model) and not getattr(model, LAYERS_APART, False)


def _stored_names(files: Iterable[str]) -> list[str]:
    """The tensors in weight files; none of pickles, which are not ours."""
    from safetensors import safe_open

    names: list[str] = []
    for path in files:
        if str(path).endswith(".safetensors"):
            with safe_open(path, framework="numpy") as file:
                names += file.keys()
    return names
