"""Loading models: dense ones as transformers does, pruned ones with the widths that their config records."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.anatomy_reader import decoder_tensor, load_config
from pruning.errors import CheckpointError
from pruning.families import ffn_family
from pruning.headers import read_headers
from pruning.surgery import resize_ffns

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

PLAN_NAME = "lop_plan.json"


def recorded_widths(config: "PreTrainedConfig") -> dict[int, int]:
    """The FFN widths that a config records per layer; empty for a dense model."""
    text = config.get_text_config(decoder=True)
    if not getattr(text, "is_heterogeneous", False):
        return {}
    attribute = ffn_family(text.model_type).width_attribute
    overrides: Mapping[str, Mapping[str, Any]] = text.to_dict().get("per_layer_config", {})
    return {int(layer): int(values[attribute]) for layer, values in overrides.items() if attribute in values}


def biased_layers(config: "PreTrainedConfig", names: Iterable[str]) -> set[int]:
    """The decoder layers whose down projection has a bias, by the checkpoint's tensor names.

    No config field of transformers says so of one projection and one layer (Llama's `mlp_bias` is about all three of
    every layer), so the weight files are where it is recorded.
    """
    family = ffn_family(config.get_text_config(decoder=True).model_type)
    found = (decoder_tensor(name) for name in names)
    return {layer for layer, inside in filter(None, found) if inside == f"{family.module}.{family.out}.bias"}


def load_model(path: str | Path, **kwargs: Any) -> "PreTrainedModel":
    """Load a dense or a pruned checkpoint folder; keyword arguments go to `from_pretrained` (dtype, device_map).

    Builds on the meta device, gives the recorded layers their widths, and a down projection a bias where the files hold
    one, then loads the safetensors weights through transformers, so sharded files, dtypes and renamed tensors are its
    business.

    Raises:
        CheckpointError: the folder is damaged, or its tensors are not exactly those of the model.
    """
    path = Path(path)
    headers = read_headers(path)
    config = load_config(path)
    widths = recorded_widths(config)
    compensated = biased_layers(config, headers) if widths else set()
    try:
        model, info = resized_class(config, compensated=compensated).from_pretrained(
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
    model.__class__ = model_class(config)
    loaded: PreTrainedModel = model.eval()
    return loaded


def resized_class(config: "PreTrainedConfig", *, compensated: Collection[int] = ()) -> "type[PreTrainedModel]":
    """transformers' class for `config`, but its FFNs are built with the widths that `config` records.

    The down projections of the `compensated` layers get a bias, if they are narrower than the dense ones.
    """
    known_class, widths = model_class(config), recorded_widths(config)

    class Resized(known_class):  # type: ignore[misc, valid-type]
        def __init__(self, config: "PreTrainedConfig", *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            resize_ffns(self, widths, compensated=widths.keys() & compensated)

    # transformers renames hub tensors by a class's name and module, and leaves out classes that are not its own.
    Resized.__name__ = Resized.__qualname__ = known_class.__name__
    Resized.__module__ = known_class.__module__
    return Resized


def load_pruned(path: str | Path, **kwargs: Any) -> "PreTrainedModel":
    """Load a checkpoint written by `save_pruned` or `prune_checkpoint`; raises CheckpointError if it is not one."""
    if Path(path).is_dir() and not (Path(path) / PLAN_NAME).is_file():
        raise CheckpointError(
            f"a pruned checkpoint holds {PLAN_NAME}",
            values=str(path),
            remedy="Load a dense checkpoint with transformers, or make a pruned one with `lop apply`",
        )
    return load_model(path, **kwargs)


def load_processor(path: str | Path) -> "ProcessorMixin":
    """The folder's processor (image processor, tokenizer, chat template); raises CheckpointError if there is none."""
    from transformers import AutoProcessor, ProcessorMixin

    try:
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError("the folder must hold the model's processor", values=f"{path}: {reason}") from error
    if not isinstance(processor, ProcessorMixin) or getattr(processor, "tokenizer", None) is None:
        raise CheckpointError("the folder must hold a processor for images and text", values=str(path))
    return processor


def model_class(config: "PreTrainedConfig") -> "type[PreTrainedModel]":
    """transformers' class for a multimodal config; raises CheckpointError if it has none."""
    from transformers import AutoModelForImageTextToText

    try:
        found: type[PreTrainedModel] = AutoModelForImageTextToText._model_mapping[type(config)]
    except KeyError:
        raise CheckpointError(
            "the checkpoint must be an image-text model", values=f"model_type={config.model_type!r}"
        ) from None
    return found
