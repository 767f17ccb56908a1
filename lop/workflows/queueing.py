"""Leaving a search to a worker, from the machine that has the data."""

from collections.abc import Sequence

from mcts.settings import SearchSettings
from pruning.allocators.methods import Method
from pruning.data.conversations import Conversation
from service.datasets import DatasetShelf
from service.jobs.settings import LatencyTargetsOfJob, SearchJob
from storage.contract import Repository
from storage.data_store import DataStore
from storage.records import JobRecord, NewJob

ASKED_HERE = "command line"
"""Who asks with `lop ... --queue`: somebody with the database's own password."""


def queue_search(
    repository: Repository,
    store: DataStore,
    model_id: str,
    conversations: Sequence[Conversation],
    settings: SearchSettings,
    *,
    name: str,
) -> JobRecord:
    """Store the conversations by their content and queue the search.

    Raises StorageUnavailableError if the store cannot be written, DatasetError for a picture that cannot be read.
    """
    dataset = DatasetShelf(repository, store).add_conversations(conversations, name=name, added_by=ASKED_HERE)
    job = SearchJob(
        kind="search",
        model=model_id,
        dataset=dataset.id,
        sparsities=list(settings.sparsities),
        scope=settings.scope,
        space=settings.axes,
        method=Method(settings.method),
        evaluations=settings.num_evaluations,
        seed=settings.seed,
        num_levels=settings.num_levels,
        round_to=settings.round_to,
        parallel_leaves=settings.parallel_leaves,
        simulations=settings.num_simulations,
        latency=None if settings.latency is None else LatencyTargetsOfJob.model_validate(settings.latency.to_dict()),
    )
    return repository.add_job(NewJob(job.kind, model_id, job.model_dump(mode="json"), ASKED_HERE))[0]
