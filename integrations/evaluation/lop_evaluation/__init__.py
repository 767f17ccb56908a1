"""lm-evaluation-harness and lmms-eval, asking a model that answers in another process.

`python -m lop_evaluation` is started by `lop evaluate`, with two pipes. What goes over them: connection.py.
"""
