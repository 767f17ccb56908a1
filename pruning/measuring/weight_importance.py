"""How much each unit matters, by its weights alone: for a model without data, from the safetensors files, in blocks.

A channel j scores ||W_down[:, j]||_2, what it can add to the residual stream. A KV group scores the sum over its query
heads of ||W_out,h W_v||_F: the linear map that a head applies to what it attends to. That number does not change when
the value head is scaled and its output columns are scaled back, as those of either alone do. Layers are ranked each for
itself, so scores need not compare between layers. Biases count nowhere.

Measured on the reference model, KL on 48 calibration conversations, and on 48 of validation, equal widths everywhere.
u, g and d are the norms of a channel's up row, gate row and down column.

    FFN channels removed            30%    50%    60%      30%    50%    60%
    d                               0.45   2.10   4.48     0.55   2.14   4.34
    d, in the L1 norm               0.49   2.47   5.24     0.59   2.43   5.06
    u d                             1.73   3.12   5.05     1.91   3.31   5.14
    g u d                           1.67   3.47   5.01     1.86   3.72   5.16
    sqrt(g^2 + u^2 + d^2)           1.66   3.43   5.08     1.86   3.69   5.27
    at random                       2.64   5.80   6.50     2.89   5.79   6.76
    from data (`importance`)        0.51   1.75   2.95     0.52   2.03   3.12

The fourth is the product of a channel's norms, the fifth the norm of the coupled group: DepGraph (Fang et al.,
arXiv 2301.12900), LLM-Pruner's "L2" (Ma et al., arXiv 2305.11627). Scaling rows by the norm before the FFN changes
little. Of KV groups there are four a layer; "half" removes two of them in the first six layers only (12 conversations).

    KV groups removed               25%    50%    half     25%    50%    half
    sum_h ||W_out,h W_v||_F         0.17   1.09   0.79     0.19   1.04   0.72
    ||W_v||_F ||W_out||_F           0.19   1.09   0.79     0.16   1.04   0.72
    sum of output columns' norms    0.06   1.90   1.65     0.05   1.66   1.58
    norm of the coupled group       0.21   1.90   1.65     0.16   1.66   1.58
    at random                       1.50   2.31   2.10     1.32   2.17   2.08
    from data, sums over columns    0.09   2.23   2.20     0.10   2.07   2.03

Groups are ranked by another score from data since, which is better than all of these at a half (`importance`); on
SmolLM2-135M it costs 1.29 nats to remove a third of the groups by that one, 4.05 by weights alone, 2.26 at random.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.decoder_layer import DecoderLayer, TensorSpec
from pruning.anatomy.dtypes import DTYPE_BYTES, FLOAT_DTYPES, decode
from pruning.anatomy.families import FAMILIES, Role
from pruning.anatomy.tensor_roles import decoder_tensor
from pruning.arrays import FloatArray
from pruning.checkpoints.blocks import Bytes, open_weights, read_bytes
from pruning.checkpoints.finite_weights import check_finite_weights
from pruning.checkpoints.headers import StoredTensor, stored_tensors
from pruning.errors import CheckpointError
from pruning.planning.ranking import Ranking

BLOCK_VALUES = 2**20
"""Weights that are read at once, unless one row or one head has more; as float64 they take 8 MiB."""


def rank_by_weights(
    folder: str | Path, anatomy: ModelAnatomy, *, on_bytes: Callable[[int, int], None] | None = None
) -> Ranking:
    """The order of all FFN channels and KV groups of the dense checkpoint in `folder`; no model is built.

    Memory holds a few blocks and the products of one layer's heads.

    Args:
        anatomy: of that checkpoint.
        on_bytes: told of progress as (done, total) bytes read.

    Raises CheckpointError if the folder is damaged, or weights are not finite.
    """
    folder = Path(folder)
    stored = stored_tensors(folder)
    family = FAMILIES[anatomy.text_model_type]
    value = next(name for name, roles in family.rows.items() if Role.VALUE in roles)
    specs = {place: spec for spec in anatomy.tensors if (place := decoder_tensor(spec.name))}
    down, out, fused = (
        [_Rows.whole(stored[specs[x.index, f"{name}.weight"].name]) for x in anatomy.layers]
        for name in (family.ffn_out, family.attention_out, value)
    )
    values = [
        rows.cut(*_value_rows(specs[layer.index, f"{value}.weight"], family.rows[value]))
        for layer, rows in zip(anatomy.layers, fused, strict=True)
    ]
    total, done = sum(rows.num_bytes for rows in (*down, *out, *values)), 0
    channels: list[FloatArray] = []
    groups: list[FloatArray] = []
    for index, layer in enumerate(anatomy.layers):
        channels.append(_finite(_column_norms(down[index]), folder, layer))
        groups.append(_finite(_head_maps(out[index], values[index], layer), folder, layer))
        done += sum(rows[index].num_bytes for rows in (down, out, values))
        if on_bytes is not None:
            on_bytes(done, total)
    return Ranking.from_scores(anatomy, channels, group_scores=groups)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows `first` to `first + count` of a stored matrix."""

    tensor: StoredTensor
    first: int
    count: int

    @classmethod
    def whole(cls, tensor: StoredTensor) -> Self:
        return cls(tensor, 0, tensor.shape[0])

    def cut(self, first: int, count: int) -> "_Rows":
        return _Rows(self.tensor, self.first + first, count)

    @property
    def row_bytes(self) -> int:
        return self.tensor.shape[1] * DTYPE_BYTES[self.tensor.dtype]

    @property
    def num_bytes(self) -> int:
        return self.count * self.row_bytes

    def blocks(self) -> Iterator[FloatArray]:
        """The values [rows, columns], a block of rows at a time."""
        at_once = max(1, BLOCK_VALUES // self.tensor.shape[1])
        with open_weights(self.tensor.path) as file:
            for start in range(self.first, self.first + self.count, at_once):
                rows = min(at_once, self.first + self.count - start)
                content = read_bytes(file, self.tensor.offset + start * self.row_bytes, rows * self.row_bytes)
                yield _float64(content, self.tensor).reshape(rows, -1)


def _value_rows(spec: TensorSpec, roles: Sequence[Role]) -> tuple[int, int]:
    """Where the value heads are in a projection that may be fused: first row, and how many."""
    lengths = [part.count * part.size for part in spec.parts]
    place = roles.index(Role.VALUE)
    return sum(lengths[:place]), lengths[place]


def _column_norms(rows: _Rows) -> FloatArray:
    """Euclidean norms of the columns."""
    squares = np.zeros(rows.tensor.shape[1])
    for block in rows.blocks():
        squares += np.square(block).sum(axis=0)
    return np.sqrt(squares)


def _head_maps(out: _Rows, values: _Rows, layer: DecoderLayer) -> FloatArray:
    """Scores [G] of KV groups: ||W_out,h W_v||_F, summed over each group's query heads.

    ||A B||_F^2 = trace(A^T A B B^T), so that two [d, d] products a head are all that is kept.
    """
    G, H, d = layer.num_kv_groups, layer.num_heads, layer.head_dim
    out_products = np.zeros((H, d, d))
    for block in out.blocks():
        heads = block.reshape(len(block), H, d)
        out_products += heads.transpose(1, 2, 0) @ heads.transpose(1, 0, 2)
    scores = np.zeros(G)
    for group, heads in enumerate(out_products.reshape(G, H // G, d, d)):
        own = np.concatenate(list(values.cut(group * d, d).blocks()))
        squares = (heads * (own @ own.T)).sum(axis=(1, 2))
        scores[group] = np.sqrt(np.maximum(squares, 0.0)).sum()
    return scores


def _float64(content: Bytes, tensor: StoredTensor) -> FloatArray:
    if tensor.dtype not in FLOAT_DTYPES:
        raise CheckpointError(
            "weights must be floating-point numbers to be ranked", values=f"{tensor.name} is {tensor.dtype}"
        )
    return decode(content, tensor.dtype).astype(np.float64)


def _finite(scores: FloatArray, folder: Path, layer: DecoderLayer) -> FloatArray:
    """In float32: the last digits of a sum depend on the machine, and equal weights should give equal rankings."""
    if not np.isfinite(scores).all():
        check_finite_weights(folder)
        raise CheckpointError(
            "the norms that channels are ranked by must be finite",
            values=f"{folder}: layer {layer.index} has weights that are too large for that",
            remedy="Rank on data: `lop model add ID FOLDER --data FILE`",
        )
    return scores.astype(np.float32).astype(np.float64)
