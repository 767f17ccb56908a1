"""The offline search: a Monte-Carlo tree search over per-layer FFN levels, its prior learnt while it runs.

Entry point: `mcts.worker.run_search`. The loop itself is in `mcts/search.py`, the selection formula in
`mcts/selection.py`, what the prior learns from in `values/surrogate.py`.
"""
