# One image for the server, the worker and the migrations; docker-compose.yml runs all three.
FROM python:3.11-slim

# The CPU build of the pinned torch: a tenth of the CUDA build's size. A GPU worker sets another index.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

ENV PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    HF_HUB_OFFLINE=1

WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY engines engines
COPY lop lop
COPY mcts mcts
COPY migrations migrations
COPY policy_model policy_model
COPY pruning pruning
COPY recovery recovery
COPY reference reference
COPY service service
COPY storage storage
COPY values values
RUN pip install --extra-index-url "$TORCH_INDEX" -c constraints.txt '.[all,otel,quantise,recover,store]' \
    && useradd --create-home --uid 10001 lop \
    && mkdir /home/lop/data /home/lop/output /home/lop/second-order \
    && chown lop:lop /home/lop/*

# The default SQLite database is a file of the working directory.
WORKDIR /home/lop
USER lop
EXPOSE 8000

HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ.get('LOP_PORT', '8000')}/readyz\", timeout=4)"]

# Inside a container the loopback address reaches nobody. Any other one takes a key: `lop key create` before the start.
CMD ["lop", "serve", "--host", "0.0.0.0"]
