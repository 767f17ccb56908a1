"""Read a model's anatomy from a checkpoint's config and headers, or from a model in memory: the same either way."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Site, Sublayer
from pruning.anatomy.decoder_layer import DecoderLayer, TensorSpec
from pruning.anatomy.dtypes import FLOAT_DTYPES, dtype_name
from pruning.anatomy.families import Family, family_of
from pruning.anatomy.layer_config import document_with_global_access
from pruning.anatomy.model_class import check_architecture
from pruning.anatomy.tensor_roles import TensorHeader, decoder_tensor, short_names, tensor_specs
from pruning.checkpoints.expected_tensors import check_tensors
from pruning.checkpoints.global_sizes import global_sizes_are_meant
from pruning.checkpoints.headers import StoredTensor, check_folder, stored_tensors
from pruning.checkpoints.loading_errors import LOADING_ERRORS
from pruning.checkpoints.output_head import needed_tensors
from pruning.errors import CheckpointError, UnsupportedModelError
from pruning.reasons import reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_STRUCTURAL_KEYS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "hidden_act",
    "rms_norm_eps",
)


def load_config(folder: Path) -> "PreTrainedConfig":
    """The folder's config, remote code refused; raises CheckpointError if it cannot be read."""
    from transformers import CONFIG_MAPPING, AutoConfig

    check_folder(folder)
    try:
        with global_sizes_are_meant():
            if (document := document_with_global_access(folder)) is not None:
                config: PreTrainedConfig = CONFIG_MAPPING[document["model_type"]].from_dict(document)
                return config
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except LOADING_ERRORS as error:
        raise CheckpointError(
            "config.json must describe a model that transformers knows",
            values=f"{folder}: {reason_of(error)}",
            remedy="Copy config.json from where the checkpoint came from; a model newer than transformers "
            f"{_transformers_version()} needs a newer one",
        ) from error
    return config


def _transformers_version() -> str:
    import transformers

    return str(transformers.__version__)


def read_anatomy(folder: str | Path, stored: Mapping[str, StoredTensor] | None = None) -> ModelAnatomy:
    """Anatomy of the checkpoint in `folder`, from its config and headers alone; `stored` if they were read already.

    Its tensors are those that a pruned checkpoint needs: see `pruning.checkpoints.output_head.needed_tensors`.

    Raises:
        CheckpointError: the folder is no whole safetensors checkpoint, or its tensors are not those of its config.
        UnsupportedModelError: its language model is of no supported family, or is pruned already.
    """
    folder = Path(folder)
    if stored is None:
        stored = stored_tensors(folder)
    config = load_config(folder)
    check_architecture(config)
    _kv_groups_of(config.get_text_config(decoder=True))
    tensors = [tensor.header for tensor in needed_tensors(config, stored).values()]
    check_tensors(config, tensors)
    return _build(config, tensors)


def anatomy_of(model: "PreTrainedModel") -> ModelAnatomy:
    """Anatomy of a model in memory. Its tensor names are the modules'; the fingerprint equals the checkpoint's."""
    tensors = [(name, tuple(tensor.shape), dtype_name(tensor.dtype)) for name, tensor in model.named_parameters()]
    check_architecture(model.config)
    return _build(model.config, tensors)


def _build(config: "PreTrainedConfig", tensors: list[TensorHeader]) -> ModelAnatomy:
    text = config.get_text_config(decoder=True)
    family = family_of(text)
    # Some files hold integer buffers, which a model in memory does not count as parameters.
    parameters = [t for t in tensors if t[2] in FLOAT_DTYPES]
    by_layer: dict[int, list[TensorHeader]] = defaultdict(list)
    for tensor in parameters:
        if place := decoder_tensor(tensor[0]):
            by_layer[place[0]].append(tensor)
    bare = [_bare_layer(index, by_layer[index], text, family) for index in range(text.num_hidden_layers)]
    specs = tensor_specs(sorted(tensors), bare, text.model_type)
    layers = _checked(bare, specs, family)
    first = Site(0, Sublayer.FFN)
    down = next(t for t in specs if t.site == first and t.name.endswith(f"{family.ffn_out}.weight"))
    return ModelAnatomy(
        model_type=config.model_type,
        text_model_type=text.model_type,
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        layers=layers,
        total_parameters=sum(_numel(shape) for _, shape, _ in parameters),
        dtype=down.dtype,
        fingerprint=_fingerprint(config, text, parameters),
        tensors=specs,
        num_rotary_factors=_num_rotary_factors(text),
    )


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count


