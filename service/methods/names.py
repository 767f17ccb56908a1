"""The methods that a request can name."""

from enum import StrEnum


class Method(StrEnum):
    """How the widths of a plan are chosen.

    First the trained predictor, the additive dynamic program and equal retention; then those that decide from stored
    statistics of the dense model, and those that a finished search answers.
    """

    LOP = "lop"
    ADDITIVE_DP = "additive-dp"
    UNIFORM = "uniform"

    WANDA_SP = "wanda-sp"
    FLAP = "flap"
    LLM_PRUNER = "llm-pruner"
    OWL = "owl"
    ECOFLAP = "ecoflap"
    SHORTGPT = "shortgpt"

    MCTS = "mcts"
    EVOLUTION = "evolution"
    RANDOM = "random"


BEST_FIRST = (Method.LOP, Method.MCTS, Method.ADDITIVE_DP, Method.UNIFORM)
"""Tried in this order for a request that names no method; the last one answers every feasible target. A tree search
answers it only within one level step of what it searched: what it measured beats what the additive program sums up.
"""
