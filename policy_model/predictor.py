"""The trained predictor, as the service holds it: a budget in, widths and the quality to expect out."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from policy_model.calibration import Calibration, kl_of
from policy_model.decoding import NUM_CANDIDATES, best_levels, decode, gumbel_noise, marginal_worth
from policy_model.encoding import Encoding
from policy_model.model import KeyValues, ModelConfig, PlanModel
from pruning.anatomy import ModelAnatomy
from pruning.atomic_file import replace_file
from pruning.errors import CheckpointError, FingerprintMismatchError, InputError
from pruning.repair import repair_widths

FORMAT_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "predictor.json"


@dataclass(frozen=True)
class Prediction:
    """FFN widths [L], their predicted KL(dense || pruned) in nats, and the bounds of its 90% interval."""

    widths: tuple[int, ...]
    kl: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class PredictorInfo:
    """Where a predictor comes from.

    Attributes:
        fingerprint: of the model it plans for.
        num_samples: distinct samples it was trained on, and `samples_sha256` over their widths and metrics.
        calibration_id, ranking_sha256: what the samples were measured with.
        seed: of the training.
        metrics: measured during training, by name.
    """

    fingerprint: str
    num_samples: int
    samples_sha256: str
    calibration_id: str
    ranking_sha256: str
    seed: int
    metrics: dict[str, float] = field(default_factory=dict)


class Predictor:
    """Immutable once built: any number of threads may call `plan_widths` at once.

    A prediction is a function of the weights, the budget and `round_to` only: equal requests give equal plans.
    """

    def __init__(self, model: PlanModel, encoding: Encoding, calibration: Calibration, info: PredictorInfo) -> None:
        self.encoding = encoding
        self.calibration = calibration
        self.info = info
        self._model = model.eval().requires_grad_(False)
        self._noise = gumbel_noise(encoding.grid.num_layers, NUM_CANDIDATES, encoding.grid.num_levels, info.seed)
        with torch.inference_mode():
            self._prefix: list[KeyValues] = model.policy.encode_layers(encoding.features)

    @property
    def fingerprint(self) -> str:
        """Of the model it plans for."""
        return self.info.fingerprint

    @property
    def metrics(self) -> dict[str, float]:
        """What was measured during training."""
        return dict(self.info.metrics)

    def plan_widths(self, anatomy: ModelAnatomy, budget: int, *, round_to: int) -> Prediction:
        """Widths for at most `budget` FFN parameters, all multiples of `round_to` or dense, with the KL to expect.

        Less than one rounding step of any layer that is not dense is left over. A budget in which everything fits
        gives the dense widths and a KL of 0.

        Raises:
            FingerprintMismatchError: `anatomy` is not of the model this predictor was trained for.
            InputError: `round_to` is below 1.
            InfeasibleTargetError: the budget is below `round_to` channels in every layer.
        """
        if anatomy.fingerprint != self.fingerprint:
            raise FingerprintMismatchError(
                "a predictor plans only for the model it was trained for",
                values=f"model {anatomy.fingerprint[:12]}, predictor for {self.fingerprint[:12]}",
                remedy="Train one for this model with `lop train`",
            )
        if round_to < 1:
            raise InputError("round_to must be at least 1", values=str(round_to), remedy="Ask for 8, 64 or 128")
        dense = [layer.ffn_width for layer in anatomy.layers]
        if budget >= anatomy.ffn_parameters:
            return Prediction(widths=tuple(dense), kl=0.0, interval=(0.0, 0.0))
        with torch.inference_mode():
            start = self._start_widths(budget)
            marginal = marginal_worth(self.encoding, self._model.values, torch.tensor(start), round_to)
            widths = repair_widths(anatomy, start, budget, round_to=round_to, marginal=marginal)
            fractions = self.encoding.kept_fractions(torch.tensor([widths]))
            log_kl = float(self._model.values(fractions).mean())
            interval = self.calibration.interval(log_kl, float(self._model.values.deviation(fractions)))
        return Prediction(widths=tuple(widths), kl=kl_of(log_kl), interval=interval)

    def _start_widths(self, budget: int) -> list[int]:
        """Grid widths [L] within `budget`; below the grid, its lowest widths in proportion."""
        grid = self.encoding.grid
        if budget < grid.min_cost_from[0]:
            return [max(1, row[0] * max(budget, 0) // grid.min_cost_from[0]) for row in grid.widths]
        budgets = torch.full((NUM_CANDIDATES,), budget)
        candidates, _ = decode(self._model.policy, self.encoding, self._prefix, budgets, self._noise)
        levels = best_levels(self.encoding, self._model.values, candidates, budget)
        return [row[level] for row, level in zip(grid.widths, levels.tolist(), strict=True)]

    # -- storage ---------------------------------------------------------------------------------------------------

    def to_bytes(self) -> tuple[bytes, dict[str, Any]]:
        """Weights as safetensors bytes, and everything else as a JSON document; the inverse of `from_bytes`."""
        tensors = {name: p.detach().contiguous() for name, p in self._model.state_dict().items()}
        config = {
            "format_version": FORMAT_VERSION,
            "model": self._model.config.to_dict(),
            "encoding": self.encoding.to_dict(),
            "calibration": self.calibration.to_dict(),
            "info": asdict(self.info),
        }
        return save_tensors(tensors), json.loads(json.dumps(config))

    @classmethod
    def from_bytes(cls, weights: bytes, config: dict[str, Any]) -> "Predictor":
        """Raises CheckpointError if the bytes are truncated or do not belong to `config`."""
        if config.get("format_version") != FORMAT_VERSION:
            raise CheckpointError(
                f"a predictor must have format version {FORMAT_VERSION}",
                values=repr(config.get("format_version")),
                remedy="Train it again with this version",
            )
        try:
            encoding = Encoding.from_dict(config["encoding"])
            model_config = ModelConfig(**config["model"])
            calibration = Calibration(**config["calibration"])
            info = PredictorInfo(**config["info"])
            tensors = load_tensors(weights)
            with torch.random.fork_rng(devices=[]):  # initial weights are drawn, then replaced: no trace left
                model = PlanModel(model_config, encoding)
            model.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError, SafetensorError) as error:
            raise CheckpointError(
                "a predictor's weights and its configuration must belong together and be complete",
                values=f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}",
                remedy="Copy both again, or train it again with `lop train`",
            ) from error
        return cls(model, encoding, calibration, info)

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