def _bare_layer(index: int, tensors: list[TensorHeader], text: Any, family: Family) -> DecoderLayer:
    """A layer as the config has it; what a channel costs is not known yet."""
    return DecoderLayer(
        index=index,
        ffn_width=getattr(text, family.width_attribute),
        num_heads=text.num_attention_heads,
        num_kv_groups=_kv_groups_of(text),
        head_dim=head_dim_of(text),
        ffn_parameters_per_channel=0,
        parameters=sum(_numel(shape) for _, shape, _ in tensors),
        window=_window(index, text),
    )


def _num_rotary_factors(text: Any) -> int:
    """One for each pair of values of a head whose rotary embeddings are scaled; `dynamic` scales none within the
    context."""
    kind = (getattr(text, "rope_parameters", None) or {}).get("rope_type", "default")
    return 0 if kind in ("default", "dynamic") else head_dim_of(text) // 2


def _kv_groups_of(text: Any) -> int:
    """G of a text config, by default one for each query head; raises CheckpointError if heads cannot share them."""
    heads: int = text.num_attention_heads
    groups: int = getattr(text, "num_key_value_heads", None) or heads
    if heads % groups:
        raise CheckpointError("KV groups must divide the query heads", values=f"{heads} heads in {groups} groups")
    return groups


def _window(index: int, text: Any) -> int | None:
    """Positions that a layer's attention sees; None: all."""
    window: int | None = getattr(text, "sliding_window", None)
    layer_types = getattr(text, "layer_types", None)
    return window if layer_types is None or layer_types[index] == "sliding_attention" else None


def layer_shapes(config: "PreTrainedConfig") -> list[DecoderLayer]:
    """The dense layers of a config, without the numbers of parameters, which its tensors tell."""
    text = config.get_text_config(decoder=True)
    family = family_of(text)
    return [_bare_layer(index, [], text, family) for index in range(text.num_hidden_layers)]


def head_dim_of(text: "PreTrainedConfig") -> int:
    """d of a text config: its own, or what its width and heads make."""
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def _checked(layers: list[DecoderLayer], specs: tuple[TensorSpec, ...], family: Family) -> tuple[DecoderLayer, ...]:
    """The layers with what a channel costs.

    A model in memory may have been changed: raises if projections are missing (adapters rename them), or were cut.
    """
    expected = {f"{name}.weight" for name in (*family.rows, family.ffn_out, family.attention_out)}
    found: dict[int, set[str]] = defaultdict(set)
    per_channel: dict[int, int] = defaultdict(int)
    for spec in specs:
        place = decoder_tensor(spec.name)
        if place is None or spec.axis is None:
            continue
        extent = sum(part.count * part.size for part in spec.parts)
        if spec.shape[spec.axis] != extent:
            raise CheckpointError(
                "a projection must be as wide as the config says",
                values=f"{spec.name} {list(spec.shape)}, axis {spec.axis} should be {extent}",
            )
        index, inside = place
        found[index].add(inside)
        if spec.holds(Sublayer.FFN):
            per_channel[index] += _numel(spec.shape) // layers[index].ffn_width
    for layer in layers:
        missing = sorted(expected - found[layer.index])
        if missing:
            raise UnsupportedModelError(
                "every decoder layer must have the projections of its family, as plain weights",
                values=f"layer {layer.index} has no {', '.join(missing)}",
                remedy="Merge adapters; quantised and factorised weights are not supported",
            )
    return tuple(replace(layer, ffn_parameters_per_channel=per_channel[layer.index]) for layer in layers)


def _fingerprint(config: "PreTrainedConfig", text: Any, tensors: list[TensorHeader]) -> str:
    """sha256 over the structural config and all tensors by their short names, equal for a file and the model of it."""
    short = short_names((name for name, _, _ in tensors), tied=bool(getattr(config, "tie_word_embeddings", False)))
    named = [[short[name], list(shape)] for name, shape, _ in tensors]
    document = {
        "model_type": config.model_type,
        "text": {key: getattr(text, key, None) for key in _STRUCTURAL_KEYS},
        "tensors": sorted(named),
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
