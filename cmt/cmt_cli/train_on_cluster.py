"""`cmt train --kubernetes`: the same training in the pods of a Job; its checkpoint comes here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmt_cli.checkpoint import fetch
from cmt_cli.on_cluster import Place
from cmt_pipeline.constants import STORE_VARIABLE

if TYPE_CHECKING:
    pass

DEFAULT_MANIFESTS = Path("k8s/training")
FOLLOW_TICK_S = 2

TrainOnClusterOption = Annotated[bool, typer.Option("--kubernetes", help="Train in the pods of a cluster's Job.")]
ProcessesOption = Annotated[
    int | None, typer.Option(help="Pods of the Job, a process each; the manifests' own by default.", show_default=False)
]
TrainManifestsOption = Annotated[
    Path, typer.Option(help="Folder of the Job's manifests, rendered with kubectl, or a file of rendered YAML.")
]
TrainStoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar=STORE_VARIABLE,
        help="URL of the store of checkpoints; with --kubernetes by default the manifests' own.",
        show_default=False,
    ),
]
#: Parameters of `cmt train` that aren't the pods' business, or that the request has beside its options.
OURS = frozenset(
    {"data", "out", "state", "resume", "push", "store", "kubernetes", "processes", "manifests", "context"}
    | {"namespace", "ready_timeout_s"}
)


def options_given(typed: typer.Context) -> list[str]:
    """The options of the command line that the pods' `cmt train` is to have, as `--name=value`."""
    found = []
    for parameter in typed.command.params:
        name = parameter.name or ""
        if name in OURS or _source(typed, name) != "COMMANDLINE":
            continue
        found += _words(parameter.opts[0], typed.params[name])
    return found


def train_on_cluster(
    place: Place,
    manifests: Path,
    out: Path,
    data: Path | None,
    options: Sequence[str],
    processes: int | None,
    store: str | None,
) -> None:
    """Submits and follows the Job, then fetches its checkpoint into `out`."""
    from cmt_cli.show import console
    from cmt_release.checkpoints import checked_name

    if out.exists():
        raise ValueError(f"{out} exists; name a new folder")
    name, cluster = checked_name(out.name), place.cluster()
    from cmt_rollout.kubernetes.overlays import read_overlay
    from cmt_rollout.kubernetes.training_job import TrainingRequest, store_of, train_on

    items = read_overlay(manifests)
    request = TrainingRequest(name, str(data) if data else None, options, processes)
    reached = store or store_of(items)
    timing = replace(place.timing(), tick_s=FOLLOW_TICK_S)
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    try:
        train_on(cluster, items, request, timing, say)
    except KeyboardInterrupt:
        say("what runs on the cluster goes on; the same command follows it")
        raise
    fetch(reached, name, out)


def _source(typed: typer.Context, name: str) -> str:
    """Where a parameter's value comes from; typer has a click of its own, whose names are click's."""
    source = typed.get_parameter_source(name)
    return "" if source is None else source.name


def _words(option: str, value: Any) -> list[str]:
    """An option as words of a command line."""
    if value is True:
        return [option]
    values = value if isinstance(value, (list, tuple)) else [value]
    return [f"{option}={each}" for each in values]
