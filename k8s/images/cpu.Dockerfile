# syntax=docker/dockerfile:1
# Serves OpenVINO releases, without a GPU, on the official Triton image: the Triton of the wheel nvidia-pytriton has
# published vulnerabilities and is for one machine alone. From the repository's root:
#   docker build --file k8s/images/cpu.Dockerfile --tag cmt-triton-cpu:0.1.0 .
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:26.09-py3
# hadolint ignore=DL3006
FROM ${TRITON_IMAGE}

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

# Stores in S3 and Google Cloud Storage, since an init container with this image pulls the release.
# hadolint ignore=DL3013
RUN PIP_BREAK_SYSTEM_PACKAGES=1 pip install --no-cache-dir ".[cpu,s3,gs,kubernetes]" \
    && rm -rf build \
    && useradd --uid 10001 --user-group --no-create-home cmt

USER 10001:10001
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
ENTRYPOINT ["cmt"]
