"""`python -m cmt_training.binding`: the ladder on the family, into binding.json and binding.png."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import asdict
from pathlib import Path

from cmt_release.typed_json import typed
from cmt_training.binding.family import KINDS
from cmt_training.binding.figure import figure_of
from cmt_training.binding.fit import Budget, Task
from cmt_training.binding.ladder import MODELS
from cmt_training.binding.results import Results
from cmt_training.binding.run import Trained, run
from cmt_training.conditions import conditions
from cmt_training.processes import processes

COMMAND = "python -m cmt_training.binding"
WORK = Path(".cmt/binding/trained.jsonl")
RESULTS = Path(__file__).parents[2] / "results"
LENGTHS = {"binding": (4, 8, 16, 32), "coincidence": (4, 8)}
CONTROL_LENGTHS = (4,)


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of binding.json and binding.png")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--lengths", nargs="+", type=int, help="of the kinds, growing")
    parser.add_argument("--seeds", type=int, default=3, help="how many, two or more")
    parser.add_argument("--steps", type=int, default=Budget.steps, help="of every training for each length")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time, each on one core")
    parser.add_argument("--work", type=Path, default=WORK, help="file of what is trained; that isn't done again")
    given = parser.parse_args()
    budget, seeds = Budget(steps=given.steps), tuple(range(given.seeds))
    tasks = [Task(kind, tuple(given.lengths or LENGTHS.get(kind, CONTROL_LENGTHS))) for kind in given.kinds]
    jobs = [(task, model) for task in tasks for model in reversed(MODELS)]
    trained = _trained(jobs, budget, seeds, given.workers, given.work)
    told = conditions(command=COMMAND, seeds=list(seeds), budget=asdict(budget), trained_on=_machines(trained))
    results = Results.of(trained, told)
    (given.out / "binding.json").write_text(results.to_json())
    (given.out / "binding.png").write_bytes(figure_of(results))
    print(results.markdown())


def _trained(
    jobs: Sequence[tuple[Task, str]], budget: Budget, seeds: Sequence[int], workers: int, work: Path
) -> list[Trained]:
    """What each job came to, and what else of the same recipe is in the file: a line for each."""
    work.parent.mkdir(parents=True, exist_ok=True)
    work.touch()
    recipe = json.dumps([asdict(budget), list(seeds)])
    lines = [json.loads(line) for line in work.read_text().splitlines()]
    found = [typed(Trained, line["trained"], str(work)) for line in lines if line["recipe"] == recipe]
    known = {(each.task, each.model) for each in found}
    left = [job for job in jobs if job not in known]
    left.sort(key=lambda job: -sum(job[0].lengths))  # the longest first, so that none is left alone in the end
    with processes(workers) as pool:
        futures = [pool.submit(run, *job, budget, seeds) for job in left]
        for count, done in enumerate(as_completed(futures), 1):
            found.append(each := done.result())
            with work.open("a") as file:
                file.write(json.dumps({"recipe": recipe, "trained": asdict(each)}) + "\n")
            print(f"{count} of {len(left)}: {each.task.kind}, {[test.accuracies for test in each.reached]}", flush=True)
    return found


def _machines(trained: Sequence[Trained]) -> list[str]:
    return sorted({each.machine for each in trained})


if __name__ == "__main__":
    main()
