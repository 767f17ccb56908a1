"""What each part of the predictor's choice adds: the same budgets, planned with parts left out or alone.

Every plan is judged by the same values; what is told is the geometric mean of their predicted KL over that of the whole
planner's plans. Budgets are of every kind: parameters, bytes, latency by a roofline and in stairs, and several at once.
None of the stairs is one that the policy was trained on: training makes up its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any

import numpy as np
import torch

from policy_model.choosing import Parts
from policy_model.policy import Policy
from policy_model.policy_config import PolicyConfig
from policy_model.predictor import Predictor
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Site, Sublayer
from pruning.arrays import IntArray
from pruning.devices.catalogue import DEVICES
from pruning.devices.roofline import RooflineLatency
from pruning.planning import prices
from pruning.planning.ffn_spaces import DEFAULT_ROUND_TO, ffn_widths
from pruning.planning.latency_model import LatencyModel, LatencySource
from pruning.planning.limits import Limit, Limits
from pruning.planning.space import Space
from pruning.planning.workload import Workload
from values.calibration import kl_of

FULL = "full"

PARTS = {
    FULL: Parts(),
    "no_policy": Parts(candidates=0),
    "policy_alone_greedy": Parts(candidates=1, ways=False, walkers=0),
    "policy_alone_sampled": Parts(ways=False, walkers=0),
    "no_ways": Parts(ways=False),
    "additive_program_improved": Parts(candidates=0, ways=False),
    "no_descent": Parts(walkers=0),
    "additive_program_alone": Parts(candidates=0, ways=False, walkers=0),
}
"""What takes part in each row. Where there is no policy the additive program's choice is a candidate."""

UNTRAINED = {"untrained_policy": FULL, "untrained_policy_alone": "policy_alone_sampled"}
"""Rows with freshly initialised weights: which parts take part there."""

NUM_BUDGETS = 12
"""Of each kind."""

LEAST_REMOVED, MOST_REMOVED = 0.08, 0.78
"""Of what can be removed, under each limit."""

WORKLOAD = Workload(batch=1, prompt_tokens=512, output_tokens=64)
DEVICE = "jetson-orin-nano-8gb"

TILE = 40
"""Channels of a stair, which no level of the reference is a multiple of but the dense one and every fifth."""


