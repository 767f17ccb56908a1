"""What groups add, worked out by hand, also where one token is massive."""

import pytest
import torch
from torch import nn

from pruning.anatomy.families import GEMMA_2, LLAMA_LIKE, PHI
from pruning.measuring.group_contributions import GroupContributions, adding_attention


def two_groups(*weights: float) -> nn.Linear:
    """Two query heads of one channel each, one a group: what each adds goes along an axis of its own."""
    out = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        out.weight.copy_(torch.diag(torch.tensor(weights)))
    return out


def test_by_hand() -> None:
    groups = GroupContributions(two_groups(2.0, 1.0), 2)
    heads = torch.tensor([[1.0, 3.0]])
    # The groups add 2 and 3; the stream is (4, -2) before and (6, 1) after.
    groups.add(heads, torch.tensor([[4.0, -2.0]]), heads @ torch.diag(torch.tensor([2.0, 1.0])))
    assert groups.mean.tolist() == pytest.approx([4 / 37, 9 / 37])


def test_a_norm_behind_attention_takes_the_size_of_what_it_is_given() -> None:
    heads, stream = torch.tensor([[1.0, 3.0]]), torch.tensor([[4.0, -2.0]])
    found = []
    for factor in (1.0, 100.0):  # of the output projection: the norm behind it adds (.6, .9) all the same
        groups = GroupContributions(two_groups(2.0 * factor, factor), 2)
        groups.add(heads, stream, torch.tensor([[0.6, 0.9]]))
        found.append(groups.mean.tolist())
    assert found[0] == pytest.approx([0.36 / (4.6**2 + 1.1**2), 0.81 / (4.6**2 + 1.1**2)])
    assert found[1] == pytest.approx(found[0])


def test_a_massive_token_counts_as_one_token() -> None:
    """Group 0 adds 10 to a stream of 1,000 at the first token and nothing later; group 1 adds 1 to streams of 2."""
    groups = GroupContributions(two_groups(1.0, 1.0), 2)
    heads = torch.tensor([[10.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    groups.add(heads, torch.tensor([[1000.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), heads)
    ours = groups.mean
    assert ours[1] > ours[0]
    assert heads.square().mean(dim=0)[0] > heads.square().mean(dim=0)[1]  # the plain second moment has it reversed
    # Where the massive token is made, its maker scores: from a stream of 1 to one of 1,000.
    maker = GroupContributions(two_groups(1.0, 1.0), 2)
    heads = torch.tensor([[999.0, 0.0], [0.0, 0.5], [0.0, 0.5]])
    maker.add(heads, torch.ones(3, 2), heads)
    assert maker.mean[0] > maker.mean[1]


def test_nothing_added_to_nothing_is_nothing() -> None:
    groups = GroupContributions(two_groups(1.0, 1.0), 2)
    groups.add(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2))
    assert groups.mean.tolist() == [0.0, 0.0]


def test_what_attention_adds_is_behind_its_last_norm() -> None:
    assert adding_attention(LLAMA_LIKE) == "self_attn.o_proj"
    assert adding_attention(PHI) == "self_attn.dense"
    assert adding_attention(GEMMA_2) == "post_attention_layernorm"
