"""From the bits of a plan to types of tensors for llama.cpp's own quantiser, which has K-quants.

The folder holds plain numbers, cut by the units of the plan (`lop apply --method none`): what is rounded already would
be rounded twice. Each matrix of a sub-layer in fewer bits is named with the type that its bits stand for; other
matrices of layers keep what they are stored as; of embeddings and head, of which a plan says nothing, the quantiser's
own file type decides.

K-quants have blocks of 256 values. A row that is no multiple of it gets the type of 32 values a block that has no fewer
bits: q4_0 for q4_k takes the very same bytes, as q5_0 does for q5_k.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from pruning.anatomy.architecture import Architecture, Site, Sublayer
from pruning.anatomy.families import family_of
from pruning.anatomy.gguf_types import BLOCK, TensorType
from pruning.anatomy.layer_config import recorded_architecture
from pruning.anatomy.packed_weights import FEWER_BITS
from pruning.anatomy.tensor_roles import decoder_tensor
from pruning.checkpoints.anatomy_reader import layer_shapes, load_config
from pruning.checkpoints.headers import StoredTensor, stored_tensors
from pruning.checkpoints.loading import PLAN_NAME
from pruning.checkpoints.packed_tensors import packed_in
from pruning.cutting.gguf.language_model import language_model
from pruning.errors import InputError, PlanError, UnsupportedModelError
from pruning.planning.plan import PruningPlan

DEFAULT_TYPES: Mapping[int, str] = MappingProxyType({8: "q8_0", 4: "q4_k"})
"""What weights of so many bits are stored as, unless something else is asked for."""

LONG_BLOCK = 256
"""Values of a row that K-quants have in a block."""

SHORTER: Mapping[str, str] = MappingProxyType(
    {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q4_0", "q5_k": "q5_0", "q6_k": "q8_0"}
)
"""K-quants -> what rows get that are no multiple of `LONG_BLOCK`."""

_KNOWN = (*SHORTER, "q4_0", "q4_1", "q5_0", "q5_1", "q8_0")


def read_types_of_bits(text: str) -> dict[int, str]:
    """`4=q4_k,8=q6_k`, over `DEFAULT_TYPES`; raises InputError, also if a number of bits is there twice."""
    found: dict[int, str] = {}
    for word in text.split(","):
        bits, _, name = (part.strip().lower() for part in word.partition("="))
        if bits not in map(str, FEWER_BITS) or name not in _KNOWN:
            raise InputError(
                "what bits become is said as BITS=TYPE, with commas between",
                values=repr(word),
                remedy=f"Bits: {', '.join(map(str, FEWER_BITS))}; types: {', '.join(_KNOWN)}",
            )
        if int(bits) in found:
            raise InputError(
                "bits become one type",
                values=f"{bits} bits: {found[int(bits)]} and {name}",
                remedy=f"Say {bits}= once",
            )
        found[int(bits)] = name
    return {**DEFAULT_TYPES, **found}


def check_plain(folder: Path, stored: Mapping[str, StoredTensor]) -> None:
    """Raises UnsupportedModelError if weights of the checkpoint are in few bits, so that a quantiser would round what
    is rounded."""
    if packed := packed_in(stored):
        raise UnsupportedModelError(
            "llama.cpp's quantiser rounds plain numbers",
            values=f"{folder}: {next(iter(packed))} is in few bits already",
            remedy="Leave --quantise out: 8 bits become q8_0, 4 bits q4_0, and nothing is rounded again, if the folder "
            "is of `lop apply` or `lop quantise`; else export the one that it was quantised from, or cut the dense one "
            "with `lop apply --method none`",
        )


def planned_types(
    folder: str | Path,
    plan: PruningPlan,
    types: Mapping[int, str] = DEFAULT_TYPES,
    *,
    stored_as: TensorType = TensorType.F16,
) -> dict[str, str]:
    """The type of every matrix of a layer in the GGUF file of `folder`, by its name there, in the file's order.

    Args:
        types: bits -> ggml's type.
        stored_as: what the file holds matrices as before the quantiser has it.

    Raises:
        PlanError: the folder was cut by another plan, or the plan has no weights in fewer bits.
        UnsupportedModelError: its weights are in few bits already; or as `language_model`.
        CheckpointError: the folder is damaged.
    """
    folder = Path(folder)
    stored, config = stored_tensors(folder), load_config(folder)
    check_plain(folder, stored)
    dense = layer_shapes(config)
    wanted, found = plan.architecture_of(dense), recorded_architecture(config) or Architecture()
    if all(option.bits is None for _, option in wanted.items):
        raise PlanError(
            "a plan says types of tensors by its bits",
            values=f"plan {plan.plan_id} has weights in their own dtype alone",
            remedy="Ask for a plan with --space bits or all,bits",
        )
    _check_cut_by(plan, folder)
    for sublayer in Sublayer:
        units = [layer.units(sublayer) for layer in dense]
        if (planned := wanted.units(sublayer, units)) != (kept := found.units(sublayer, units)):
            raise _cut_otherwise(f"{sublayer.value} units: plan {list(planned)}, {folder} {list(kept)}")
    family, options = family_of(config.get_text_config(decoder=True)), wanted.options
    named = {}
    for tensor in language_model(config, stored, stored_as).tensors:
        if len(tensor.shape) < 2 or not tensor.name.startswith("blk."):
            continue
        place = None if tensor.source is None else decoder_tensor(tensor.source.name)
        half = None if place is None else family.sublayer_of(place[1])
        option = None if place is None or half is None else options.get(Site(place[0], half))
        bits = None if option is None else option.bits
        named[tensor.name] = tensor.stored.value if bits is None else _fitting(types[bits], tensor.shape[-1])
    return named


def _check_cut_by(plan: PruningPlan, folder: Path) -> None:
    """Raises PlanError unless the folder's own plan says that it has the units of `plan`: another one may keep equal
    numbers of other units, or be of another model of the same shape."""
    if not (folder / PLAN_NAME).is_file():
        raise _cut_otherwise(f"{folder} has no {PLAN_NAME}")
    inside = PruningPlan.load(folder / PLAN_NAME)
    asked = (plan.plan_id, plan.model.fingerprint, plan.ranking.sha256, plan.model.weights_sha256)
    found = (inside.provenance.units_of, inside.model.fingerprint, inside.ranking.sha256, inside.model.weights_sha256)
    names = ("cut by plan", "model", "ranking", "weights that were ranked")
    if different := [
        f"{name}: {(of or 'none')[:24]} in {PLAN_NAME}, {(wanted or 'none')[:24]} in the plan"
        for name, wanted, of in zip(names, asked, found, strict=True)
        if wanted != of
    ]:
        raise _cut_otherwise(f"{folder}: {'; '.join(different)}")


def _cut_otherwise(values: str) -> PlanError:
    return PlanError(
        "the folder must be cut by the plan whose bits are asked for",
        values=values,
        remedy="Cut the dense checkpoint with `lop apply --plan PLAN --method none`",
    )


def _fitting(name: str, row: int) -> str:
    """`name`, or the type that rows of so many values, whole blocks of 32, get instead."""
    assert row % BLOCK == 0  # weights in fewer bits come in groups, and layers are filled up to them
    return name if row % LONG_BLOCK == 0 else SHORTER.get(name, name)
