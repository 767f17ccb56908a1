"""The offline search over per-layer FFN levels: swap moves and, if asked for, a Monte-Carlo tree search propose.

Entry point: `mcts.worker.run_search`. The loop itself is in `mcts/search.py`, the selection formula in
`mcts/selection.py`, what the prior learns from in `values/surrogate.py`.
"""
