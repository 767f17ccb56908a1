"""Loading models: dense ones as transformers does, pruned ones with the widths that their config records."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.anatomy.architecture import Sublayer
from pruning.anatomy.decoder_view import decoder_view
from pruning.anatomy.layer_config import document_with_global_access, recorded_architecture
from pruning.anatomy.model_class import model_class
from pruning.checkpoints.adapters import WITHOUT_ADAPTERS
from pruning.checkpoints.anatomy_reader import layer_shapes, load_config
from pruning.checkpoints.generation_file import special_tokens_alone
from pruning.checkpoints.global_sizes import global_sizes_are_meant
from pruning.checkpoints.headers import read_headers
from pruning.checkpoints.loading_arguments import accepted_arguments
from pruning.checkpoints.loading_errors import LOADING_ERRORS
from pruning.checkpoints.output_head import is_tied_wrongly
from pruning.checkpoints.processor import Embeddings, note_embeddings, tokenizer_of
from pruning.checkpoints.registering import is_registered
from pruning.checkpoints.resizing import add_biases, biased_layers, resize_layers
from pruning.checkpoints.wrapped_names import check_unwrapped
from pruning.errors import CheckpointError, InputError, LopError
from pruning.missing_packages import missing_package
from pruning.reasons import reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from pruning.checkpoints.processor import Processor

PLAN_NAME = "lop_plan.json"


def load_model(path: str | Path, **kwargs: Any) -> "PreTrainedModel":
    """Load a dense or a pruned checkpoint folder; keyword arguments go to `from_pretrained` (dtype, device_map).

    Builds on the meta device, gives the recorded layers their sizes, and a down projection a bias where the files hold
    one, then loads the safetensors weights through transformers, so sharded files, dtypes and renamed tensors are its
    business.

    A `config` of the caller's own takes the place of the folder's, if it is of the same class and records the same
    sizes. What is settled here, such as `use_safetensors`, may be given as it is
    (`pruning.checkpoints.loading_arguments`).

    Raises:
        CheckpointError: the folder is damaged, or its tensors are not exactly those of the model.
        InputError: a keyword argument contradicts how checkpoints are loaded here.
    """
    kwargs = accepted_arguments(kwargs)
    path = Path(path) / (kwargs.pop("subfolder", None) or "")
    headers = read_headers(path)
    check_unwrapped(headers)
    config = load_config(path)
    own = kwargs.pop("config", None)
    if own is not None:
        kwargs["config"] = _agreeing_config(own, config)
    elif document_with_global_access(path) is not None:  # transformers would read the file as it is
        kwargs["config"] = config
    return load_as(class_for(config, headers), path, **kwargs)


def _agreeing_config(own: "PreTrainedConfig | str | Path", config: "PreTrainedConfig") -> "PreTrainedConfig":
    """The caller's config; raises InputError unless its layers are those of the folder's."""
    from transformers import PreTrainedConfig

    if isinstance(own, str | Path):
        own = load_config(Path(own))
    if not isinstance(own, PreTrainedConfig):
        raise InputError("config must be a config of transformers, or its folder", values=type(own).__name__)
    if type(own) is not type(config) or _sizes(own) != _sizes(config):
        raise InputError(
            "config must be of the checkpoint's class, with the sizes that the checkpoint records in per_layer_config",
            values=f"{type(own).__name__} {_sizes(own)}, the folder has {type(config).__name__} {_sizes(config)}",
            remedy="Load it with transformers.AutoConfig from the folder, and change what you need",
        )
    return own


def _sizes(config: "PreTrainedConfig") -> str:
    """What the layers of a config have, as text."""
    recorded, dense = recorded_architecture(config), layer_shapes(config)
    if recorded is None:
        return "of a dense model"
    widths = recorded.units(Sublayer.FFN, [layer.ffn_width for layer in dense])
    groups = recorded.units(Sublayer.ATTENTION, [layer.num_kv_groups for layer in dense])
    return f"with {list(widths)} channels and {list(groups)} KV groups"


def load_as(built_class: "type[PreTrainedModel]", path: Path, **kwargs: Any) -> "PreTrainedModel":
    """A model of `built_class` (see `posing_as`) with the weights in `path`, ready for inference; `kwargs` are those
    that `accepted_arguments` left.

    Adapter files beside the weights are left alone. Raises CheckpointError if the weights cannot be loaded, or are not
    exactly those that the class needs, or if the folder's generation config names no special tokens by their ids.
    """
    kwargs.setdefault("adapter_kwargs", WITHOUT_ADAPTERS)
    if (tokens := special_tokens_alone(path)) is not None:
        kwargs.setdefault("generation_config", tokens)
    try:
        with global_sizes_are_meant():
            model, info = built_class.from_pretrained(
                path,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told below, by name: transformers' own error says to look into its log
                **kwargs,
            )
    except LOADING_ERRORS as error:
        raise CheckpointError("the checkpoint must load", values=f"{path}: {reason_of(error)}") from error
    problems = {kind: sorted(map(str, info[f"{kind}_keys"])) for kind in _REMEDIES}
    for kind, names in problems.items():
        if names:
            raise CheckpointError(
                "the checkpoint must hold exactly the model's tensors",
                values=f"{path}: {len(names)} {kind}, first {names[0]}",
                remedy=_REMEDIES[kind],
            )
    model.__class__ = model_class(model.config)
    if is_tied_wrongly(model.config, (name for name, _ in model.named_parameters())):
        # transformers has not tied them; saved like this, the config would say so again.
        model.config.tie_word_embeddings = model.config.get_text_config(decoder=True).tie_word_embeddings = False
    loaded: PreTrainedModel = model.eval()
    return loaded


_REMEDIES = {
    "mismatched": "Sizes are what config.json says, those of a pruned checkpoint in its per_layer_config: use the "
    "config.json that belongs to these weights",
    "missing": "Copy or download the checkpoint again",
    "unexpected": "Take out what was stored beside the model, or merge it into the weights (adapters)",
}


def class_for(config: "PreTrainedConfig", names: Iterable[str]) -> "type[PreTrainedModel]":
    """The class that a checkpoint with `config`, dense or cut, and the tensors `names` is loaded into."""
    compensated = biased_layers(config, names) if recorded_architecture(config) else set()
    return resized_class(config, compensated=compensated)


def resized_class(config: "PreTrainedConfig", *, compensated: Collection[int] = ()) -> "type[PreTrainedModel]":
    """transformers' class for `config`, but its layers are built with the sizes that `config` records.

    The down projections of the `compensated` layers get a bias, if the model is a pruned one.
    """
    known_class, architecture = model_class(config), recorded_architecture(config)

    class Resized(known_class):  # type: ignore[misc, valid-type]
        def __init__(self, config: "PreTrainedConfig", *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            if architecture is None:
                return
            view = decoder_view(self)
            if not is_registered():
                resize_layers(view, self.config, architecture)
            add_biases(view, compensated)

    return posing_as(known_class, Resized)


def posing_as(known_class: "type[PreTrainedModel]", subclass: "type[PreTrainedModel]") -> "type[PreTrainedModel]":
    """`subclass` under the name of transformers' own class that it extends.

    transformers renames hub tensors by a class's name and module, and leaves out classes that are not its own.
    """
    subclass.__name__ = subclass.__qualname__ = known_class.__name__
    subclass.__module__ = known_class.__module__
    return subclass


def load_pruned(path: str | Path, **kwargs: Any) -> "PreTrainedModel":
    """Load a pruned checkpoint: one written by `lop apply` or `save_pruned`, or by `save_pretrained` (as Trainer does)
    of a model that came from one.

    The sizes of its layers are in its config; the plan file is not needed. Raises as `load_model`, and CheckpointError
    if the folder is of a dense model.
    """
    folder = Path(path) / (kwargs.get("subfolder") or "")
    # A plan that removes nothing leaves no sizes in the config, and is the one thing that tells its checkpoint apart.
    if not (folder / PLAN_NAME).is_file() and recorded_architecture(load_config(folder)) is None:
        raise CheckpointError(
            f"a pruned checkpoint has its layers' sizes as per_layer_config in config.json, or holds {PLAN_NAME}",
            values=str(folder),
            remedy="Load a dense checkpoint with transformers, or make a pruned one with `lop apply`. If this one "
            "was pruned, its config.json is another's: copy the pruned one's",
        )
    return load_model(path, **kwargs)


def load_processor(path: str | Path) -> "Processor":
    """The folder's processor (image processor, tokenizer, chat template), or the tokenizer of a language model.

    Pictures are processed by Pillow and NumPy, videos not at all, whatever else is installed.

    Raises:
        CheckpointError: there is none, its settings cannot be read, or the tokenizer has no vocabulary for the model.
        MissingExtraError: it asks for a package that is not installed.
    """
    from pruning.checkpoints.hub_processors import load_image_text_processor, load_tokenizer
    from pruning.checkpoints.tokenizer_checks import check_can_be_read, check_vocabulary, ensure_padding

    path = Path(path)
    config = load_config(path)
    text = config.get_text_config(decoder=True)
    check_can_be_read(path)
    try:
        processor: Processor = load_tokenizer(path) if text is config else load_image_text_processor(path, config)
    except LopError:
        raise
    except Exception as error:  # tokenizers raises Exception itself, and processors are anybody's code
        if (missing := missing_package(error, of=str(path))) is not None:
            raise missing from error
        raise CheckpointError(
            "the folder must hold the model's processor",
            values=f"{path}: {reason_of(error)}",
            remedy="Copy tokenizer and processor files from the checkpoint that it was made from; `lop evaluate` also "
            "takes --processor FOLDER",
        ) from error
    tokenizer, rows = tokenizer_of(processor), int(text.vocab_size)
    check_vocabulary(tokenizer, path, rows)
    ensure_padding(tokenizer, path, rows)
    placeholder = getattr(config, "image_token_id", None)
    note_embeddings(processor, Embeddings(rows, frozenset() if placeholder is None else frozenset({int(placeholder)})))
    return processor
