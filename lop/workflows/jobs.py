"""What a worker does for each kind of job: the workflows of the commands, with data by content and folders by name."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lop.workflows.engines import LOCAL_ENGINE, EngineOptions, squares_for
from lop.workflows.job_folders import folder_below, write_once
from mcts.result import SearchResult
from pruning.data.conversations import Conversation
from pruning.errors import InputError
from pruning.measuring.metrics import Metrics
from service.datasets import DatasetShelf
from service.jobs.reporting import JobReporter
from service.jobs.settings import (
    ApplyJob,
    CuttingJob,
    JobSettings,
    MeasureJob,
    RecoverJob,
    RegisterJob,
    SearchJob,
    TrainJob,
    read_settings,
)
from storage.contract import Repository
from storage.data_store import DataStore
from storage.records import JobRecord

if TYPE_CHECKING:
    from policy_model.progress import TrainingProgress
    from pruning.cutting.reconstruct_checkpoint import Reconstruction
    from pruning.cutting.reconstruction import SolvedSite
    from pruning.planning.plan import PruningPlan
    from storage.records import ModelRecord

_logger = logging.getLogger("lop.jobs")


@dataclass(frozen=True)
class JobRunner:
    """Runs jobs of every kind; what `service.worker.Worker` calls for each.

    Attributes:
        store: where the content of data sets is.
        roots: folders under which a job may name a checkpoint.
        outputs: folder into which checkpoints are written.
        cache: folder for unpacked data sets; None: a temporary one for each job.
        engine: where evaluations run.
    """

    repository: Repository
    store: DataStore
    roots: tuple[Path, ...] = ()
    outputs: Path = Path("lop-output")
    cache: Path | None = None
    engine: EngineOptions = LOCAL_ENGINE

    def __call__(self, job: JobRecord, reporter: JobReporter) -> dict[str, Any]:
        """The result of a claimed job, a JSON document.

        Raises InputError for settings that this version does not know, and what the workflow of its kind raises.
        """
        settings = read_settings(job.settings)
        if settings is None:
            raise InputError(
                "a job has settings of a kind that this version knows",
                values=f"kind {job.kind!r}",
                remedy="Ask for it again, or run a `lop worker` of the version that queued it",
            )
        return self._run(settings, reporter)

    def _run(self, settings: JobSettings, reporter: JobReporter) -> dict[str, Any]:
        match settings:
            case RegisterJob():
                return self._register(settings, reporter)
            case MeasureJob():
                return self._measure(settings, reporter)
            case SearchJob():
                return self._search(settings, reporter)
            case TrainJob():
                return self._train(settings, reporter)
            case ApplyJob():
                return self._apply(settings, reporter)
            case RecoverJob():
                return self._recover(settings, reporter)

    @contextmanager
    def _conversations(self, dataset: str, limit: int | None) -> Iterator[tuple[str, list[Conversation]]]:
        if self.cache is not None:
            self.cache.mkdir(parents=True, exist_ok=True)
        shelf = DatasetShelf(self.repository, self.store)
        with shelf.unpacked(dataset, limit, cache=self.cache) as found:
            yield found

    def _register(self, job: RegisterJob, reporter: JobReporter) -> dict[str, Any]:
        from lop.workflows.registration import register_by_weights, register_model

        folder = folder_below(self.roots, job.folder)
        reading = _steps(reporter, "reading weights")
        if job.dataset is None:
            record = register_by_weights(
                self.repository, job.model, folder, on_bytes=reading, on_rank=_steps(reporter, "ranking")
            )
        else:
            with self._conversations(job.dataset, job.conversations) as (name, conversations):
                record = register_model(
                    self.repository,
                    job.model,
                    folder,
                    conversations,
                    name=name,
                    criterion=job.criterion,
                    reconstructs=job.reconstruct,
                    on_bytes=reading,
                    on_batch=_steps(reporter, "measuring activations"),
                    on_layer=_steps(reporter, "eliminating units"),
                    on_warning=_logger.warning,
                )
        return {"model": record.id, "fingerprint": record.anatomy.fingerprint}

    def _measure(self, job: MeasureJob, reporter: JobReporter) -> dict[str, Any]:
        from lop.workflows.measuring import StatisticsMeasurer

        measurer = StatisticsMeasurer(self.repository, job.model)
        measured = []
        with self._conversations(job.dataset, job.conversations) as (name, conversations):
            for kind in job.statistics or measurer.missing():
                record = measurer.measure(
                    kind,
                    conversations,
                    name=name,
                    num_conversations=job.conversations,
                    on_batch=_steps(reporter, f"measuring {kind}"),
                    on_warning=_logger.warning,
                )
                measured.append({"kind": record.kind, "calibration": record.calibration_id, "sha256": record.sha256})
        return {"model": job.model, "statistics": measured}

    def _search(self, job: SearchJob, reporter: JobReporter) -> dict[str, Any]:
        from lop.workflows.searching import record_result, search_model
        from pruning.data.conversations import calibration_id

        settings = job.search_settings()

        def on_evaluation(done: int, total: int, target: str, best: Metrics | None, /) -> None:
            reporter.step(done, total, target, None if best is None else best.kl)

        with self._conversations(job.dataset, job.conversations) as (name, conversations):
            squares = None
            if settings.axes.has_density:
                told = _steps(reporter, "measuring inputs")
                squares = squares_for(self.repository.get_model(job.model), conversations, on_batch=told)
            result = search_model(
                self.repository,
                job.model,
                conversations,
                settings,
                name=name,
                progress=on_evaluation,
                engine=self.engine,
                on_stored=reporter.check,
                squares=squares,
            )
            # Which it has done: an equal search is kept once.
            record = record_result(self.repository, job.model, conversations, settings, result, name=name)
            calibration = calibration_id(conversations)
        outcome = {
            "model": job.model,
            "search": record.id,
            "calibration": calibration,
            "targets": _targets(result),
        }
        if not job.train:
            return outcome
        try:
            return outcome | {"predictor": self._predictor(job, calibration, reporter, result)}
        except InputError as error:  # what was found is not lost where there is too little to learn from
            _logger.warning("no predictor is trained: %s", error)
            return outcome | {"not_trained": str(error)}

    def _train(self, job: TrainJob, reporter: JobReporter) -> dict[str, Any]:
        from pruning.data.conversations import calibration_id

        calibration = None
        if job.dataset is not None:
            with self._conversations(job.dataset, job.conversations) as (_, conversations):
                calibration = calibration_id(conversations)
        return {"model": job.model, "predictor": self._predictor(job, calibration, reporter)}

    def _predictor(
        self,
        job: SearchJob | TrainJob,
        calibration: str | None,
        reporter: JobReporter,
        result: SearchResult | None = None,
    ) -> str:
        """Train on what is known of the set; returns the predictor's id."""
        from lop.workflows.training import train_model
        from policy_model.training import TrainingSettings

        def on_step(progress: "TrainingProgress") -> None:
            reporter.step(progress.step, progress.num_steps, f"training: {progress.phase}")

        settings = TrainingSettings(num_levels=job.num_levels, round_to=job.round_to, axes=job.space, seed=job.seed)
        budgets = [] if result is None else [x.budget for x in result.targets if x.latency is None]
        record = train_model(
            self.repository, job.model, settings, calibration_id=calibration, budgets=budgets, progress=on_step
        )
        return record.id

    def _apply(self, job: ApplyJob, reporter: JobReporter) -> dict[str, Any]:
        plan, model = self._planned(job)
        out, solved = self._cut(job, plan, model, reporter)
        return {**_written(model, plan, out), **solved}

    def _recover(self, job: RecoverJob, reporter: JobReporter) -> dict[str, Any]:
        """What an `apply` job of the same settings would write is written beside, and stays."""
        from lop.workflows.recovering import planned_recipe, recover_folder
        from lop.workflows.recovery_jobs import ears_of, outcome_in, recovered_name, split_for
        from recovery.checks import check_planned

        plan, model = self._planned(job)
        job = job.model_copy(update={"recipe": planned_recipe(plan, job.recipe, on_note=_logger.warning)})
        plan, dense = plan.untrained, Path(model.path)
        check_planned(plan, dense, job.recipe)
        parts = {"train": job.dataset, "selection": job.selection, "validation": job.validation}
        with ExitStack() as stack:
            loaded = {
                part: stack.enter_context(self._conversations(name, None))
                for part, name in parts.items()
                if name is not None
            }
            data = split_for(job.recipe, loaded)
            cut, solved = self._cut(job, plan, model, reporter)
            out = cut.with_name(recovered_name(cut.name, job))
            ears = ears_of(reporter)
            write_once(out, lambda: recover_folder(cut, dense, data, job.recipe, out, ears=ears), reporter)
        return {**_written(model, plan, out), **solved, "recovery": outcome_in(out)}

    def _planned(self, job: CuttingJob) -> "tuple[PruningPlan, ModelRecord]":
        plan = self.repository.get_plan(job.plan).plan
        return plan, self.repository.get_model(plan.model.id)

    def _cut(
        self, job: CuttingJob, plan: "PruningPlan", model: "ModelRecord", reporter: JobReporter
    ) -> tuple[Path, dict[str, Any]]:
        """The folder of the cut checkpoint, made if it is not there, and what a result says of how it was solved:
        nothing where that is not known, since it was there or is not solved."""
        from lop.workflows.reconstructing import summary_of
        from pruning.cutting.prune_checkpoint import prune_checkpoint
        from pruning.planning.ranking import Ranking

        ranking = Ranking.from_bytes(self.repository.get_artifact(plan.ranking.sha256).content)
        sites: list[SolvedSite] = []
        with self._reconstruction(job, Path(model.path), reporter, sites) as (reconstruction, name):
            out = self.outputs.resolve() / name
            self.outputs.mkdir(parents=True, exist_ok=True)

            def cut() -> None:
                prune_checkpoint(
                    model.path,
                    plan,
                    ranking,
                    out,
                    reconstruction=reconstruction,
                    on_bytes=_steps(reporter, "writing"),
                    on_warning=_logger.warning,
                )

            write_once(out, cut, reporter)
        return out, {"reconstruction": summary_of(sites)} if sites else {}

    @contextmanager
    def _reconstruction(
        self, job: CuttingJob, checkpoint: Path, reporter: JobReporter, sites: "list[SolvedSite]"
    ) -> "Iterator[tuple[Reconstruction | None, str]]":
        """How to solve what is kept, and the name of the folder to write; `sites` are filled once all are solved."""
        from lop.workflows.reconstructing import reconstruction_on
        from pruning.cutting.reconstruct_checkpoint import warnings_of

        def on_solved(solved: "tuple[SolvedSite, ...]") -> None:
            sites[:] = solved
            for warning in warnings_of(solved):
                _logger.warning(warning)

        if job.reconstruct is None:
            yield None, job.plan
            return
        with self._conversations(job.reconstruct, job.conversations) as (_, conversations):
            told = _steps(reporter, "solving")
            found = reconstruction_on(checkpoint, conversations, on_batch=told, on_solved=on_solved)
            yield found, f"{job.plan}-{found.calibration_id[:12]}"


def _written(model: "ModelRecord", plan: "PruningPlan", out: Path) -> dict[str, Any]:
    """Of a job that wrote the checkpoint `out`."""
    files = sorted(path for path in out.iterdir() if path.is_file())
    return {
        "model": model.id,
        "plan": plan.plan_id,
        "folder": out.name,
        "files": [{"name": path.name, "bytes": path.stat().st_size} for path in files],
    }


def _steps(reporter: JobReporter, stage: str) -> Callable[[int, int], None]:
    """A callback of (done, total)."""
    return lambda done, total: reporter.step(done, total, stage)


def _targets(result: SearchResult) -> list[dict[str, Any]]:
    return [
        {
            "label": target.label,
            "sparsity": target.sparsity,
            "budget": target.budget,
            "latency": None if target.latency is None else target.latency.to_dict(),
            "kl": target.metrics.kl,
            "agreement": target.metrics.agreement,
            "evaluations": target.evaluations,
        }
        for target in result.targets
    ]
