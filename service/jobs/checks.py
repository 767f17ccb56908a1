"""What is known to be wrong with a job before it waits: told to who asks, not found in a log an hour later."""

from pruning.errors import InputError, NotFoundError
from recovery.plain_weights import check_plain
from service.devices import priced
from service.jobs.settings import (
    CuttingJob,
    JobSettings,
    MeasureJob,
    RecoverJob,
    RegisterJob,
    SearchJob,
    TrainJob,
)
from service.names import check_new_id
from storage.contract import JobCatalogue
from values.decisions import check_learnt


def check_job(settings: JobSettings, catalogue: JobCatalogue) -> str:
    """The id of the model that the job is about.

    Raises NotFoundError for a model, a data set, a plan or a device that is not there, InputError for settings that
    make no sense together, InfeasibleTargetError for a target that no configuration reaches.
    """
    if isinstance(settings, CuttingJob):
        plan = catalogue.get_plan(settings.plan).plan
        if settings.reconstruct is not None:
            catalogue.get_dataset(settings.reconstruct)
        elif plan.reconstructs or settings.conversations is not None:
            raise InputError(
                "a plan that counts on reconstruction is applied with a data set, and conversations are of one",
                values="reconstruct names none",
                remedy="Name the data set that the model was registered with",
            )
        if isinstance(settings, RecoverJob):
            check_plain(plan)
            _check_parts(settings, catalogue)
        return plan.model.id
    if settings.dataset is not None:
        catalogue.get_dataset(settings.dataset)
    if isinstance(settings, RegisterJob):
        if settings.dataset is None and settings.conversations is not None:
            raise InputError("without a data set there are no conversations", values=str(settings.conversations))
        try:
            catalogue.get_model(settings.model)  # what an earlier version registered stays what it is
        except NotFoundError:
            check_new_id(settings.model)
        return settings.model
    anatomy = catalogue.get_model(settings.model).anatomy
    if isinstance(settings, SearchJob):
        search = settings.search_settings()
        search.resolve_targets(anatomy, priced(catalogue, anatomy, search.latency))
    if isinstance(settings, TrainJob):
        check_learnt(settings.space)
    assert isinstance(settings, MeasureJob | SearchJob | TrainJob)
    return settings.model


def _check_parts(settings: RecoverJob, catalogue: JobCatalogue) -> None:
    parts = [name for name in (settings.dataset, settings.selection, settings.validation) if name is not None]
    for name in parts:
        catalogue.get_dataset(name)
    if len(set(parts)) < len(parts):
        raise InputError(
            "what a recovery is trained on, what decides and what reports must be different conversations",
            values=f"a data set is named twice: {max(parts, key=parts.count)[:12]}",
            remedy="Leave selection out to keep a part of the dataset back",
        )
