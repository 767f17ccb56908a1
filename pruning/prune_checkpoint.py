"""Writing pruned checkpoints: from files to files without building the model, or from a model in memory.

Both write next to the output folder and rename it into place at the end: an output folder is whole or absent.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pruning.anatomy import ModelAnatomy
from pruning.anatomy_reader import load_config, read_anatomy
from pruning.checkpoint import PLAN_NAME, recorded_widths
from pruning.compensation import compensated_bias, compensated_weights, pruned_tensors
from pruning.cost import MAX_SHARD_SIZE, SAFETENSORS_METADATA, plan_shards
from pruning.errors import CheckpointError
from pruning.families import ffn_family
from pruning.headers import INDEX_NAME, read_headers
from pruning.plan import PruningPlan
from pruning.ranking import Ranking
from pruning.surgery import check_applicable

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

# What belongs to the checkpoint besides weights and config: tokenizer, processor, template, licence.
_COMPANIONS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "NOTICE*")
_NOT_COPIED = {"config.json", INDEX_NAME, PLAN_NAME, "metrics.json"}


def prune_checkpoint(
    source: str | Path,
    plan: PruningPlan,
    ranking: Ranking,
    out: str | Path,
    *,
    on_bytes: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the checkpoint in `source`, cut as `plan` says, to the new folder `out`.

    Everything is checked before the first byte is written; one output shard is in memory at a time.
    `on_bytes(done, total)` is told of progress.

    Raises:
        CheckpointError: the source is damaged, or `out` exists.
        FingerprintMismatchError: plan, ranking and checkpoint do not belong together.
        PlanError: the plan asks for what cannot be cut.
    """
    source, out = Path(source), Path(out)
    anatomy = read_anatomy(source)
    check_applicable(plan, anatomy, ranking)
    files = {name: path for name, (path, _) in read_headers(source).items()}
    cutter = _TensorCutter(files, anatomy, plan.ffn_widths, ranking)
    pruned = pruned_tensors(anatomy, plan.ffn_widths, compensates=ranking.compensates)
    shards = plan_shards([(t.name, t.shape, t.dtype) for t in pruned])
    total, done = plan.achieved.disk_bytes, 0
    with _new_folder(out) as draft:
        for file_name, names in shards.filename_to_tensors.items():
            tensors = {name: cutter.cut(name) for name in names}
            save_file(tensors, draft / file_name, metadata=SAFETENSORS_METADATA)
            done += (draft / file_name).stat().st_size
            if on_bytes is not None:
                on_bytes(done, total)
        if shards.is_sharded:
            index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
            (draft / INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        write_config(source, plan, draft)
        for pattern in _COMPANIONS:
            for path in source.glob(pattern):
                if path.name not in _NOT_COPIED and path.is_file():
                    shutil.copyfile(path, draft / path.name)
        (draft / PLAN_NAME).write_text(plan.to_json())
    return out


class _TensorCutter:
    """Reads tensors of the dense checkpoint one at a time, and makes of them those of the pruned one."""

    def __init__(
        self, files: Mapping[str, Path], anatomy: ModelAnatomy, widths: Sequence[int], ranking: Ranking
    ) -> None:
        self._files = files
        self._widths = widths
        self._ranking = ranking
        self._specs = {spec.name: spec for spec in anatomy.tensors}
        self._out_weights = compensated_weights(anatomy) if ranking.compensates else {}

    def cut(self, name: str) -> torch.Tensor:
        """The tensor `name` of the pruned checkpoint, contiguous."""
        weight = self._out_weights.get(name)
        if weight is not None and weight.ffn_layer is not None:
            width = self._widths[weight.ffn_layer]
            if width < weight.shape[1]:
                bias = self._read(name) if name in self._files else None
                return compensated_bias(self._read(weight.name), bias, self._ranking, weight.ffn_layer, width)
        spec, tensor = self._specs[name], self._read(name)
        if spec.ffn_layer is not None and spec.ffn_axis is not None:
            kept = torch.from_numpy(self._ranking.kept(spec.ffn_layer, self._widths[spec.ffn_layer]))
            tensor = tensor.index_select(spec.ffn_axis, kept)
        return tensor.contiguous()

    def _read(self, name: str) -> torch.Tensor:
        with safe_open(self._files[name], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor


def save_pruned(
    model: "PreTrainedModel", plan: PruningPlan, out: str | Path, *, processor: "ProcessorMixin | None" = None
) -> Path:
    """Save a model that `apply_plan` has cut, with its processor if given, to the new folder `out`.

    Raises:
        CheckpointError: the model's widths or biases are not the plan's, or `out` exists.
    """
    from pruning.decoder import decoder_view

    view = decoder_view(model)
    widths = [view.out_projection(layer).in_features for layer in range(len(view.ffns))]
    if widths != plan.ffn_widths:
        raise CheckpointError(
            "the model must have the plan's widths",
            values=f"model {widths}, plan {plan.ffn_widths}",
            remedy="Call apply_plan(model, plan) first",
        )
    if plan.ranking.compensates and any(view.out_projection(x).bias is None for x in recorded_widths(model.config)):
        raise CheckpointError(
            "the model must have the biases that its plan adds",
            values=f"plan {plan.plan_id} compensates for what it removes",
            remedy="Call apply_plan(model, plan) first",
        )
    out = Path(out)
    with _new_folder(out) as draft:
        model.save_pretrained(draft, max_shard_size=MAX_SHARD_SIZE)
        if processor is not None:
            processor.save_pretrained(draft)
        (draft / PLAN_NAME).write_text(plan.to_json())
    return out


def write_config(source: Path, plan: PruningPlan, draft: Path) -> "PreTrainedConfig":
    """Write `draft`/config.json: the source's own plus `per_layer_config`, so nothing that transformers does not know
    is lost. Returns it as it is read again.

    Some hub configs are flat, with the language model's fields beside the vision tower's; what transformers makes of
    them is written then, since `per_layer_config` belongs to the language model.
    """
    document: dict[str, Any] = json.loads((source / "config.json").read_text())
    config = load_config(source)
    text = config.get_text_config(decoder=True)
    attribute = ffn_family(text.model_type).width_attribute
    dense = getattr(text, attribute)
    if text is not config and "text_config" not in document:
        document = config.to_dict()
    place = document.get("text_config", document)
    place["per_layer_config"] = {
        str(layer.index): {attribute: layer.ffn_width} for layer in plan.layers if layer.ffn_width != dense
    }
    place["allow_global_per_layer_attribute_access"] = True
    if not place["per_layer_config"]:
        del place["per_layer_config"], place["allow_global_per_layer_attribute_access"]
    (draft / "config.json").write_text(json.dumps(document, indent=2) + "\n")
    written = load_config(draft)
    recorded = recorded_widths(written)
    if any(recorded.get(x.index, dense) != x.ffn_width for x in plan.layers):
        raise CheckpointError("the config must record the plan's widths", values=f"{source / 'config.json'}")
    return written


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A draft folder that becomes `out` when the block ends well, and is removed when it does not."""
    if out.exists():
        raise CheckpointError(
            "the output folder must not exist yet", values=str(out), remedy="Choose another or remove it"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
    except OSError as error:
        raise CheckpointError("the output folder must be writable", values=f"{out}: {error.strerror}") from error
    try:
        yield draft
        draft.chmod(0o755)
        draft.rename(out)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
