# syntax=docker/dockerfile:1
# Builds TensorRT releases on a GPU node (k8s/components/engine-build). TENSORRT_VERSION is that of the Triton image that
# will run them (`python3 -c "import tensorrt; print(tensorrt.__version__)"` or `trtexec` in it say which): a plan loads
# in no other. Package indexes that `tensorrt` needs beside the usual one go into PIP_EXTRA_INDEX_URL. From the
# repository's root:
#   docker build --file k8s/images/export.Dockerfile --build-arg TENSORRT_VERSION=... --tag cmt-triton-export:0.1.0 .
FROM python:3.11-slim-bookworm
ARG TENSORRT_VERSION
ARG PIP_EXTRA_INDEX_URL=

WORKDIR /opt/cmt
COPY pyproject.toml README.md LICENSE ./
COPY cmt cmt
COPY k8s/cmt_rollout k8s/cmt_rollout
COPY training training
COPY client client
COPY server server
COPY export export
COPY releases releases
COPY engines engines
COPY sessions sessions
COPY ensembles ensembles

# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[export,s3,gs]" "tensorrt==${TENSORRT_VERSION}" \
    && rm -rf build \
    && useradd --uid 10001 --user-group --no-create-home cmt

USER 10001:10001
ENTRYPOINT ["cmt"]
