"""`cmt deploy`: manifests to a Kubernetes cluster, tried before they are applied, until the pods are available."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmt_cli.on_cluster import (
    DEFAULT_NAMESPACE,
    DEFAULT_READY_S,
    ContextOption,
    ForceOption,
    NamespaceOption,
    Place,
    ReadyOption,
)


def deploy(
    manifests: Annotated[
        Path, typer.Argument(help="Folder of an overlay, rendered with kubectl, or a file of rendered YAML.")
    ] = Path("k8s/overlays/cpu"),
    release: Annotated[
        int | None, typer.Option(help="Release number where none is live yet; by default the manifests' own.")
    ] = None,
    context: ContextOption = None,
    namespace: NamespaceOption = DEFAULT_NAMESPACE,
    override: Annotated[
        Path | None, typer.Option(help="YAML to merge into the pod templates, such as another image.")
    ] = None,
    ready_timeout_s: ReadyOption = DEFAULT_READY_S,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only ask the API server whether it would accept everything.")
    ] = False,
    force_conflicts: ForceOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line instead of text.")] = False,
) -> None:
    """Sets up a Kubernetes cluster, or brings it up to date.

    The live release stays, and nothing is deleted.

    Example: [bold]cmt deploy k8s/overlays/cpu --release 1 --dry-run[/]
    """
    from cmt_cli.upgrade import reporting

    place = Place(context, namespace, ready_timeout_s, force_conflicts)
    cluster = place.cluster()
    from cmt_rollout.kubernetes.deploy import DeployOptions
    from cmt_rollout.kubernetes.deploy import deploy as run
    from cmt_rollout.kubernetes.overlays import read_overlay, read_patch

    options = DeployOptions(release, read_patch(override) if override else {}, dry_run)
    items = read_overlay(manifests)
    with reporting(as_json) as report:
        run(cluster, items, options, place.timing(), report)
