# syntax=docker/dockerfile:1
# TensorRT plans in the official Triton image. From the repository's root:
#   docker build --file k8s/images/gpu.Dockerfile --target serve --tag cmt-triton-gpu:0.1.0 .
#   docker build --file k8s/images/gpu.Dockerfile --target check --tag cmt-triton-gpu-check:0.1.0 .
# 26.09 is Triton 2.73 (NVIDIA's release notes of 26.09; tritonclient 2.73, with whose model_config.proto the tests check
# every configuration). Its TensorRT isn't written here: `check` asks the library in the image, so that what builds plans
# and what runs them are of one version whatever TRITON_IMAGE is.
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:26.09-py3

# What k8s/overlays/gpu runs: Triton's own tensorrt backend runs the plans, its python backend the stages before them, on
# the image's own Python.
# hadolint ignore=DL3006
FROM ${TRITON_IMAGE} AS serve
WORKDIR /opt/cmt
COPY pyproject.toml README.md LICENSE ./
COPY cmt cmt
COPY k8s/cmt_rollout k8s/cmt_rollout
COPY perf perf
COPY training training
COPY client client
COPY server server
COPY export export
COPY releases releases
COPY engines engines
COPY sessions sessions
COPY ensembles ensembles

# hadolint ignore=DL3013
RUN PIP_BREAK_SYSTEM_PACKAGES=1 pip install --no-cache-dir ".[preprocess,s3,gs,kubernetes]" \
    && rm -rf build \
    && useradd --uid 10001 --user-group --no-create-home cmt

USER 10001:10001
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
ENTRYPOINT ["cmt"]

# What `make check-gpu` runs, and what builds plans for `serve`. TensorRT's Python package fetches its libraries from
# NVIDIA's index.
FROM serve AS check
ARG PIP_EXTRA_INDEX_URL=https://pypi.nvidia.com
USER 0:0
# hadolint ignore=DL3013
RUN version="$(python3 -m cmt_engine.tensorrt_library)" \
    && PIP_BREAK_SYSTEM_PACKAGES=1 pip install --no-cache-dir ".[export,bench]" "tensorrt==${version}" \
    && rm -rf build \
    && install --directory --owner 10001 --group 10001 /check

USER 10001:10001
WORKDIR /check
ENV HOME=/tmp
ENTRYPOINT ["python3", "-m", "cmt_perf.gpu.check", "--state", "/check/state", "--out", "/check/gpu-check.json"]
