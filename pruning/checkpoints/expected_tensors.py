"""The tensors of a checkpoint held against those of the model that its config describes, built without memory."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from pruning.anatomy.dtypes import FLOAT_DTYPES
from pruning.anatomy.model_class import model_class
from pruning.anatomy.tensor_roles import (
    EMBEDDINGS,
    OUTPUT_HEAD,
    TensorHeader,
    decoder_tensor,
    is_computed,
    outer_tensor,
    short_names,
)
from pruning.checkpoints.loading_errors import LOADING_ERRORS
from pruning.checkpoints.wrapped_names import check_unwrapped
from pruning.errors import CheckpointError, UnsupportedModelError
from pruning.reasons import reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def check_tensors(
    config: "PreTrainedConfig",
    tensors: Iterable[TensorHeader],
    built_class: "type[PreTrainedModel] | None" = None,
) -> None:
    """Check, before any is read, that `tensors` are those of the model of `config`: the dense one, or, of a cut model,
    that of its `built_class` (`loading.class_for`).

    The language model's are compared by name and shape. All others are looked for by the end of their name and by how
    many values they hold, since transformers renames modules and reshapes some when it loads; what it would leave out
    may be there too.

    Raises:
        CheckpointError: a tensor is missing, is nobody's, or has another shape or size; transformers cannot build the
            model.
        UnsupportedModelError: a decoder layer lacks a projection, or has tensors that the model has not (scales of
            quantised weights, factors of factorised ones), or weights that are no floating-point numbers.
    """
    tensors = list(tensors)
    check_unwrapped([name for name, _, _ in tensors])
    tied = bool(getattr(config, "tie_word_embeddings", False))
    layers = _layers(tensors)
    if built_class is None:  # of a layer of which all is skipped there are no tensors
        _check_number(layers, config.get_text_config(decoder=True).num_hidden_layers, tensors)
    model = _built(config, built_class)
    # Tied ones are listed once.
    built = [(name, tuple(parameter.shape), "") for name, parameter in model.named_parameters()]
    _check_layers(layers, _layers(built))
    _check_outer(_outer(tensors, tied=tied), _outer(built, tied=tied))
    needed = [tensor for tensor in built if not _matches(tensor[0], model._keys_to_ignore_on_load_missing)]
    _check_complete(tensors, needed, tied=tied)
    ignored = model._keys_to_ignore_on_load_unexpected
    names = [name for name, _, _ in tensors if not (is_computed(name) or _matches(name, ignored))]
    # Also buffers that models compute: files may hold them.
    _check_known(names, [name for name, _, _ in built] + [name for name, _ in model.named_buffers()], tied=tied)


def _built(config: "PreTrainedConfig", built_class: "type[PreTrainedModel] | None" = None) -> "PreTrainedModel":
    """The model of `config`, without memory for its weights."""
    import torch

    config = deepcopy(config)
    _check_padding(config)
    try:
        config._attn_implementation = "eager"  # nothing is computed: a kernel that is not installed is not needed
        with torch.device("meta"):
            model: PreTrainedModel = (built_class or model_class(config))(config)
    except LOADING_ERRORS as error:
        raise CheckpointError(
            "transformers must be able to build the model of config.json",
            values=reason_of(error) + _where_said(config, error),
            remedy="Correct config.json, or copy it from where the checkpoint came from",
        ) from error
    return model


def _where_said(config: "PreTrainedConfig", error: Exception) -> str:
    """Which field of the config holds the value that a look-up failed for, where that is all that the error says."""
    missing = error.args[0] if isinstance(error, LookupError) and error.args else None
    if not isinstance(missing, str):
        return ""
    places: list[tuple[str, Any]] = list(config.to_dict().items())
    while places:
        name, value = places.pop(0)
        if value == missing:
            return f", which is its {name}"
        if isinstance(value, dict):
            places += [(f"{name}.{key}", inside) for key, inside in value.items()]
    return ""


def _check_padding(config: "PreTrainedConfig") -> None:
    text = config.get_text_config(decoder=True)
    padding, rows = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    # Old configs count from the end: -1.
    if isinstance(padding, int) and isinstance(rows, int) and not -rows <= padding < rows:
        raise CheckpointError(
            "pad_token_id must be one of the embeddings",
            values=f"pad_token_id={padding}, vocab_size={rows}",
            remedy="Set the language model's pad_token_id in config.json to null, or to a token below vocab_size",
        )


def _matches(name: str, patterns: Iterable[str] | None) -> bool:
    return any(re.search(pattern, name) for pattern in patterns or ())


_Layers = Mapping[int, Mapping[str, TensorHeader]]


def _layers(tensors: Iterable[TensorHeader]) -> _Layers:
    """By layer: a tensor's name inside it -> the tensor."""
    found: dict[int, dict[str, TensorHeader]] = defaultdict(dict)
    for tensor in tensors:
        if place := decoder_tensor(tensor[0]):
            found[place[0]][place[1]] = tensor
    return found


