"""Statistics of one forward pass: what FFN channels, attention heads and decoder layers do on calibration data.

Sources: the norms are Wanda's (arXiv 2306.11695), mean and fluctuation are FLAP's (arXiv 2312.11983), the outlier ratio
is OWL's (arXiv 2310.05175), block influence is ShortGPT's (arXiv 2403.03853).
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from pruning.anatomy.families import Family, family_of
from pruning.arrays import FloatArray
from pruning.checkpoints.anatomy_reader import layer_shapes
from pruning.data.batches import Batch
from pruning.forward.decoder_pass import DecoderPass
from pruning.forward.layer_source import LayerSource
from pruning.forward.tensor_store import DEFAULT_RESIDENT_BYTES, TensorStore
from pruning.measuring.group_contributions import GroupContributions, adding_attention

OUTLIER_MULTIPLE = 5.0
"""OWL's M: a weight is an outlier if its score is over M times its layer's mean."""

MAX_FLOAT64_VALUES = 2**22
"""Values that are converted to float64 at once: 32 MiB, where a batch of a 7B model would take a gigabyte."""


class _Moments:
    """Mean and sum of squared deviations of vectors [W], batch by batch, in float64.

    Batches are merged by Chan, Golub and LeVeque's pairwise update, which does not lose a small variance beside a
    large mean as E[x^2] - E[x]^2 does.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.deviations = torch.zeros(width, dtype=torch.float64)

    def add(self, rows: torch.Tensor) -> None:
        """Take in `rows` [N, W]."""
        for chunk in _chunks(rows):
            self._add(chunk)

    def _add(self, rows: torch.Tensor) -> None:
        count = len(rows)
        mean = rows.mean(dim=0, dtype=torch.float64)
        deviations = (rows - mean).square_().sum(dim=0)
        mean, deviations = mean.cpu(), deviations.cpu()
        total = self.count + count
        shift = mean - self.mean
        self.mean += shift * (count / total)
        self.deviations += deviations + shift.square() * (self.count * count / total)
        self.count = total

    @property
    def variance(self) -> torch.Tensor:
        """Unbiased [W]; 0 for a single row."""
        return self.deviations / max(self.count - 1, 1)


