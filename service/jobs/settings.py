"""What can be asked of a worker: one type a kind of job, told apart by `kind`.

No field holds a path: data sets are named by the sha256 of their content, models by their id, and a checkpoint that is
to be registered by the name of a folder under the worker's own roots.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from mcts.targets import DEFAULT_LATENCY_SHARES, LatencyTargets
from pruning.allocators.methods import Method
from pruning.measuring.criterion import Criterion
from pruning.measuring.statistics import StatisticsKind
from pruning.planning.axis_spaces import SpaceName
from pruning.planning.ffn_spaces import DEFAULT_NUM_LEVELS, DEFAULT_ROUND_TO
from pruning.planning.plan_parts import is_none
from pruning.planning.scope import Scope
from pruning.planning.workload import Workload
from recovery.recipe import Recipe
from service.names import NAME_PATTERN

if TYPE_CHECKING:
    from mcts.settings import SearchSettings

FOLDER_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$"
MAX_EVALUATIONS = 1_000_000
_SHA = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

_Name = Annotated[str, Field(min_length=1, max_length=200, pattern=NAME_PATTERN)]
_NewModel = Annotated[
    str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9._/-]+$", description="Id of the new model.")
]
_Model = Annotated[_Name, Field(description="Id of a registered model.")]
_Dataset = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="Id of a data set, see POST /v1/datasets.")]
_Conversations = Annotated[
    int | None, Field(strict=True, ge=1, le=10**6, description="Use only the first so many conversations.")
]
_NumLevels = Annotated[int, Field(strict=True, ge=2, le=1024, description="Widths to choose from, a layer.")]
_RoundTo = Annotated[int, Field(strict=True, ge=1, le=65536, description="Widths are multiples of this.")]
_Seed = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]
_Sparsity = Annotated[float, Field(strict=True, gt=0, lt=1, allow_inf_nan=False)]
_Share = Annotated[float, Field(strict=True, gt=0, lt=1, allow_inf_nan=False)]


class _Job(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RegisterJob(_Job):
    """Rank the channels of a checkpoint and register it: `lop model add`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"kind": "register", "model": "my-llava", "folder": "llava", "dataset": _SHA}]}
    )

    kind: Literal["register"]
    model: _NewModel
    folder: str = Field(
        max_length=500,
        pattern=FOLDER_PATTERN,
        description="Name of the checkpoint's folder, under a root of the worker.",
    )
    dataset: _Dataset | None = Field(default=None, description="Measured on; null: it is ranked by its weights alone.")
    conversations: _Conversations = None
    criterion: Criterion = Field(default=Criterion.ACTIVATIONS, description="What the ranking goes by.")
    reconstruct: bool = Field(default=False, description="Plan for models whose kept weights are solved anew.")

    @model_validator(mode="after")
    def _by_data(self) -> Self:
        if self.dataset is None and (self.criterion is not Criterion.ACTIVATIONS or self.reconstruct):
            raise ValueError("a criterion and a reconstruction need a dataset")
        return self


class MeasureJob(_Job):
    """Measure statistics of a registered model: `lop model measure`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"kind": "measure", "model": "my-llava", "dataset": _SHA, "statistics": ["gradients"]}]
        }
    )

    kind: Literal["measure"]
    model: _Model
    dataset: _Dataset
    statistics: list[StatisticsKind] = Field(
        default=[], max_length=len(StatisticsKind), description="Kinds to measure; none: all that the model lacks."
    )
    conversations: _Conversations = None


class LatencyTargetsOfJob(_Job):
    """Shares of the dense model's latency that a request may take on a device."""

    device: _Name = Field(description="Id of a device, see GET /v1/devices.")
    shares: list[_Share] | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        description="Searched after the sparsities; null: "
        f"{', '.join(f'{share:g}' for share in DEFAULT_LATENCY_SHARES)}, as far as the space reaches them.",
    )
    workload: Workload = Field(default=Workload(), description="The request that is timed.")


