"""A training on the cluster: the manifests of `k8s/training` as somebody asked for them, applied and followed.

Nothing here lasts: whoever asks for the same training again follows the one that runs, and finds the one that is done.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cmt_pipeline.constants import STORE_VARIABLE
from cmt_rollout.errors import ClusterError, Stuck, TrainingFailed
from cmt_rollout.kubernetes.cluster import Cluster
from cmt_rollout.kubernetes.job_pods import JobPods
from cmt_rollout.kubernetes.layout import ClusterOptions, Object
from cmt_rollout.kubernetes.overlays import in_order

MANAGER = "cmt-train"
WORLD_SIZE = "WORLD_SIZE"  # by which processes know how many they are
VERB, PAIR = "train", "--pair"  # whose data sets stand in place of one
#: Annotation of the Job: SHA-256 of what was asked for.
ASKED = "cmt/asked"
GONE_S = 120.0  # that a finished Job's pods may take to leave
POLL_S = 0.2


@dataclass(frozen=True)
class TrainingRequest:
    """What to train, instead of what the manifests say.

    name: of the checkpoint, the last part of the Job's --out; data: path of the data set in the pods; options: of
    `cmt train`, such as `--epochs=12` or `--shard`; processes: one pod each.
    """

    name: str
    data: str | None = None
    options: Sequence[str] = ()
    processes: int | None = None

    def __post_init__(self) -> None:
        if self.processes is not None and self.processes < 1:
            raise ValueError(f"processes: got {self.processes}; expected 1 or more")


def requested(items: Sequence[Object], request: TrainingRequest) -> tuple[list[Object], Object]:
    """The objects with the request put into their training Job, and that Job. ValueError where there is none."""
    changed = copy.deepcopy(list(items))
    jobs = [item for item in changed if item["kind"] == "Job" and _trains(item)]
    if len(jobs) != 1:
        raise ValueError(
            f"the manifests hold {len(jobs)} Jobs whose container has the word `{VERB}` among its args; expected one, "
            "as in k8s/training"
        )
    (job,) = jobs
    spec = job["spec"]
    if request.processes is not None:
        spec["completions"] = spec["parallelism"] = request.processes
    container = _container(job)
    container["args"] = _arguments(container["args"], request)
    for variable in container.get("env", ()):
        if variable["name"] == WORLD_SIZE:
            variable["value"] = str(spec.get("completions", 1))
    asked = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
    job["metadata"].setdefault("annotations", {})[ASKED] = asked
    return in_order(changed), job


def store_of(items: Sequence[Object]) -> str:
    """The store that the manifests' pods send checkpoints to. ValueError where they name none."""
    found = [
        item["data"][STORE_VARIABLE] for item in items if item["kind"] == "ConfigMap" and STORE_VARIABLE in item["data"]
    ]
    if len(set(found)) != 1:
        raise ValueError(
            f"the manifests' ConfigMaps name {len(found)} stores ({STORE_VARIABLE}); name one with --store"
        )
    return str(found[0])


def train_on(
    cluster: Cluster,
    items: Sequence[Object],
    request: TrainingRequest,
    timing: ClusterOptions,
    say: Callable[[str], None],
) -> None:
    """The training is done, and its checkpoint where its Job sent it. Raises TrainingFailed, Stuck, ClusterError."""
    objects, job = requested(items, request)
    if wrong := sorted(
        {item["metadata"].get("namespace", cluster.namespace) for item in objects} - {cluster.namespace}
    ):
        raise ValueError(
            f"the manifests are for the namespace {', '.join(wrong)}; --namespace is {cluster.namespace}. "
            "Give the same, or set `namespace:` in a kustomization of your own"
        )
    name = job["metadata"]["name"]
    if _is_new(cluster, job, say):
        for dry_run in (True, False):
            for item in objects:
                _apply(cluster, item, timing, dry_run=dry_run)
        say(f"Job {name} submitted: {job['spec'].get('completions', 1)} pods")
    follow(cluster, name, timing, say)


