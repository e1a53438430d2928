# syntax=docker/dockerfile:1
# The `dse` command with everything for shared studies.
#
#   docker build -t dse .                             # trains on the CPU
#   docker build -t dse:cuda --build-arg TORCH=cu128 . # trains on NVIDIA GPUs
FROM python:3.12-slim

# PyTorch's name of the variant: cpu, or a CUDA version such as cu128. The wheels bring CUDA along;
# the host needs its driver and the NVIDIA container toolkit.
ARG TORCH=cpu
# Optional parts; README names them.
ARG EXTRAS=artifacts,browse,firmware,postgresql,tflite

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
WORKDIR /opt/dse
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY dse ./dse
RUN version=$(sed -n 's/^torch==//p' constraints.txt) \
    && pip install --index-url "https://download.pytorch.org/whl/${TORCH}" "torch==${version}" \
    && pip install -c constraints.txt ".[${EXTRAS}]"

# Not the superuser; studies and the cache are volumes.
RUN useradd --create-home --uid 10001 dse && mkdir -p /studies /cache && chown dse /studies /cache
USER dse
ENV DSE_CACHE=/cache
WORKDIR /studies
STOPSIGNAL SIGTERM
ENTRYPOINT ["dse"]
CMD ["--help"]
