"""Read a model's anatomy from a checkpoint's config and headers, or from a model in memory: the same either way."""

import hashlib
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.anatomy import DecoderLayer, ModelAnatomy, TensorSpec
from pruning.cost import TensorHeader
from pruning.errors import CheckpointError, UnsupportedModelError
from pruning.families import FfnFamily, ffn_family
from pruning.headers import read_headers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# A decoder tensor, whatever prefix the library or the hub gives it; vision towers number their layers too.
_DECODER_TENSOR = re.compile(r"^(?!.*(?:vision|visual|encoder))(?:.*\.)?layers\.(\d+)\.(.+)$")

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

_INTEGER_DTYPES = {"I64", "I32", "I16", "I8", "U8", "BOOL"}

_TORCH_DTYPES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def decoder_tensor(name: str) -> tuple[int, str] | None:
    """The layer of a decoder tensor and its name inside the layer; None for any other tensor."""
    match = _DECODER_TENSOR.match(name)
    return (int(match[1]), match[2]) if match else None


def load_config(folder: Path) -> "PreTrainedConfig":
    """The folder's config, remote code refused; raises CheckpointError if it cannot be read."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            "config.json must describe a model that transformers knows", values=f"{folder}: {reason}"
        ) from error


def read_anatomy(folder: str | Path) -> ModelAnatomy:
    """Anatomy of the checkpoint in `folder`, from its config and headers alone.

    Raises:
        CheckpointError: the folder is no whole safetensors checkpoint.
        UnsupportedModelError: its language model is of no supported family, or is pruned already.
    """
    folder = Path(folder)
    tensors = [header for _, header in read_headers(folder).values()]
    return _build(load_config(folder), tensors)


def anatomy_of(model: "PreTrainedModel") -> ModelAnatomy:
    """Anatomy of a model in memory. Its tensor names are the modules'; the fingerprint equals the checkpoint's."""
    tensors = [
        (name, tuple(tensor.shape), _TORCH_DTYPES.get(str(tensor.dtype).removeprefix("torch."), "F32"))
        for name, tensor in model.named_parameters()
    ]
    return _build(model.config, tensors)


def _build(config: "PreTrainedConfig", tensors: list[TensorHeader]) -> ModelAnatomy:
    text = config.get_text_config(decoder=True)
    if getattr(text, "is_heterogeneous", False):
        raise UnsupportedModelError(
            "a model can be planned for once, from its dense checkpoint",
            values="per_layer_config says that it is pruned",
            remedy="Use the dense checkpoint that it was made from",
        )
    family = ffn_family(text.model_type)
    if getattr(config, "tie_word_embeddings", False):
        tensors = [t for t in tensors if not t[0].endswith("lm_head.weight")]
    # Old exports carry integer buffers (position ids), which a model in memory does not count as parameters.
    parameters = [t for t in tensors if t[2] not in _INTEGER_DTYPES]
    by_layer: dict[int, list[TensorHeader]] = defaultdict(list)
    for tensor in parameters:
        if place := decoder_tensor(tensor[0]):
            by_layer[place[0]].append(tensor)
    if sorted(by_layer) != list(range(text.num_hidden_layers)):
        raise CheckpointError(
            "the checkpoint must hold every decoder layer of its config",
            values=f"config says {text.num_hidden_layers} layers, found {len(by_layer)}",
        )
    layers = tuple(_layer(index, by_layer[index], text, family) for index in range(text.num_hidden_layers))
    specs = (_spec(t, family) for t in sorted(tensors))
    down = next(t for t in by_layer[0] if t[0].endswith(f"{family.out}.weight"))
    return ModelAnatomy(
        model_type=config.model_type,
        text_model_type=text.model_type,
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        layers=layers,
        total_parameters=sum(_numel(shape) for _, shape, _ in parameters),
        dtype=down[2],
        fingerprint=_fingerprint(config, text, parameters),
        tensors=tuple(specs),
    )


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count


def _ffn_axis(suffix: str, family: FfnFamily) -> int | None:
    """The axis of the decoder tensor `suffix` (its name inside the layer) that counts FFN channels, if any."""
    for name in family.into:
        if suffix in (f"{family.module}.{name}.weight", f"{family.module}.{name}.bias"):
            return 0
    return 1 if suffix == f"{family.module}.{family.out}.weight" else None


def _spec(tensor: TensorHeader, family: FfnFamily) -> TensorSpec:
    name, shape, dtype = tensor
    place = decoder_tensor(name)
    axis = _ffn_axis(place[1], family) if place else None
    return TensorSpec(name, shape, dtype, place[0] if place and axis is not None else None, axis)


def _layer(index: int, tensors: list[TensorHeader], text: Any, family: FfnFamily) -> DecoderLayer:
    width = getattr(text, family.width_attribute)
    per_channel = 0
    for tensor in tensors:
        spec = _spec(tensor, family)
        if spec.ffn_axis is None:
            continue
        if spec.shape[spec.ffn_axis] != width:
            raise CheckpointError(
                "FFN tensors must be as wide as the config says", values=f"{spec.name} {spec.shape}, width {width}"
            )
        per_channel += _numel(spec.shape) // width
    if not per_channel:
        raise UnsupportedModelError(
            f"every decoder layer must have a dense FFN with {', '.join(family.into)} and {family.out}",
            values=f"layer {index} has none",
            remedy="Mixture-of-experts layers are not supported",
        )
    heads = text.num_attention_heads
    return DecoderLayer(
        index=index,
        ffn_width=width,
        num_heads=heads,
        num_kv_groups=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        ffn_parameters_per_channel=per_channel,
        parameters=sum(_numel(shape) for _, shape, _ in tensors),
    )


def _fingerprint(config: "PreTrainedConfig", text: Any, tensors: list[TensorHeader]) -> str:
    """sha256 over the structural config and all tensors, independent of prefixes that differ between file and module.

    Decoder tensors count with their name inside the layer, others with their last two name parts.
    """
    named = []
    for name, shape, _ in tensors:
        place = decoder_tensor(name)
        short = f"layers.{place[0]}.{place[1]}" if place else ".".join(name.split(".")[-2:])
        named.append([short, list(shape)])
    document = {
        "model_type": config.model_type,
        "text": {key: getattr(text, key, None) for key in _STRUCTURAL_KEYS},
        "tensors": sorted(named),
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