def follow(cluster: Cluster, name: str, timing: ClusterOptions, say: Callable[[str], None]) -> None:
    """Tells what becomes of a Job's pods, and what its first one logs, until the Job is complete."""
    pods = JobPods(cluster, name, say)
    deadline = time.monotonic() + timing.ready_timeout_s
    for job in cluster.follow(cluster.path("jobs", group="batch/v1"), name, timing.tick_s):
        all_started = pods.look(job)
        ended = ended_of(job)
        if ended.get("type") == "Complete":
            return
        if ended.get("type") == "Failed":
            reason = f"{ended.get('reason', 'no reason given')}: {ended.get('message', '')}"
            raise TrainingFailed(f"Job {name} failed ({reason}){pods.last_fault()}")
        if all_started or job["spec"].get("suspend"):
            deadline = time.monotonic() + timing.ready_timeout_s
        elif time.monotonic() > deadline:
            raise Stuck(
                f"Job {name}: not all of its pods have started for {timing.ready_timeout_s:g} s{pods.last_fault()}. "
                "It goes on waiting; the same command follows it"
            )


def ended_of(job: Object) -> Object:
    """The condition that says how a Job ended; empty while it runs."""
    conditions = job.get("status", {}).get("conditions") or ()
    found: Object = next((c for c in conditions if c["type"] in ("Complete", "Failed") and c["status"] == "True"), {})
    return found


def _is_new(cluster: Cluster, job: Object, say: Callable[[str], None]) -> bool:
    """Whether it has to be submitted; a Job that ended otherwise or as another one is taken away first.

    ClusterError while another training runs.
    """
    path, name = cluster.path_of(job), job["metadata"]["name"]
    there = cluster.find(path)
    if there is None:
        return True
    same = there["metadata"].get("annotations", {}).get(ASKED) == job["metadata"]["annotations"][ASKED]
    ended = ended_of(there).get("type")
    if same and ended != "Failed":
        say(f"Job {name} is there already, {'complete' if ended else 'under way'}: submitted {_when(there)}")
        return False
    if not ended:
        raise ClusterError(
            f"got another training than the one that Job {name} runs since {_when(there)}; wait for that, or end it "
            f"with `kubectl delete job --namespace {cluster.namespace} {name}`"
        )
    say(f"Job {name} of {_when(there)} {'failed' if ended == 'Failed' else 'is complete'}: taking its place")
    cluster.request("DELETE", path, query=[("propagationPolicy", "Foreground")])
    deadline = time.monotonic() + GONE_S
    while cluster.find(path) is not None:
        if time.monotonic() > deadline:
            raise Stuck(f"Job {name} was deleted and isn't gone after {GONE_S:g} s; a finalizer holds it, or its pods")
        time.sleep(POLL_S)
    return True


def _apply(cluster: Cluster, item: Object, timing: ClusterOptions, *, dry_run: bool) -> None:
    try:
        path = cluster.path_of(item)
        cluster.apply(path, item, MANAGER, dry_run=dry_run, force_conflicts=timing.force_conflicts)
    except ClusterError as error:
        raise ClusterError(f"{item['kind']} {item['metadata']['name']}: {error}", error.status) from error


def _arguments(words: Sequence[str], request: TrainingRequest) -> list[str]:
    """A container's args with the request in place of what they said; options are written `--name=value` there."""
    at = words.index(VERB) + 1
    asked = set(map(_option, request.options))
    own = [_named(word, request.name) for word in words[at:] if word.startswith("-") and _option(word) not in asked]
    data = [request.data] if request.data else [word for word in words[at:] if not word.startswith("-")]
    return [*words[:at], *([] if PAIR in asked else data), *own, *request.options]


def _option(word: str) -> str:
    return word.partition("=")[0]


def _named(word: str, name: str) -> str:
    """--out with another last part; any other word as it is."""
    return f"{word.rpartition('/')[0]}/{name}" if _option(word) == "--out" else word


def _trains(job: Object) -> bool:
    return any(VERB in container.get("args", ()) for container in job["spec"]["template"]["spec"]["containers"])


def _container(job: Object) -> Object:
    containers = job["spec"]["template"]["spec"]["containers"]
    found: Object = next(container for container in containers if VERB in container.get("args", ()))
    return found


def _when(job: Object) -> str:
    return str(job["metadata"].get("creationTimestamp", "an unknown time"))
