# syntax=docker/dockerfile:1
# `cmt gateway`, with a client of Redis: what applications talk to. Neither Triton nor models are in it. From the
# repository's root:
#   docker build --file k8s/images/front-door.Dockerfile --tag cmt-front-door:0.1.0 .
FROM python:3.11-slim-bookworm

WORKDIR /opt/cmt
COPY pyproject.toml README.md LICENSE ./
COPY cmt cmt
COPY gateway gateway
COPY k8s/cmt_rollout k8s/cmt_rollout
COPY training training
COPY client client
COPY sessions sessions
COPY ensembles ensembles

# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[redis]" \
    && rm -rf build \
    && useradd --uid 10001 --user-group --no-create-home cmt

USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["cmt", "gateway"]
