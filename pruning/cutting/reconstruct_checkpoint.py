"""Reconstruction from files to files: what `prune_checkpoint` is to be told, and the passes over a model's layers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.cutting.reconstruction import SolvedLayers, SolvedSite, reconstruct
from pruning.data.batches import Batch
from pruning.forward.layer_source import CheckpointLayers
from pruning.forward.tensor_store import DEFAULT_RESIDENT_BYTES
from pruning.planning.plan import RecoveryStep, reconstruction_step
from pruning.planning.ranking import Ranking

if TYPE_CHECKING:
    import torch


class CountedBatches(Protocol):
    """Batches that are made while they are taken, such as `BatchStream`."""

    @property
    def num_rows(self) -> int:
        """Rows of all batches together."""
        ...

    def __iter__(self) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Reconstruction:
    """What weights are to be solved from.

    Attributes:
        batches: of the calibration conversations.
        calibration_id: of those conversations.
        device: that layers are computed on.
        on_batch: told of progress as (done, total).
        on_solved: told how every projection was solved, once all are.
        resident_bytes: of hidden states in memory; what is more waits in a temporary file.
    """

    batches: CountedBatches
    calibration_id: str
    device: "torch.device"
    on_batch: Callable[[int, int], None] | None = None
    on_solved: Callable[[tuple[SolvedSite, ...]], None] | None = None
    resident_bytes: int = DEFAULT_RESIDENT_BYTES

    @property
    def step(self) -> RecoveryStep:
        """The recovery step that plan and config record."""
        return reconstruction_step(self.calibration_id)

    def solve(
        self, folder: Path, anatomy: ModelAnatomy, architecture: Architecture, ranking: Ranking, solved: SolvedLayers
    ) -> None:
        """Solve what `solved` lacks, for the dense checkpoint in `folder`; raises as `reconstruct`."""
        lacking = {site.layer for site in ranking.kept_units(architecture)}
        lacking = {layer for layer in lacking if solved.get(layer) is None}
        if lacking:
            source = CheckpointLayers(folder, self.device)
            reconstruct(
                source,
                self.batches,
                anatomy,
                architecture,
                ranking,
                solved,
                num_rows=self.batches.num_rows,
                on_batch=self.on_batch,
                resident_bytes=self.resident_bytes,
            )
        if self.on_solved is not None:
            self.on_solved(solved_sites(ranking, architecture, solved))


def warnings_of(sites: Sequence[SolvedSite]) -> list[str]:
    """What a user should know of how projections were solved."""
    short = [site for site in sites if site.tokens < site.inputs]
    if not short:
        return []
    widest = max(site.inputs for site in short)
    return [
        f"{short[0].tokens:,} calibration tokens for up to {widest:,} inputs of a projection: without damping nothing "
        f"could be solved, with it {len(short)} of {len(sites)} projections gain less than they could. Use more "
        "conversations: some ten tokens an input"
    ]


def solved_sites(ranking: Ranking, architecture: Architecture, solved: SolvedLayers) -> tuple[SolvedSite, ...]:
    """How the projections were solved, in the model's order."""
    layers = sorted({site.layer for site in ranking.kept_units(architecture)})
    found = (solved.get(layer) for layer in layers)
    return tuple(site for layer in found if layer is not None for site in layer.sites)
