# syntax=docker/dockerfile:1
# Serves OpenVINO releases: Triton from the wheel nvidia-pytriton, no GPU. From the repository's root:
#   docker build --file k8s/images/cpu.Dockerfile --tag cmt-triton-cpu:0.1.0 .
FROM python:3.11-slim-bookworm

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
COPY ensembles ensembles

# Stores in S3 and Google Cloud Storage, since an init container with this image pulls the release.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[serve,s3,gs,kubernetes]" \
    && useradd --uid 10001 --user-group --no-create-home cmt

USER 10001:10001
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
ENTRYPOINT ["cmt"]