class _Recorder:
    """Hooks on one decoder layer that sum up every batch, for as long as the `with` block lasts.

    Beside what the layer itself holds in memory, they need little: rows are taken in pieces.
    """

    def __init__(self, layer: nn.Module, family: Family, num_kv_groups: int) -> None:
        self._mask = torch.empty(0)  # [B, T], 1 for real tokens
        self.tokens = 0
        self._layer = layer
        self._family = family
        self._linears = {name: x for name, x in layer.named_modules() if isinstance(x, nn.Linear)}
        self._squares = {name: torch.zeros(x.in_features, dtype=torch.float64) for name, x in self._linears.items()}
        self._moments = _Moments(self._linears[family.ffn_out].in_features)
        self._groups = GroupContributions(self._linears[family.attention_out], num_kv_groups)
        self._stream, self._heads = torch.empty(0), torch.empty(0)  # [B, T, D], [B, T, A]
        self._influence = 0.0
        self._handles: list[Any] = []

    def start_batch(self, attention_mask: torch.Tensor) -> None:
        """The mask [B, T] of the batch that comes next, as numbers on the layer's device."""
        self._mask = attention_mask
        self.tokens += int(attention_mask.sum())

    def __enter__(self) -> "_Recorder":
        self._handles.append(self._layer.register_forward_hook(self._on_layer, with_kwargs=True))
        self._handles.append(self._linears[self._family.ffn_out].register_forward_pre_hook(self._on_channels))
        for name, linear in self._linears.items():
            self._handles.append(linear.register_forward_pre_hook(partial(self._on_linear, name)))
        self._handles.append(self._layer.register_forward_pre_hook(self._on_input, with_kwargs=True))
        self._handles.append(self._linears[self._family.attention_out].register_forward_pre_hook(self._on_heads))
        adding = self._layer.get_submodule(adding_attention(self._family))
        self._handles.append(adding.register_forward_hook(self._on_attention))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _on_linear(self, name: str, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        rows, masks = _chunks(args[0].flatten(0, -2)), self._mask.flatten().unsqueeze(-1)
        for x, mask in zip(rows, torch.split(masks, len(rows[0])), strict=True):
            self._squares[name] += (x.float() * mask).square().sum(dim=0).double().cpu()

    def _on_input(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._stream = args[0] if args else kwargs["hidden_states"]

    def _on_heads(self, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self._heads = args[0]

    def _on_attention(self, _module: nn.Module, _args: tuple[torch.Tensor, ...], added: torch.Tensor) -> None:
        real = self._mask.bool()
        self._groups.add(self._heads[real], self._stream[real], added[real])

    def _on_channels(self, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self._moments.add(args[0][self._mask.bool()])

    def _on_layer(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output if isinstance(output, torch.Tensor) else output[0]
        real = self._mask.bool()
        for a, b in zip(_chunks(before[real]), _chunks(after[real]), strict=True):
            self._influence += float((1.0 - nn.functional.cosine_similarity(a.double(), b.double())).sum())

    def arrays(self) -> dict[str, torch.Tensor]:
        """What `StatisticsKind.ACTIVATIONS` lists of a layer, without `layers.{l}.`."""
        out, attention_out = self._family.ffn_out, self._family.attention_out
        down_mean_abs, down_norm = _column_sizes(self._linears[out].weight)
        return {
            "ffn_mean": self._moments.mean,
            "ffn_second_moment": self._squares[out] / self.tokens,
            "ffn_variance": self._moments.variance,
            "down_mean_abs": down_mean_abs,
            "down_norm": down_norm,
            "attention_second_moment": self._squares[attention_out] / self.tokens,
            "out_norm": _column_sizes(self._linears[attention_out].weight)[1],
            "group_contribution": self._groups.mean,
        }

    def outlier_ratio(self) -> float:
        """OWL's share of outliers among all weights of the layer."""
        norms = {name: (squares / self.tokens).sqrt() for name, squares in self._squares.items()}
        return outlier_ratio([(linear.weight, norms[name]) for name, linear in self._linears.items()])

    def block_influence(self) -> float:
        """ShortGPT's mean of 1 - cos over tokens."""
        return self._influence / self.tokens


@torch.inference_mode()
def measure_activations(
    source: LayerSource,
    batches: Iterable[Batch],
    *,
    num_rows: int,
    on_batch: Callable[[int, int], None] | None = None,
    resident_bytes: int = DEFAULT_RESIDENT_BYTES,
) -> dict[str, FloatArray]:
    """The arrays of `StatisticsKind.ACTIVATIONS`; padding counts nowhere, image tokens do.

    All batches go through a layer before the next one is asked for.

    Args:
        batches: taken one at a time.
        num_rows: conversations in all of them together.
        on_batch: told of progress as (done, total) after each batch and layer; the front end counts as a layer.
        resident_bytes: of hidden states in memory; what is more waits in a temporary file.

    Raises:
        InputError: there are no batches, or the temporary file does not fit on its disk.
        CheckpointError, UnsupportedModelError: as `source`.
    """
    family = family_of(source.model.config.get_text_config(decoder=True))
    shapes = layer_shapes(source.model.config)
    num_layers = len(source.slots)
    done = 0

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        if on_batch is not None:
            on_batch(done, num_rows * (num_layers + 1))

    arrays: dict[str, torch.Tensor] = {}
    outliers, influence = [], []
    with TensorStore(resident_bytes) as store:
        decoder_pass = DecoderPass(source, batches, store, on_batch=advance)
        for index in range(num_layers):
            with source.layer(index) as layer:
                with _Recorder(layer, family, shapes[index].num_kv_groups) as recorder:
                    decoder_pass.through(index, layer, recorder.start_batch)
                arrays |= {f"layers.{index}.{name}": array for name, array in recorder.arrays().items()}
                outliers.append(recorder.outlier_ratio())
                influence.append(recorder.block_influence())
                del recorder
    arrays["outlier_ratio"] = torch.tensor(outliers, dtype=torch.float64)
    arrays["block_influence"] = torch.tensor(influence, dtype=torch.float64)
    return {name: tensor.cpu().numpy() for name, tensor in arrays.items()}


def outlier_ratio(weights: Sequence[tuple[torch.Tensor, torch.Tensor]], *, multiple: float = OUTLIER_MULTIPLE) -> float:
    """OWL's layer-wise outlier distribution (arXiv 2310.05175): the share of outliers among all weights.

    The score of weight [i, j] is |W_ij| x norm_j; an outlier's is over `multiple` times the mean of all scores.

    Args:
        weights: every linear of one decoder layer, as its weight [out, in] and the norms of its inputs [in].
    """
    total = sum(
        float(w.float().abs().sum(dim=0).double().cpu() @ norm) for rows, norm in weights for w in _chunks(rows)
    )
    count = sum(weight.numel() for weight, _ in weights)
    threshold = multiple * total / count
    return sum(_count_over(weight, norm, threshold) for weight, norm in weights) / count


def _count_over(weight: torch.Tensor, norm: torch.Tensor, threshold: float) -> int:
    norm = norm.to(weight.device, torch.float32)
    return sum(int((w.float().abs() * norm > threshold).sum()) for w in _chunks(weight))


def _column_sizes(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each column of a weight [out, in]: the mean of its absolute values, and its Euclidean norm; [in] each."""
    total, squares = (torch.zeros(weight.shape[1], dtype=torch.float64) for _ in range(2))
    for rows in _chunks(weight):
        w = rows.float()
        total += w.abs().mean(dim=0).double().cpu() * len(w)
        squares += w.norm(dim=0).double().cpu().square()
    return total / len(weight), squares.sqrt()


def _chunks(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`rows` [N, W] in pieces that are small in float64 too."""
    return torch.split(rows, max(1, MAX_FLOAT64_VALUES // rows.shape[-1]))
