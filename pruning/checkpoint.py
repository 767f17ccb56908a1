"""Loading models: dense ones as transformers does, pruned ones with the widths that their config records."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.adapters import WITHOUT_ADAPTERS
from pruning.anatomy_reader import load_config
from pruning.architecture import model_class
from pruning.errors import CheckpointError, LopError
from pruning.families import family_of
from pruning.headers import read_headers
from pruning.layer_config import recorded_sizes
from pruning.missing_packages import missing_package
from pruning.output_head import is_tied_wrongly
from pruning.processor import Embeddings, first_line, note_embeddings, tokenizer_of
from pruning.surgery import resize_model
from pruning.tensor_roles import decoder_tensor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from pruning.processor import Processor

PLAN_NAME = "lop_plan.json"


def biased_layers(config: "PreTrainedConfig", names: Iterable[str]) -> set[int]:
    """The decoder layers whose down projection has a bias, by the checkpoint's tensor names.

    No config field of transformers says so of one projection and one layer (Llama's `mlp_bias` is about all three of
    every layer), so the weight files are where it is recorded.
    """
    family = family_of(config.get_text_config(decoder=True))
    found = (decoder_tensor(name) for name in names)
    return {layer for layer, inside in filter(None, found) if inside == f"{family.ffn_out}.bias"}


def load_model(path: str | Path, **kwargs: Any) -> "PreTrainedModel":
    """Load a dense or a pruned checkpoint folder; keyword arguments go to `from_pretrained` (dtype, device_map).

    Builds on the meta device, gives the recorded layers their sizes, and a down projection a bias where the files hold
    one, then loads the safetensors weights through transformers, so sharded files, dtypes and renamed tensors are its
    business.

    Raises:
        CheckpointError: the folder is damaged, or its tensors are not exactly those of the model.
    """
    path = Path(path)
    headers = read_headers(path)
    config = load_config(path)
    compensated = biased_layers(config, headers) if recorded_sizes(config) else set()
    return load_as(resized_class(config, compensated=compensated), path, **kwargs)


def load_as(built_class: "type[PreTrainedModel]", path: Path, **kwargs: Any) -> "PreTrainedModel":
    """A model of `built_class` (see `posing_as`) with the weights in `path`, ready for inference.

    Adapter files beside the weights are left alone. Raises CheckpointError if the weights cannot be loaded, or are not
    exactly those that the class needs.
    """
    kwargs.setdefault("adapter_kwargs", WITHOUT_ADAPTERS)
    try:
        model, info = built_class.from_pretrained(
            path, use_safetensors=True, local_files_only=True, output_loading_info=True, **kwargs
        )
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError("the checkpoint must load", values=f"{path}: {reason}") from error
    problems = {kind: sorted(map(str, info[f"{kind}_keys"])) for kind in ("missing", "mismatched", "unexpected")}
    for kind, names in problems.items():
        if names:
            raise CheckpointError(
                "the checkpoint must hold exactly the model's tensors",
                values=f"{path}: {len(names)} {kind}, first {names[0]}",
            )
    model.__class__ = model_class(model.config)
    if is_tied_wrongly(model.config, (name for name, _ in model.named_parameters())):
        # transformers has not tied them; saved like this, the config would say so again.
        model.config.tie_word_embeddings = model.config.get_text_config(decoder=True).tie_word_embeddings = False
    loaded: PreTrainedModel = model.eval()
    return loaded


def resized_class(config: "PreTrainedConfig", *, compensated: Collection[int] = ()) -> "type[PreTrainedModel]":
    """transformers' class for `config`, but its layers are built with the sizes that `config` records.

    The down projections of the `compensated` layers get a bias, if the model is a pruned one.
    """
    known_class, sizes = model_class(config), recorded_sizes(config)

    class Resized(known_class):  # type: ignore[misc, valid-type]
        def __init__(self, config: "PreTrainedConfig", *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            if sizes is not None:
                resize_model(self, sizes, compensated=compensated)

    return posing_as(known_class, Resized)


def posing_as(known_class: "type[PreTrainedModel]", subclass: "type[PreTrainedModel]") -> "type[PreTrainedModel]":
    """`subclass` under the name of transformers' own class that it extends.

    transformers renames hub tensors by a class's name and module, and leaves out classes that are not its own.
    """
    subclass.__name__ = subclass.__qualname__ = known_class.__name__
    subclass.__module__ = known_class.__module__
    return subclass


def load_pruned(path: str | Path, **kwargs: Any) -> "PreTrainedModel":
    """Load a checkpoint written by `save_pruned` or `prune_checkpoint`; raises CheckpointError if it is not one."""
    if Path(path).is_dir() and not (Path(path) / PLAN_NAME).is_file():
        raise CheckpointError(
            f"a pruned checkpoint holds {PLAN_NAME}",
            values=str(path),
            remedy="Load a dense checkpoint with transformers, or make a pruned one with `lop apply`",
        )
    return load_model(path, **kwargs)


def load_processor(path: str | Path) -> "Processor":
    """The folder's processor (image processor, tokenizer, chat template), or the tokenizer of a language model.

    Pictures are processed by Pillow and NumPy, videos not at all, whatever else is installed.

    Raises:
        CheckpointError: there is none, its settings cannot be read, or the tokenizer has no vocabulary for the model.
        MissingExtraError: it asks for a package that is not installed.
    """
    from pruning.hub_processors import load_image_text_processor, load_tokenizer
    from pruning.tokenizer_checks import check_can_be_read, check_vocabulary, ensure_padding

    path = Path(path)
    config = load_config(path)
    text = config.get_text_config(decoder=True)
    check_can_be_read(path)
    try:
        processor: Processor = load_tokenizer(path) if text is config else load_image_text_processor(path, config)
    except LopError:
        raise
    except Exception as error:
        if (missing := missing_package(error, of=str(path))) is not None:
            raise missing from error
        raise CheckpointError(
            "the folder must hold the model's processor", values=f"{path}: {first_line(error)}"
        ) from error
    tokenizer, rows = tokenizer_of(processor), int(text.vocab_size)
    check_vocabulary(tokenizer, path, rows)
    ensure_padding(tokenizer, path, rows)
    placeholder = getattr(config, "image_token_id", None)
    note_embeddings(processor, Embeddings(rows, frozenset() if placeholder is None else frozenset({int(placeholder)})))
    return processor
