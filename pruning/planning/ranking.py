"""The ranking: for each layer the order in which FFN channels and KV groups are kept, best first. A plan says how many.

Stored as a safetensors file with int32 tensors `layers.{l}.ffn` [W] and `layers.{l}.kv_groups` [G] a layer; equal
rankings are equal bytes, so the file's sha256 names the ranking. A ranking whose plans compensate for what they remove
(see `pruning.forward.compensation`) has a float32 tensor `layers.{l}.ffn_mean` [W] a layer beside them.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Site, Sublayer
from pruning.anatomy.packed_weights import FEWER_BITS, GROUP, come_in_groups, packed_weights
from pruning.arrays import IntArray
from pruning.errors import CheckpointError, FingerprintMismatchError, InputError, PlanError
from pruning.planning.plan_parts import UPGRADE
from pruning.planning.space import Space


@dataclass(frozen=True)
class Ranking:
    """Which channels go first.

    Attributes:
        ffn: channel orders, one [W] a layer: a permutation of 0..W-1, most important first.
        fingerprint: of the dense model.
        ffn_means: each channel's mean on calibration data, one [W] a layer. With them, a down projection that is cut
            gets the bias W_down[:, removed] @ mean[removed]; without them (None), it gets none.
        kv_groups: group orders, one [G] a layer; None in rankings that order channels only.
    """

    ffn: tuple[NDArray[np.int32], ...]
    fingerprint: str
    ffn_means: tuple[NDArray[np.float32], ...] | None = None
    kv_groups: tuple[NDArray[np.int32], ...] | None = None

    @classmethod
    def from_scores(
        cls,
        anatomy: ModelAnatomy,
        scores: Sequence[NDArray[np.float64]],
        *,
        group_scores: Sequence[NDArray[np.float64]] | None = None,
        means: Sequence[NDArray[np.float64]] | None = None,
    ) -> "Ranking":
        """Order channels by descending score [L][W] and groups by theirs [L][G]; equal scores keep their position.

        `means` [L][W] to compensate.
        """
        ffn_means = None if means is None else tuple(x.astype(np.float32) for x in means)
        groups = None if group_scores is None else _descending(group_scores)
        ranking = cls(_descending(scores), anatomy.fingerprint, ffn_means, groups)
        ranking.check(anatomy)
        return ranking

    def check(self, anatomy: ModelAnatomy) -> None:
        """Raises FingerprintMismatchError or CheckpointError unless this ranking is whole and of that model."""
        if self.fingerprint != anatomy.fingerprint:
            raise FingerprintMismatchError(
                "a ranking fits only the model that it was computed on",
                values=f"ranking {self.fingerprint[:12]}, model {anatomy.fingerprint[:12]}",
            )
        widths = [x.ffn_width for x in anatomy.layers]
        if not _are_orders(self.ffn, widths):
            raise CheckpointError("a ranking holds a permutation of the channels of every layer")
        if self.kv_groups is not None and not _are_orders(self.kv_groups, [x.num_kv_groups for x in anatomy.layers]):
            raise CheckpointError("a ranking that orders KV groups holds a permutation of those of every layer")
        if self.ffn_means is not None and (
            [x.shape for x in self.ffn_means] != [(w,) for w in widths]
            or not all(np.isfinite(x).all() for x in self.ffn_means)
        ):
            raise CheckpointError("a ranking that compensates holds a finite mean for every channel of every layer")

    @property
    def compensates(self) -> bool:
        """Whether plans with this ranking add biases for what they remove."""
        return self.ffn_means is not None

    def removed(self, layer: int, width: int) -> NDArray[np.int64]:
        """All channels of `layer` but the `width` best, in their original order."""
        return np.sort(self.ffn[layer][width:]).astype(np.int64)

    def kept_units(self, architecture: Architecture) -> dict[Site, IntArray]:
        """The best units of each site that `architecture`, which was checked, cuts; in their original order.

        Sites that are skipped keep none, and are left out.
        """
        orders = {Sublayer.FFN: self.ffn, Sublayer.ATTENTION: self.kv_groups or ()}
        return {
            site: np.sort(orders[site.sublayer][site.layer][: option.units]).astype(np.int64)
            for site, option in architecture.items
            if option.units and (option.bits is None or option.units < self._dense_units(site))
        }

    def _dense_units(self, site: Site) -> int:
        orders = self.ffn if site.sublayer is Sublayer.FFN else self.kv_groups
        return 0 if orders is None else len(orders[site.layer])  # without an order none are cut

    def check_space(self, space: Space) -> None:
        """Raises InputError if `space` may cut KV groups, and this ranking does not say which go first: nobody could
        apply such a plan."""
        if self.kv_groups is not None:
            return
        cut = (
            site
            for decision in space.decisions
            for site, options in zip(decision.sites, decision.options, strict=True)
            if site.sublayer is Sublayer.ATTENTION and ((options.units > 0) & (options.units < space.dense[site])).any()
        )
        first = next(cut, None)
        if first is not None:
            raise InputError(
                "what cuts KV groups needs a ranking that orders them",
                values=f"the model's ranking orders FFN channels only, and layer {first.layer} may lose groups",
                remedy="Register the model anew, under another id, with `lop model add`",
            )

    def check_architecture(self, architecture: Architecture, anatomy: ModelAnatomy) -> None:
        """Raises PlanError unless this version and this ranking can cut `architecture` out of the model.

        A site keeps at most all of its units, at the density that its weights have, and at their bits or, where inputs
        come in whole groups, at fewer; of KV groups all or none, if this ranking does not order them. One layer at
        least keeps attention: without it, no token sees another, and generating has no cache to count its tokens by.
        """
        for site, option in architecture.items:
            dense = anatomy.layers[site.layer].units(site.sublayer) if site.layer < anatomy.num_layers else -1
            values = f"layer {site.layer}: {option.units} of {max(dense, 0)}"
            if not 0 <= option.units <= dense:
                name = "channels" if site.sublayer is Sublayer.FFN else "KV groups"
                raise PlanError(f"each layer keeps at most all of its {name}", values=values, remedy=UPGRADE)
            grouped = option.bits in FEWER_BITS and come_in_groups(
                packed_weights(anatomy).get(site, ()), np.array([option.units], dtype=np.int64)
            )
            if option.density is not None:
                raise PlanError(
                    "a plan's densities are written from the dense model and calibration data, not by cutting",
                    values=f"layer {site.layer}, {site.sublayer}: density={option.density}",
                    remedy="Use `lop sparsify MODEL --plan PLAN --data DATA --out FOLDER`",
                )
            if option.bits is not None and not grouped:
                raise PlanError(
                    "this version cuts whole units, and stores weights in 8 or 4 bits where inputs come in whole "
                    f"groups of {GROUP}",
                    values=f"layer {site.layer}, {site.sublayer}: {option.units} units, bits={option.bits}",
                    remedy=UPGRADE,
                )
            if site.sublayer is Sublayer.ATTENTION and 0 < option.units < dense and self.kv_groups is None:
                raise PlanError(
                    "a plan that removes KV groups needs a ranking that orders them",
                    values=values,
                    remedy="Register the model anew, under another id, with `lop model add`",
                )
        if not any(anatomy.kv_groups(architecture)):
            raise PlanError(
                "a model keeps the attention of one layer at least",
                values=f"all {anatomy.num_layers} layers skip it",
                remedy="Ask for a plan that removes less",
            )

    def agrees_with(self, other: "Ranking") -> bool:
        """Whether both order the channels alike, and the KV groups too if both order them."""
        own, others = self.ffn, other.ffn
        if self.kv_groups is not None and other.kv_groups is not None:
            own, others = own + self.kv_groups, others + other.kv_groups
        return len(own) == len(others) and all(np.array_equal(a, b) for a, b in zip(own, others, strict=True))

    def to_bytes(self) -> bytes:
        """The safetensors file; equal rankings give equal bytes."""
        tensors: dict[str, NDArray[Any]] = {f"layers.{i}.ffn": order for i, order in enumerate(self.ffn)}
        tensors |= {f"layers.{i}.ffn_mean": means for i, means in enumerate(self.ffn_means or ())}
        tensors |= {f"layers.{i}.kv_groups": order for i, order in enumerate(self.kv_groups or ())}
        return bytes(save(tensors, metadata={"fingerprint": self.fingerprint}))

    @cached_property
    def sha256(self) -> str:
        """The digest that plans name the ranking by."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Ranking":
        """Parse a ranking file; raises CheckpointError if it is damaged or something else."""
        try:
            tensors = load(content)
            length = int.from_bytes(content[:8], "little")
            metadata = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
            layers = range(sum(name.endswith(".ffn") for name in tensors))
            orders = tuple(tensors[f"layers.{i}.ffn"].astype(np.int32) for i in layers)
            means = tuple(
                tensors[f"layers.{i}.ffn_mean"].astype(np.float32) for i in layers if _holds(tensors, "_mean")
            )
            groups = tuple(
                tensors[f"layers.{i}.kv_groups"].astype(np.int32) for i in layers if _holds(tensors, "groups")
            )
            return cls(orders, metadata["fingerprint"], means or None, groups or None)
        except (SafetensorError, KeyError, ValueError) as error:
            raise CheckpointError("a ranking is a safetensors file of channel orders", values=str(error)) from error


def _descending(scores: Sequence[NDArray[np.float64]]) -> tuple[NDArray[np.int32], ...]:
    return tuple(np.argsort(-s, kind="stable").astype(np.int32) for s in scores)


def _are_orders(orders: Sequence[NDArray[np.int32]], lengths: Sequence[int]) -> bool:
    """Whether these are permutations of 0..n-1, for the lengths n."""
    return [len(order) for order in orders] == list(lengths) and all(
        np.array_equal(np.sort(order), np.arange(len(order))) for order in orders
    )


def _holds(tensors: dict[str, NDArray[Any]], ending: str) -> bool:
    return any(name.endswith(ending) for name in tensors)
