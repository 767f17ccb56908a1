"""GGUF: a checkpoint, dense or pruned, as one file that llama.cpp and what is built on it run.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What llama.cpp makes of a file was read from its
sources (src/models/deci.cpp, src/llama-vocab.cpp, tools/mtmd/clip.cpp) and is measured by `make bench-apply`.
"""