class SearchJob(_Job):
    """Search configurations, then train the model's predictor on what is known: `lop search`, `lop train`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"kind": "search", "model": "my-llava", "dataset": _SHA, "sparsities": [0.3, 0.5], "evaluations": 200}
            ]
        }
    )

    kind: Literal["search"]
    model: _Model
    dataset: _Dataset
    sparsities: list[_Sparsity] = Field(
        min_length=1,
        max_length=100,
        description="Fractions of `scope` to remove; where bits may change, of the bytes of the decoder's layers; "
        "where densities may, of the weights of its sub-layers, which are zeroed.",
    )
    scope: Scope | None = Field(
        default=None, description="What the sparsities count: `ffn` in the space `ffn`, `decoder` in the others."
    )
    space: SpaceName = SpaceName.FFN
    method: Literal[Method.MCTS, Method.EVOLUTION, Method.RANDOM] = Field(
        default=Method.MCTS, description="This product's search, or one to compare it with."
    )
    evaluations: int = Field(
        default=200, strict=True, ge=1, le=MAX_EVALUATIONS, description="Configurations scored a target."
    )
    seed: _Seed = 0
    num_levels: _NumLevels = DEFAULT_NUM_LEVELS
    round_to: _RoundTo = DEFAULT_ROUND_TO
    conversations: _Conversations = None
    parallel_leaves: int | None = Field(
        default=None, strict=True, ge=1, le=4096, description="Configurations chosen at once; null: the search's own."
    )
    simulations: int | None = Field(
        default=None,
        strict=True,
        ge=0,
        le=100_000,
        description="Tree simulations an evaluation; null: the search's own.",
    )
    train: bool = Field(default=True, strict=True, description="Train the model's predictor afterwards.")
    # Jobs of before say nothing of it, and equal ones are told by their settings.
    latency: LatencyTargetsOfJob | None = Field(
        default=None,
        exclude_if=is_none,
        description="Targets of latency beside the sparsities, where units may change.",
    )

    def search_settings(self) -> "SearchSettings":
        """Of the search itself; raises InputError where they make no sense together."""
        from mcts.settings import DEFAULT_PARALLEL_LEAVES, DEFAULT_SIMULATIONS, SearchMethod, SearchSettings

        return SearchSettings(
            sparsities=tuple(self.sparsities),
            scope=self.scope or (Scope.FFN if self.space is SpaceName.FFN else Scope.DECODER),
            axes=self.space,
            method=SearchMethod(self.method),
            num_evaluations=self.evaluations,
            seed=self.seed,
            num_levels=self.num_levels,
            round_to=self.round_to,
            parallel_leaves=DEFAULT_PARALLEL_LEAVES if self.parallel_leaves is None else self.parallel_leaves,
            num_simulations=DEFAULT_SIMULATIONS if self.simulations is None else self.simulations,
            latency=None if self.latency is None else LatencyTargets.from_dict(self.latency.model_dump(mode="json")),
        )


class TrainJob(_Job):
    """Train the model's predictor on its stored samples: `lop train`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"kind": "train", "model": "my-llava"}]})

    kind: Literal["train"]
    model: _Model
    dataset: _Dataset | None = Field(
        default=None, description="Learn from searches on this data set; null: on the one with the most samples."
    )
    conversations: _Conversations = None
    space: SpaceName = SpaceName.FFN
    num_levels: _NumLevels = DEFAULT_NUM_LEVELS
    round_to: _RoundTo = DEFAULT_ROUND_TO
    seed: _Seed = 0


class CuttingJob(_Job):
    """What kinds that cut a checkpoint have in common."""

    plan: _Name = Field(description="Id of a plan of this server.")
    reconstruct: _Dataset | None = Field(default=None, description="What is kept is solved anew on it.")
    conversations: Annotated[
        int | None, Field(strict=True, ge=1, le=10**6, description="Of `reconstruct`, use only the first so many.")
    ] = None


class ApplyJob(CuttingJob):
    """Cut the model's checkpoint as a plan says, into a new folder of the worker: `lop apply`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"kind": "apply", "plan": "0123456789abcdef01234567"}]})

    kind: Literal["apply"]


class RecoverJob(CuttingJob):
    """Cut the model's checkpoint as a plan says, and train what is left with the model as its teacher, into a new
    folder of the worker: `lop apply --recover`. Never worse than what was cut."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "kind": "recover",
                    "plan": "0123456789abcdef01234567",
                    "dataset": _SHA,
                    "recipe": {"mode": "lora", "minutes": 30},
                }
            ]
        }
    )

    kind: Literal["recover"]
    dataset: Annotated[_Dataset, Field(description="What is trained on.")]
    selection: _Dataset | None = Field(
        default=None, description="Decides what is kept; null: an eighth of `dataset`, 512 at most, kept back."
    )
    validation: _Dataset | None = Field(default=None, description="Only reports: the figures to expect.")
    recipe: Recipe = Field(
        default=Recipe(),
        description="How it is trained; what it leaves open is as `lop recover` has it, LoRA for one.",
    )


JobSettings = Annotated[
    RegisterJob | MeasureJob | SearchJob | TrainJob | ApplyJob | RecoverJob, Field(discriminator="kind")
]

KINDS = ("register", "measure", "search", "train", "apply", "recover")
"""Of `JobSettings`, in the order in which a model meets them."""

_RETIRED = ("probes",)
"""Of searches that were queued before; null, or what changes no result."""

_ADAPTER: TypeAdapter[JobSettings] = TypeAdapter(JobSettings)


def read_settings(document: Any) -> JobSettings | None:
    """The settings that were stored with a job; None where this version does not know them."""
    if isinstance(document, dict):
        document = {name: value for name, value in document.items() if name not in _RETIRED}
    try:
        return _ADAPTER.validate_python(document)
    except ValidationError:
        return None