def _outer(tensors: Iterable[TensorHeader], *, tied: bool) -> dict[str, TensorHeader]:
    """Embeddings, last norm and head of the language model; tied ones that are stored once are embeddings."""
    found = {kind: tensor for tensor in tensors if (kind := outer_tensor(tensor[0]))}
    if tied and EMBEDDINGS not in found and OUTPUT_HEAD in found:
        found[EMBEDDINGS] = found.pop(OUTPUT_HEAD)
    return found


def _check_number(found: _Layers, count: int, tensors: Sequence[TensorHeader]) -> None:
    if len(found) == count and max(found, default=-1) < count:
        return
    values = f"config says {count} layers, found {len(found)}"
    remedy = "Copy or download the checkpoint again, or correct num_hidden_layers in config.json"
    if not found:
        values += f" among {len(tensors)} tensors, first {min(tensors)[0] if tensors else 'none'}"
        remedy = "Names must be transformers' own, such as model.layers.0.mlp.down_proj.weight: convert the checkpoint"
    raise CheckpointError(
        "the checkpoint must hold every decoder layer of its config, and no others", values=values, remedy=remedy
    )


def _check_layers(found: _Layers, built: _Layers) -> None:
    for layer, expected in sorted(built.items()):
        for kind, names in (
            ("has no", expected.keys() - found[layer].keys()),
            ("has an unknown", found[layer].keys() - expected.keys()),
        ):
            if names:
                raise UnsupportedModelError(
                    "every decoder layer must have the tensors of its family, as plain weights, and no others",
                    values=f"layer {layer} {kind} {', '.join(sorted(names))}",
                    remedy="Experts, state-space layers, quantised and factorised weights are not supported",
                )
        for name, (_, shape, _) in expected.items():
            _check_tensor(found[layer][name], shape)


def _check_outer(found: Mapping[str, TensorHeader], built: Mapping[str, TensorHeader]) -> None:
    for kind, (_, shape, _) in built.items():
        if kind in found:  # what is missing is found among the rest
            _check_tensor(found[kind], shape)
    if OUTPUT_HEAD in found and OUTPUT_HEAD not in built:  # the config ties a head that differs from the embeddings
        _check_tensor(found[OUTPUT_HEAD], built[EMBEDDINGS][1])


def _check_tensor(found: TensorHeader, shape: tuple[int, ...]) -> None:
    name, found_shape, dtype = found
    if found_shape != shape:
        raise CheckpointError(
            "the language model's tensors must have the shapes that the config says",
            values=f"{name} {list(found_shape)}, should be {list(shape)}",
            remedy="Check intermediate_size, the numbers of heads, head_dim and vocab_size in config.json",
        )
    if dtype not in FLOAT_DTYPES:
        raise UnsupportedModelError(
            f"the language model's weights must be floating-point numbers ({', '.join(FLOAT_DTYPES)})",
            values=f"{name} {dtype}",
            remedy="Prune the unquantised checkpoint, and quantise what comes out",
        )


def _check_complete(tensors: Iterable[TensorHeader], needed: Iterable[TensorHeader], *, tied: bool) -> None:
    found, expected = _sizes(tensors, tied=tied), _sizes(needed, tied=tied)
    missing = Counter(name for name, _ in expected.elements()) - Counter(name for name, _ in found.elements())
    if missing:
        raise CheckpointError(
            "the checkpoint must hold every tensor of its model",
            values=f"{missing.total()} are missing, first one that ends in {min(missing)}",
            remedy="Copy or download the checkpoint again",
        )
    if wrong := expected - found:
        name, size = min(wrong)
        has = ", ".join(str(other) for short, other in sorted(found - expected) if short == name)
        raise CheckpointError(
            "every tensor must have as many values as the config says",
            values=f"one that ends in {name} has {has}, should have {size}",
            remedy="Check the sizes of the vision tower and the projector in config.json, or copy the checkpoint again",
        )


def _check_known(names: Iterable[str], built: Iterable[str], *, tied: bool) -> None:
    """No name's end more often than in the model: a second vision tower's tensors end as those of the first."""
    short = short_names(names, tied=tied)
    unknown = Counter(short.values()) - Counter(short_names(built, tied=tied).values())
    unknown.pop(OUTPUT_HEAD, None)  # one that differs from the embeddings is kept, whatever the config says
    if unknown:
        first = max(name for name, end in short.items() if end == min(unknown))
        raise CheckpointError(
            "the checkpoint must hold no tensors that its model has not",
            values=f"{unknown.total()} too many, among them {first}",
            remedy="Take out what was stored beside the model, or merge it into the weights (adapters)",
        )


def _sizes(tensors: Iterable[TensorHeader], *, tied: bool) -> Counter[tuple[str, int]]:
    """How many tensors there are of each short name and number of values."""
    sizes = {name: math.prod(shape) for name, shape, _ in tensors}
    return Counter((short, sizes[name]) for name, short in short_names(sizes, tied=tied).items())
