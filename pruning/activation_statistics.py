"""Statistics of one forward pass: what FFN channels and decoder layers do on calibration data.

Sources: the norms are Wanda's (arXiv 2306.11695), mean and fluctuation are FLAP's (arXiv 2312.11983), the outlier ratio
is OWL's (arXiv 2310.05175), block influence is ShortGPT's (arXiv 2403.03853).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pruning.arrays import FloatArray
from pruning.batches import Batch
from pruning.decoder import DecoderView, decoder_inputs, decoder_view

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
    """Hooks on the decoder that sum up every batch, for as long as the `with` block lasts; one batch is in memory."""

    def __init__(self, view: DecoderView) -> None:
        self._mask = torch.empty(0)  # [B, T], 1 for real tokens
        self.tokens = 0
        self.linears = [_linears(layer) for layer in view.layers]
        self.squares = [
            {name: torch.zeros(linear.in_features, dtype=torch.float64) for name, linear in linears.items()}
            for linears in self.linears
        ]
        self.moments = [_Moments(view.out_projection(i).in_features) for i in range(len(view.layers))]
        self.influence = torch.zeros(len(view.layers), dtype=torch.float64)
        self._view = view
        self._handles: list[Any] = []

    def start_batch(self, attention_mask: torch.Tensor) -> None:
        self._mask = attention_mask
        self.tokens += int(attention_mask.sum())

    def __enter__(self) -> "_Recorder":
        for index, layer in enumerate(self._view.layers):
            self._handles.append(layer.register_forward_hook(partial(self._on_layer, index), with_kwargs=True))
            self._handles.append(
                self._view.out_projection(index).register_forward_pre_hook(partial(self._on_channels, index))
            )
            for name, linear in self.linears[index].items():
                self._handles.append(linear.register_forward_pre_hook(partial(self._on_linear, index, name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _on_linear(self, index: int, name: str, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        x = args[0].float()
        self.squares[index][name] += (x * self._mask.unsqueeze(-1)).square().sum(dim=(0, 1)).double().cpu()

    def _on_channels(self, index: int, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self.moments[index].add(args[0][self._mask.bool()])

    def _on_layer(
        self, index: int, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output if isinstance(output, torch.Tensor) else output[0]
        real = self._mask.bool()
        for a, b in zip(_chunks(before[real]), _chunks(after[real]), strict=True):
            self.influence[index] += float((1.0 - nn.functional.cosine_similarity(a.double(), b.double())).sum())


@torch.inference_mode()
def measure_activations(
    model: "PreTrainedModel", batches: Sequence[Batch], *, on_batch: Callable[[int, int], None] | None = None
) -> dict[str, FloatArray]:
    """The arrays of `StatisticsKind.ACTIVATIONS`; padding counts nowhere, image tokens do."""
    view = decoder_view(model)
    with _Recorder(view) as recorder:
        for done, batch in enumerate(batches, start=1):
            (inputs,) = decoder_inputs(model, [batch])
            recorder.start_batch(batch.inputs["attention_mask"].to(model.device, torch.float32))
            view.decoder(**inputs, use_cache=False)
            if on_batch is not None:
                on_batch(done, len(batches))
    arrays: dict[str, torch.Tensor] = {}
    outliers = []
    for index, moments in enumerate(recorder.moments):
        linears, squares = recorder.linears[index], recorder.squares[index]
        down = view.out_projection(index)
        (down_name,) = (name for name, linear in linears.items() if linear is down)
        weight = down.weight.float()
        arrays |= {
            f"layers.{index}.ffn_mean": moments.mean,
            f"layers.{index}.ffn_second_moment": squares[down_name] / recorder.tokens,
            f"layers.{index}.ffn_variance": moments.variance,
            f"layers.{index}.down_mean_abs": weight.abs().mean(dim=0).double(),
            f"layers.{index}.down_norm": weight.norm(dim=0).double(),
        }
        norms = {name: (squares[name] / recorder.tokens).sqrt() for name in linears}
        outliers.append(outlier_ratio([(linear.weight, norms[name]) for name, linear in linears.items()]))
    arrays["outlier_ratio"] = torch.tensor(outliers, dtype=torch.float64)
    arrays["block_influence"] = recorder.influence / recorder.tokens
    return {name: tensor.cpu().numpy() for name, tensor in arrays.items()}


def outlier_ratio(weights: Sequence[tuple[torch.Tensor, torch.Tensor]], *, multiple: float = OUTLIER_MULTIPLE) -> float:
    """OWL's layer-wise outlier distribution (arXiv 2310.05175): the share of outliers among all weights.

    The score of weight [i, j] is |W_ij| x norm_j; an outlier's is over `multiple` times the mean of all scores.

    Args:
        weights: every linear of one decoder layer, as its weight [out, in] and the norms of its inputs [in].
    """
    total = sum(float(w.float().abs().sum(dim=0).double().cpu() @ norm) for w, norm in weights)
    count = sum(weight.numel() for weight, _ in weights)
    threshold = multiple * total / count
    outliers = sum(int((w.float().abs() * norm.to(w.device, torch.float32) > threshold).sum()) for w, norm in weights)
    return outliers / count


def _chunks(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`rows` [N, W] in pieces that are small in float64 too."""
    return torch.split(rows, max(1, MAX_FLOAT64_VALUES // rows.shape[-1]))


def _linears(layer: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
