"""Options and connections of the verbs that work on a Kubernetes cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cmt_rollout.kubernetes.cluster import Cluster
    from cmt_rollout.kubernetes.layout import ClusterOptions
    from cmt_rollout.kubernetes.target import KubernetesTarget

KubernetesOption = Annotated[
    bool, typer.Option("--kubernetes", help="Work on the pods of a cluster (see `cmt deploy`) instead of a server.")
]
ContextOption = Annotated[
    str | None,
    typer.Option(help="Context of the kubeconfig; by default the current one, or the cluster of the pod this runs in."),
]
NamespaceOption = Annotated[str, typer.Option(help="Namespace of the cluster.")]
ReadyOption = Annotated[float, typer.Option(help="Seconds that pods may take to become ready.")]
ForceOption = Annotated[bool, typer.Option("--force-conflicts", help="Take over fields that other managers own.")]
DEFAULT_NAMESPACE = "cmt"
DEFAULT_READY_S = 900.0


@dataclass(frozen=True)
class Place:
    """Where the pods are. store: URL that they pull releases from, looked into beforehand if it is given."""

    context: str | None
    namespace: str
    ready_timeout_s: float = DEFAULT_READY_S
    force_conflicts: bool = False
    store: str | None = None

    def timing(self, canary_share: float = 0.0) -> ClusterOptions:
        from cmt_rollout.kubernetes.layout import ClusterOptions

        return ClusterOptions(
            canary_share=canary_share, ready_timeout_s=self.ready_timeout_s, force_conflicts=self.force_conflicts
        )

    def cluster(self) -> Cluster:
        """ClusterError where there is none to go to."""
        from cmt_rollout.errors import ClusterError

        try:
            from cmt_rollout.kubernetes.cluster import connect
        except ModuleNotFoundError as error:
            raise ClusterError(f"{error.name} isn't installed; pip install 'cmt-triton[kubernetes]'") from error
        return connect(self.context, self.namespace)


@contextlib.contextmanager
def kubernetes_target(
    place: Place, releases: Path, canary_share: float, say: Callable[[str], None]
) -> Iterator[list[KubernetesTarget]]:
    """The pods of a namespace as the one target of an upgrade. releases: a store on this machine."""
    cluster = place.cluster()
    from cmt_release.release import open_release
    from cmt_release.store import open_store
    from cmt_rollout.kubernetes.cluster import in_cluster
    from cmt_rollout.kubernetes.port_forward import DirectConnector, PortForwardConnector
    from cmt_rollout.kubernetes.target import KubernetesTarget

    target = KubernetesTarget(
        cluster,
        DirectConnector() if in_cluster() else PortForwardConnector(cluster),
        place.timing(canary_share),
        in_store=open_store(place.store).show if place.store else None,
        fetch=partial(open_release, releases),
        say=say,
    )
    try:
        yield [target]
    finally:
        target.close()
