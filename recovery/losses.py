"""What training minimises: a weighted sum of up to three losses, each a mean over tokens.

Letters: N answer tokens, M tokens that hidden states are compared at, V vocabulary, D model width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from recovery.recipe import Loss


@dataclass(frozen=True)
class Compared:
    """Hidden states of one layer at M tokens of a batch, the student's and the teacher's, [M, D]."""

    student: torch.Tensor
    teacher: torch.Tensor


def supervised(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats, summed: `logits` [N, V] in float32, `targets` [N]."""
    return nn.functional.cross_entropy(logits, targets, reduction="sum")


def distilled_logits(logits: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 KL(teacher || student), summed, both softened by T (Hinton et al., arXiv 1503.02531, section 2).

    `logits` and `teacher` are [N, V]. The factor keeps gradients of one size for any temperature.
    """
    own = torch.log_softmax(logits / temperature, dim=-1)
    wanted = torch.log_softmax(teacher / temperature, dim=-1)
    return temperature**2 * nn.functional.kl_div(own, wanted, reduction="sum", log_target=True)


def distilled_hidden(compared: Compared) -> torch.Tensor:
    """|h - t|^2 / |t|^2 of M tokens, summed.

    arXiv 2507.20749 takes the squared L2 distance. Its size depends on the model: relative to the teacher's own, a
    weight of 1 means the same in every model, and tokens with massive activations count as others do.
    """
    wanted = compared.teacher.float()
    distance = (compared.student.float() - wanted).pow(2).sum(dim=-1)
    return (distance / wanted.pow(2).sum(dim=-1).clamp(min=1e-12)).sum()


def weighted_loss(
    weights: Mapping[Loss, float],
    *,
    logits: torch.Tensor,
    targets: torch.Tensor,
    teacher_logits: torch.Tensor | None,
    hidden: tuple[Compared, ...],
    temperature: float,
    num_answer_tokens: int,
    num_hidden_tokens: int,
) -> torch.Tensor:
    """One batch's part of the loss of a step: sums over its tokens, divided by the numbers of tokens of the whole step.

    So batches of a step add up to the mean over its tokens, however they are cut into batches. Several layers count
    with their mean.
    """
    total = logits.new_zeros(())
    if Loss.SFT in weights:
        total = total + weights[Loss.SFT] * supervised(logits, targets) / num_answer_tokens
    if Loss.KD_LOGITS in weights:
        assert teacher_logits is not None
        total = (
            total + weights[Loss.KD_LOGITS] * distilled_logits(logits, teacher_logits, temperature) / num_answer_tokens
        )
    if Loss.KD_HIDDEN in weights:
        distances = torch.stack([distilled_hidden(one) for one in hidden])
        total = total + weights[Loss.KD_HIDDEN] * distances.mean() / num_hidden_tokens
    return total