class StairsLatency(LatencyModel):
    """A made-up device that computes whole tiles of channels, with layers of unequal price.

    Args:
        anatomy: of the model.
        workload: that is priced.
        seed: of the layers' prices.
    """

    source = LatencySource.ROOFLINE
    description = "made up"
    times_attention = False

    def __init__(self, anatomy: ModelAnatomy, workload: Workload, seed: int) -> None:
        super().__init__(workload)
        self._price = np.exp(np.random.default_rng(seed).normal(0.0, 0.2, anatomy.num_layers))

    def site_phases_ns(self, site: Site, units: IntArray) -> tuple[IntArray, IntArray]:
        """A layer's time is on its FFN."""
        if site.sublayer is Sublayer.ATTENTION:
            return np.zeros_like(units), np.zeros_like(units)
        tiles = -(-units // TILE)
        prefill, decode = (
            np.ceil(self._price[site.layer] * (wait + each * tiles)) for wait, each in ((9e4, 3e4), (4e3, 2e3))
        )
        return prefill.astype(np.int64), decode.astype(np.int64)

    def fixed_phases_ns(self) -> tuple[int, int]:
        return 100_000, 10_000


@dataclass(frozen=True)
class AskedBudget:
    """Limits of one kind, and what part of what can be removed has to go, at least."""

    kind: str
    removed: float
    limits: Limits


def budgets(anatomy: ModelAnatomy, seed: int = 0) -> list[AskedBudget]:
    """`NUM_BUDGETS` of each kind, from nearly dense to as sparse as was searched."""
    space = ffn_widths(anatomy, round_to=DEFAULT_ROUND_TO)
    parameters, memory = prices.ffn_parameters(anatomy), prices.memory_bytes(anatomy, WORKLOAD)
    flops = prices.flops(anatomy, WORKLOAD)
    roofline = prices.LatencyPrice(anatomy, RooflineLatency(DEVICES[DEVICE], anatomy, WORKLOAD))
    stairs = [prices.LatencyPrice(anatomy, StairsLatency(anatomy, WORKLOAD, seed + index)) for index in range(2)]
    kinds: dict[str, tuple[prices.Price, ...]] = {
        "parameters": (parameters,),
        "memory": (memory,),
        "roofline": (roofline,),
        "stairs": (stairs[0],),
        "memory_and_stairs": (memory, stairs[0]),
        "flops_and_roofline": (flops, roofline),
        "memory_flops_and_stairs": (memory, flops, stairs[1]),
    }
    rng = np.random.default_rng(seed)
    found = []
    for kind, of_kind in kinds.items():
        slices = (np.arange(NUM_BUDGETS) + rng.random(NUM_BUDGETS)) / NUM_BUDGETS
        for share in LEAST_REMOVED + (MOST_REMOVED - LEAST_REMOVED) * slices:
            # Several limits ask for about as much each: else only one of them would be a limit.
            removed = np.clip(share + rng.normal(0.0, 0.05, len(of_kind)), LEAST_REMOVED, MOST_REMOVED)
            limits = tuple(_limit(space, *each) for each in zip(of_kind, removed.tolist(), strict=True))
            found.append(AskedBudget(kind, float(removed.max()), Limits(space, limits)))
    return found


def _limit(space: Space, price: prices.Price, removed: float) -> Limit:
    """What leaves all but the part `removed` of what can be removed in `space`."""
    everything = price.limit(space, 0)
    return price.limit(space, everything.dense - int(removed * (everything.dense - everything.least)))


def untrained_policy(config: PolicyConfig) -> dict[str, Any]:
    """Freshly initialised weights: all that is feasible is equally likely, whatever the seed, for scores begin at 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {name: p.numpy() for name, p in Policy(config).state_dict().items()}


def measure(predictor: Predictor, anatomy: ModelAnatomy) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for each kind and variant, and the summary."""
    asked = budgets(anatomy)
    kl = {
        name: [_predicted_kl(predictor.with_parts(parts), anatomy, x) for x in asked] for name, parts in PARTS.items()
    }
    for name, of in UNTRAINED.items():
        planner = predictor.with_parts(PARTS[of], untrained_policy(predictor.config))
        kl[name] = [_predicted_kl(planner, anatomy, x) for x in asked]
    kinds = [x.kind for x in asked]
    rows = [
        {"variant": name, "kind": kind, "kl_vs_full": _ratio(kl, name, kinds, kind)}
        for name in kl
        for kind in dict.fromkeys(kinds)
    ]
    ratios = {name: np.array(found) / np.array(kl[FULL]) for name, found in kl.items() if name != FULL}
    means = {name: float(np.exp(np.log(of).mean())) for name, of in ratios.items()}
    return rows, {
        "policy_alone_vs_full": means["policy_alone_sampled"],
        "untrained_policy_alone_vs_full": means["untrained_policy_alone"],
        "ablations_vs_full": means,
        "ablations_as_good_as_full": {name: float((of < 1.001).mean()) for name, of in ratios.items()},
        "ablation_budgets": len(asked),
    }


def _ratio(kl: Mapping[str, Sequence[float]], name: str, kinds: Sequence[str], kind: str) -> float:
    own = [index for index, of in enumerate(kinds) if of == kind]
    return geometric_mean(kl[name][index] / kl[FULL][index] for index in own)


def _predicted_kl(predictor: Predictor, anatomy: ModelAnatomy, asked: AskedBudget) -> float:
    """Of the plan, by the values: what plans of all variants are judged by."""
    widths = predictor.plan(anatomy, asked.limits).architecture.units(
        Sublayer.FFN, predictor.encoding.dense_units.tolist()
    )
    return kl_of(float(predictor.values(predictor.encoding.kept_fractions([widths]))[0]))
