"""The trained predictor, as the service holds it: a budget in, what to keep and the quality to expect out."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from policy_model.choosing import EXPLORING, Chooser, Parts, policy_proposes, usual_parts
from policy_model.costs import DecisionCosts, costs_within, parameter_costs
from policy_model.decoder import PolicyDecoder
from policy_model.local_search import worth_of_raising
from policy_model.model_features import NUM_KINDS, decision_features
from policy_model.policy_config import PolicyConfig
from policy_model.problem_features import Float32Array
from pruning.allocators.uniform import uniform_choice
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.arrays import FloatArray, IntArray
from pruning.atomic_file import replace_file
from pruning.errors import CheckpointError, FingerprintMismatchError, InputError
from pruning.planning.limits import Limits
from pruning.planning.space import Choice
from pruning.reasons import reason_of
from storage.contract import Artifacts
from storage.records import PredictorRecord
from values.basis import Basis
from values.calibration import Calibration
from values.decisions import units_in
from values.encoding import Encoding
from values.expectation import Judged, expected_kl, expected_share
from values.held_out import GROUP_RETENTION
from values.kernel import Kernel
from values.residual_scale import ResidualScale
from values.unseen import Unseen
from values.values import Values

FORMAT_VERSION = 5
READABLE_VERSIONS = (2, 3, 4, FORMAT_VERSION)
"""Version 2 knew a grid of widths instead of a space. The policies of versions 2 and 3 had a weight for every layer and
level, and are not decoded any more: those predictors choose without one. That of version 4 knew FFNs only."""

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "predictor.json"


@dataclass(frozen=True)
class Prediction:
    """What to keep, and what to expect of it: of unseen conversations, as many as were searched on.

    Attributes:
        architecture: within the limits.
        kl: predicted KL(dense || pruned) in nats, and the bounds of its 90% `interval`.
        accuracy: predicted exact match, where the dense model has as much as on the calibration answers, and the bounds
            of its 90% `accuracy_interval`; None where the dense model itself gives none of them exactly.
        agreement: predicted share of answer tokens at which its first choice is the dense model's, likewise; None if
            the predictor's samples are from before it was measured.
        below_space: nothing of the searched space meets the limits, so every layer keeps the same fraction.
        dense_accuracy: exact match of the dense model that `accuracy` is beside, where that is of unseen conversations.
        is_unseen: False where the searches were not cross-validated: all is of the calibration conversations then.
        extrapolated: more or less is kept than of anything that was searched; intervals are of what was.
    """

    architecture: Architecture
    kl: float
    interval: tuple[float, float]
    accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    agreement: float | None = None
    agreement_interval: tuple[float, float] | None = None
    dense_accuracy: float | None = None
    is_unseen: bool = False
    below_space: bool = False
    extrapolated: bool = False


@dataclass(frozen=True)
class PredictorInfo:
    """Where a predictor comes from.

    Attributes:
        fingerprint: of the model it plans for.
        num_samples: distinct samples it was trained on, and `samples_sha256` over their widths and metrics.
        calibration_id, ranking_sha256: what the samples were measured with.
        seed: of the training.
        searched: least and greatest part of the parameters that may go which a sample of two cuts or more keeps.
        metrics: measured during training, by name.
    """

    fingerprint: str
    num_samples: int
    samples_sha256: str
    calibration_id: str
    ranking_sha256: str
    seed: int
    # Of predictors from before it was recorded, nothing is said.
    searched: tuple[float, float] = (0.0, 1.0)
    metrics: dict[str, float] = field(default_factory=dict)


class Predictor:
    """Immutable once built: any number of threads may call `plan` at once. Needs no torch.

    A prediction is a function of the weights and the limits only: equal requests give equal plans.

    Args:
        policy: the state of a trained `Policy`, by its names; None: nothing is decoded. Where requests do not hear it
            (`choosing.policy_proposes`), it leads searches alone.
        config: its sizes.
        values: what judges complete configurations.
        encoding: of the model.
        calibration: of the values.
        residual_scale: of the values.
        info: where it comes from.
        unseen: what calibration conversations say of unseen ones; None where that was not measured.
        parts: what takes part in a plan.
    """

    def __init__(
        self,
        policy: Mapping[str, Float32Array] | None,
        config: PolicyConfig,
        values: Values,
        encoding: Encoding,
        calibration: Calibration,
        residual_scale: ResidualScale,
        info: PredictorInfo,
        unseen: Unseen | None = None,
        parts: Parts | None = None,
    ) -> None:
        self.encoding, self.values, self.calibration, self.info = encoding, values, calibration, info
        self._residual_scale, self.unseen = residual_scale, unseen
        self._policy, self.config = policy, config
        self._decoder = None if policy is None else PolicyDecoder(policy, config, decision_features(encoding))
        self.parts = parts or usual_parts(encoding.space)
        self._chooser = Chooser(values, encoding, self._decoder, info.seed, self.parts)

    @property
    def lacks_policy(self) -> bool:
        """Whether one would propose, and there is none: predictors from before format version 4."""
        return self._policy is None and policy_proposes(self.encoding.space)

    def with_parts(self, parts: Parts, policy: Mapping[str, Float32Array] | None = None) -> "Predictor":
        """The same with other `parts`, and with the weights of another `policy` if given: for ablations."""
        of = (self.config, self.values, self.encoding, self.calibration, self._residual_scale, self.info, self.unseen)
        return Predictor(self._policy if policy is None else policy, *of, parts)

    def of_calibration(self) -> "Predictor":
        """The same with expectations of the calibration conversations, as its values have them."""
        of = (self.config, self.values, self.encoding, self.calibration, self._residual_scale, self.info)
        return Predictor(self._policy, *of, parts=self.parts)

    @property
    def fingerprint(self) -> str:
        """Of the model it plans for."""
        return self.info.fingerprint

    @property
    def metrics(self) -> dict[str, float]:
        """What was measured during training."""
        return dict(self.info.metrics)

    def plan(self, anatomy: ModelAnatomy, limits: Limits) -> Prediction:
        """What meets all `limits`, with the quality to expect; no decision could grow by one more step.

        Limits that everything meets give the widest allowed model, the dense one a KL of 0.

        Raises:
            FingerprintMismatchError: `anatomy` is not of the model this predictor was trained for.
            InputError: `limits` are of a space with other decisions.
        """
        if anatomy.fingerprint != self.fingerprint:
            raise FingerprintMismatchError(
                "a predictor plans only for the model it was trained for",
                values=f"model {anatomy.fingerprint[:12]}, predictor for {self.fingerprint[:12]}",
                remedy="Train one for this model with `lop train`",
            )
        space = limits.space
        places = space.places_of(self.encoding.space)
        if places is None:
            raise InputError(
                "a predictor decides what its samples differ in",
                values=f"asked for {space.num_decisions} decisions, trained on {self.encoding.space.num_decisions}",
                remedy="Ask for the space that was searched",
            )
        if limits.allows_everything:
            return self._prediction(space.architecture(space.top), chosen=True)
        choice = self._choice(limits, places)
        below_space = choice is None
        if choice is None:
            choice = uniform_choice(limits)
        return replace(self._prediction(space.architecture(choice), chosen=True), below_space=below_space)

    def judge(self, architecture: Architecture) -> Prediction:
        """What to expect of a model that was cut in another way, with the intervals of any configuration.

        It is the model this predictor was trained for, cut along the ranking of its samples.

        Raises:
            InputError: something else is cut than the searched space decides.
        """
        if units_in(self.encoding.space, architecture) is None:
            raise InputError(
                "a predictor judges nothing but what its samples differ in",
                values=str(architecture.document()),
                remedy="Measure it with `lop evaluate`",
            )
        return self._prediction(architecture, chosen=False)

    def _prediction(self, architecture: Architecture, *, chosen: bool) -> Prediction:
        units = units_in(self.encoding.space, architecture)
        assert units is not None  # chosen within the space, or checked
        fractions = self.encoding.kept_fractions([units])
        mean, deviation = (float(x[0]) for x in self.values.judge(fractions))
        judged = Judged(mean, deviation, chosen)
        # What another method chose, by these conversations or not, is judged on them; the dense model costs nothing.
        unseen = self.unseen if chosen and architecture.items else None
        accuracy, accuracy_interval = expected_share("accuracy", self.calibration.accuracy, judged, unseen)
        agreement, agreement_interval = expected_share("agreement", self.calibration.agreement, judged, unseen)
        kl, interval = expected_kl(self.calibration, judged, unseen)
        low, high = self.info.searched
        retention = float(fractions[0] @ self.encoding.parameter_shares)
        extrapolated = not low - GROUP_RETENTION <= retention <= high + GROUP_RETENTION
        if not architecture.items:
            kl, interval, extrapolated = 0.0, (0.0, 0.0), False
            if agreement is not None:
                agreement, agreement_interval = 1.0, (1.0, 1.0)
        return Prediction(
            architecture,
            kl,
            interval,
            accuracy,
            accuracy_interval,
            agreement,
            agreement_interval,
            dense_accuracy=None if unseen is None or accuracy is None else unseen.dense_accuracy,
            is_unseen=unseen is not None,
            extrapolated=extrapolated,
        )

    def propose(self, spare: int) -> Choice:
        """The choice [N] for a search: at most `spare` parameters above the narrowest one, which it must be able to
        spend. Bolder than a plan, since it is measured before anybody takes it."""
        costs, slack = self._parameter_costs, np.array([spare], dtype=np.int64)
        chosen = self._explorer.choose(costs, slack, self._explorer.space_values)
        # Decisions of fewer options repeat their last one.
        return tuple(np.minimum(chosen, self.encoding.space.top).tolist())

    def uncertainty(self, choice: Choice) -> float:
        """The error to expect of the log KL of a choice [L]: a standard deviation, roughly.

        The posterior standard deviation, which is large where nothing was measured near by, times the residual scale.
        """
        fractions = self.encoding.kept_fractions([self.encoding.space.units_of(choice)])
        retention = float(fractions[0] @ self.encoding.parameter_shares)
        return float(self.values.judge(fractions)[1][0]) * self._residual_scale.at(retention)

    def prior(self, prefix: Choice, slack: int, /) -> FloatArray:
        """Probabilities [K] of the next decision's options after `prefix` [l], if the decisions from there on may cost
        `slack` parameters above their narrowest.

        What a search takes as its prior.
        """
        costs, chosen = self._parameter_costs, np.array(prefix, dtype=np.int64)
        spent = int(costs.excess[0, np.arange(len(prefix)), chosen].sum())
        found = self._chooser.next_option(costs, np.array([slack + spent], dtype=np.int64), chosen)
        last = self.encoding.space.top[len(prefix)]  # which decisions of fewer options repeat
        return np.concatenate([found[:last], [found[last:].sum()], np.zeros(len(found) - last - 1)])

    def _choice(self, limits: Limits, places: IntArray) -> IntArray | None:
        """[N] in the space of `limits`: the chosen levels, filled up; None if not even the narrowest meet the limits.

        The levels meet all limits, so channels are only added, and what a level more gains is all that is asked.
        """
        costs, options, widths, slack = costs_within(self.encoding.space, limits, places)
        if (slack < 0).any():
            return None
        table = self._chooser.values_at(widths / self.encoding.dense_units[:, None])
        levels = self._chooser.choose(costs, slack, table)
        choice = np.zeros(limits.space.num_decisions, dtype=np.int64)
        choice[places] = options[np.arange(len(levels)), levels]
        if limits.is_tight(choice):
            return choice
        worth = np.zeros(limits.table.exists.shape)
        slopes = worth_of_raising(table, levels) / self.encoding.dense_units
        for n, slope in zip(places, slopes, strict=True):
            units = limits.space.units[n]
            worth[n, : len(units)] = units * slope
        return limits.fit(choice, worth)

    def _check_finite(self) -> None:
        """Raises ValueError if a plan for half of the space has no finite value. Makes what a first request needs."""
        spare = np.array([(self.encoding.most_parameters - self.encoding.least_parameters) // 2], dtype=np.int64)
        table = self._chooser.space_values
        chosen = self._chooser.choose(self._parameter_costs, spare, table)
        if not np.isfinite(table.pessimistic(chosen[None])).all():
            raise ValueError("the values of a plan are not finite")

    @cached_property
    def _explorer(self) -> Chooser:
        """What proposes to searches."""
        return Chooser(self.values, self.encoding, self._decoder, self.info.seed, EXPLORING, quick=True)

    @cached_property
    def _parameter_costs(self) -> DecisionCosts:
        return parameter_costs(self.encoding)

    # -- storage ---------------------------------------------------------------------------------------------------

    def to_bytes(self) -> tuple[bytes, dict[str, Any]]:
        """Weights as safetensors bytes, and everything else as a JSON document; the inverse of `from_bytes`."""
        tensors = {f"policy.{name}": np.ascontiguousarray(x) for name, x in (self._policy or {}).items()}
        tensors |= {f"values.{name}": np.ascontiguousarray(x) for name, x in self.values.tensors.items()}
        config = {
            "format_version": FORMAT_VERSION,
            "policy": None if self._policy is None else self.config.to_dict(),
            "kernel": asdict(self.values.kernel),
            "encoding": self.encoding.to_dict(),
            "calibration": self.calibration.to_dict(),
            "past_errors": self._residual_scale.to_dict(),  # its name in predictors that are stored
            "info": asdict(self.info),
        }
        if self.unseen is not None:
            config["unseen"] = self.unseen.to_dict()
        return save_tensors(tensors), json.loads(json.dumps(config))

    @classmethod
    def stored(cls, repository: Artifacts, record: PredictorRecord) -> "Predictor":
        """The one that `record` names; raises CheckpointError as `from_bytes`, or if it is of another space."""
        found = cls.from_bytes(repository.get_artifact(record.weights_sha256).content, record.config)
        if record.space is not None and record.space != found.encoding.space.document():
            raise CheckpointError(
                "a predictor is stored with the space that it chooses from",
                values=f"predictor {record.id} of model {record.model_id} is stored with another one",
                remedy="Train it again with `lop train`",
            )
        return found

    @classmethod
    def from_bytes(cls, weights: bytes, config: dict[str, Any]) -> "Predictor":
        """Raises CheckpointError if the bytes are truncated or do not belong to `config`."""
        if config.get("format_version") not in READABLE_VERSIONS:
            raise CheckpointError(
                f"a predictor must have format version {' or '.join(map(str, READABLE_VERSIONS))}",
                values=repr(config.get("format_version")),
                remedy="Train it again with this version",
            )
        try:
            encoding = Encoding.from_dict(config["encoding"])
            tensors = load_tensors(weights)
            if not all(np.isfinite(x).all() for x in tensors.values()):
                raise ValueError("a weight is not a finite number")
            has_policy = config["format_version"] >= 4 and config["policy"] is not None
            weights_of_policy = {n.removeprefix("policy."): x for n, x in tensors.items() if n.startswith("policy.")}
            if config["format_version"] == 4 and has_policy:
                weights_of_policy["read_decision.weight"] = np.pad(
                    weights_of_policy["read_decision.weight"], ((0, 0), (0, NUM_KINDS))
                )
            fitted = {n.removeprefix("values."): x for n, x in tensors.items() if n.startswith("values.")}
            values = Values(Basis(encoding), Kernel(**config["kernel"]), fitted)
            sizes = PolicyConfig(**config["policy"]) if has_policy else PolicyConfig()
            info = PredictorInfo(**config["info"])
            info = replace(info, searched=(float(info.searched[0]), float(info.searched[1])))
            residual_scale = ResidualScale.from_dict(config.get("past_errors", {"points": ()}))
            calibration = Calibration.from_dict(config["calibration"])
            unseen = Unseen.from_dict(config["unseen"]) if "unseen" in config else None
            policy = weights_of_policy if has_policy else None
            found = cls(policy, sizes, values, encoding, calibration, residual_scale, info, unseen)
            found._check_finite()
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError, SafetensorError) as error:
            raise CheckpointError(
                "a predictor's weights and its configuration must belong together and be complete",
                values=reason_of(error),
                remedy="Copy both again, or train it again with `lop train`",
            ) from error
        return found

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` and `predictor.json`, each replaced at once. Raises CheckpointError."""
        weights, config = self.to_bytes()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(folder / WEIGHTS_FILE, weights)
            replace_file(folder / CONFIG_FILE, json.dumps(config, indent=1).encode())
        except OSError as error:
            raise CheckpointError(
                "a predictor's folder must be writable", values=f"{folder}: {error.strerror}", remedy="Choose another"
            ) from error

    @classmethod
    def load(cls, folder: Path) -> "Predictor":
        """Raises CheckpointError if a file is missing, truncated or not one of ours."""
        try:
            config = json.loads((folder / CONFIG_FILE).read_bytes())
            weights = (folder / WEIGHTS_FILE).read_bytes()
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"a predictor's folder holds {WEIGHTS_FILE} and {CONFIG_FILE}",
                values=f"{folder}: {error}",
                remedy="Train one with `lop train`",
            ) from error
        if not isinstance(config, dict):
            raise CheckpointError(f"{CONFIG_FILE} must hold a JSON object", values=str(folder))
        return cls.from_bytes(weights, config)
