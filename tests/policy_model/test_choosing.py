"""What takes part in a choice: the best configurations measured near by, beside whatever a policy proposes."""

import torch

from policy_model.choosing import Parts
from policy_model.policy import Policy
from policy_model.predictor import Predictor
from pruning.anatomy.anatomy import ModelAnatomy
from storage.records import Sample
from tests.policy_model.test_predictor import limits_of, planned_widths

KEPT = (0.38, 0.55, 0.67)
"""Parts of the FFN channels that budgets allow: where the samples were searched."""


def test_no_plan_is_expected_to_be_worse_than_the_best_that_was_measured_near_by(
    predictor: Predictor, anatomy: ModelAnatomy, samples: list[Sample]
) -> None:
    """Not even where the policy proposes anything; without the measured ones such a policy's plans are."""
    torch.manual_seed(3)
    untaught = {name: p.numpy() for name, p in Policy(predictor.config).state_dict().items()}
    dense = [layer.ffn_width for layer in anatomy.layers]
    measured = [anatomy.ffn_widths(sample.architecture) for sample in samples]

    def behind(planner: Predictor, kept: float) -> float:
        """Log KL of the plan above that of the best measured configuration that fits, both by the values."""
        fits = [widths for widths in measured if 0.0 <= kept - sum(widths) / sum(dense) < 0.03]
        limits = limits_of(anatomy, int(kept * anatomy.ffn_parameters))
        fractions = planner.encoding.kept_fractions([planned_widths(planner, anatomy, limits), *fits])
        planned, *best = planner.values(fractions).tolist()
        return float(planned - min(best))

    alone = predictor.with_parts(Parts(memory=0.0, walkers=0), untaught)
    assert max(behind(alone, kept) for kept in KEPT) > 0.15
    for parts in (Parts(), Parts(walkers=0)):
        planner = predictor.with_parts(parts, untaught)
        assert max(behind(planner, kept) for kept in KEPT) < 0.05
    assert max(behind(predictor, kept) for kept in KEPT) < 0.05
