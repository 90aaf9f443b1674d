"""Export: checkpoint -> ONNX -> engines -> release, with the parity of every step."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import cmt_engine
import cmt_export
import cmt_pipeline
from cmt_engine.engine import ENGINES, Build, EngineSidecar, Precision, Runner, Traceable, keep, open_engine
from cmt_export.family import FAMILIES
from cmt_export.sources import weights_digest
from cmt_pipeline.constants import ADAPTER_FILE, LABELS_FILE
from cmt_pipeline.faces import FACE_MODES, FaceMode
from cmt_pipeline.labels import DEFAULT_LABEL_SET, labels_of
from cmt_pipeline.modality import MODALITIES, SUBSETS, Modality
from cmt_pipeline.preprocess import CONFIG_FILE, TOKENIZER_FILE, fingerprint, library_versions, make_preprocessors
from cmt_pipeline.presets import preset_of
from cmt_pipeline.progress import Progress, no_progress
from cmt_pipeline.reference import adapter
from cmt_pipeline.release_info import ReleaseInfo
from cmt_pipeline.stages import COMPILED_STAGES, FUSE, STAGES, Stage, sized
from cmt_pipeline.tensors import Arrays
from cmt_release.locks import locked, remove_unlocked
from cmt_release.manifest import PublishedWeights
from cmt_release.release import (
    GOLDEN_FOLDER,
    STAGES_FOLDER,
    GoldenAnswer,
    Release,
    draft_folder,
    find_release,
    release_from_engines,
)

if TYPE_CHECKING:  # torch must not load with this module
    from cmt_export.checkpoint import Checkpoint
    from cmt_export.onnx_folder import OnnxFolder
    from cmt_export.parity import ParityRow, References
    from cmt_export.samples import Batch


PARITY_BATCHES = (1, 2, 3, 1, 2, 1, 2, 1, 1)  # one for each audio bucket
CALIBRATION_ITEMS = 32
CORES_A_COMPILER = 4  # that PyTorch's compiler keeps busy


@dataclass(frozen=True)
class ExportOptions:
    """What to export, and how. checkpoint: a folder; without one the preset's own, untrained, weights are made. onnx: a
    folder of stages that were made elsewhere (`cmt_export.onnx_folder`), in the place of preset, checkpoint and labels.
    merged_tokens: patches that each layer of the image encoder merges away; None: as its checkpoint says.
    """

    preset: str = "mini"
    checkpoint: Path | None = None
    checkpoint_sha256: str | None = None
    random_weights: bool = False
    label_set: str = DEFAULT_LABEL_SET
    engine: str = "openvino"
    precision: Precision = "fp32"
    calibration: Path | None = None
    seed: int = 0
    onnx: Path | None = None
    face: FaceMode | None = None
    merged_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.onnx is not None and (self.checkpoint or self.random_weights):
            raise ValueError("got a folder of ONNX stages and a checkpoint or random weights; expected one of them")
        if self.onnx is not None and self.merged_tokens is not None:
            raise ValueError("merged_tokens: got ONNX stages, whose layers are what they are; expected a checkpoint")
        preset_of(self.preset)
        labels_of(self.label_set)
        if self.checkpoint_sha256 is not None and self.checkpoint is None:
            raise ValueError("got checkpoint_sha256 without a checkpoint; name the folder that it is of")
        ENGINES[self.engine].tolerance(self.precision)
        if self.face not in (None, *FACE_MODES):
            raise ValueError(f"face: got {self.face!r}; expected one of {', '.join(FACE_MODES)}")


@dataclass(frozen=True)
class GoldenSample:
    """The files that golden answers are made for: bytes by modality. Without one of each that the model reads there
    are no golden answers."""

    files: Mapping[Modality, bytes] = field(default_factory=dict)

    def of(self, modalities: Sequence[Modality]) -> dict[Modality, bytes]:
        """The files of these modalities; none where one is missing."""
        return {m: self.files[m] for m in modalities} if set(modalities) <= set(self.files) else {}


def export(options: ExportOptions, store: Path, golden: GoldenSample, progress: Progress) -> tuple[Release, bool]:
    """The release of these options, and whether it was built. Raises ParityError, EngineError and CheckpointError."""
    recipe = recipe_of(options, golden)
    progress("looking for a release of the same recipe", 0.0)
    known = find_release(store, recipe)
    if known is not None:
        return known, False
    with _fresh_cache(store / ".onnx", _onnx_key(options)) as graphs:
        return _Build(options, store, graphs, golden, progress).run(recipe), True


def recipe_of(options: ExportOptions, golden: GoldenSample) -> str:
    """SHA-256 over options, checkpoint and calibration files, our own source and the versions it runs with."""
    digest = hashlib.sha256(_onnx_key(options).encode())
    digest.update(json.dumps(asdict(options), default=str, sort_keys=True).encode())
    engine = ENGINES[options.engine]
    versions = [_versions(options), engine.versions(), library_versions(), engine.target()]
    digest.update(json.dumps(versions, sort_keys=True).encode())
    for path in ENGINES.sources():
        digest.update(path.read_bytes())
    for modality in MODALITIES:
        digest.update(golden.files.get(modality, b""))
    for path in sorted(options.calibration.rglob("*")) if options.calibration else ():
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _onnx_key(options: ExportOptions) -> str:
    """SHA-256 over what the ONNX files depend on: the checkpoint, our source, the exporter's versions."""
    preset = preset_of(options.preset)
    given = (options.checkpoint, options.random_weights, options.label_set, options.seed, options.onnx)
    model = (preset, *given, options.merged_tokens)
    digest = hashlib.sha256(repr((model, sorted(_versions(options).items()))).encode())
    for encoder in preset.encoders.values():
        if options.checkpoint is None and encoder.pretrained and Path(encoder.pretrained).is_dir():
            digest.update(weights_digest(Path(encoder.pretrained)).encode())
    folders = [Path(str(package.__file__)).parent for package in (cmt_engine, cmt_export, cmt_pipeline)]
    files = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    for folder in filter(None, (options.checkpoint, options.onnx)):
        files += sorted(path for path in folder.rglob("*") if path.is_file())
    for path in (*files, *FAMILIES.sources()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


class _Build:
    """One export; its methods are the steps in order."""

    def __init__(
        self, options: ExportOptions, store: Path, graphs: Path, golden: GoldenSample, progress: Progress
    ) -> None:
        self.options, self.store, self.graphs = options, store, graphs
        self.golden, self.progress = golden, progress
        self.engine = ENGINES[options.engine]
        self.steps = 2 + 2 * len(COMPILED_STAGES)
        self.done = 0
        self._step("checking the graphs" if options.onnx else "loading the checkpoint")
        self.source = self._source()
        config, face = self.source.config.preprocess, self.options.face
        tokens = self.source.model.sizes.image[0]
        self.preprocess = replace(config, face=face or config.face, image_tokens=tokens)
        self.preprocessors = make_preprocessors(self.preprocess, self.source.tokenizer)

    @property
    def truth(self) -> str:
        return "the given graphs in ONNX Runtime" if self.options.onnx else "PyTorch fp32"

    def _source(self) -> Checkpoint | OnnxFolder:
        options = self.options
        if options.onnx is not None:
            from cmt_export.onnx_folder import open_onnx_folder

            return open_onnx_folder(options.onnx, self.graphs, PARITY_BATCHES)
        from cmt_export.checkpoint import checkpoint_from_preset, load_checkpoint, merging_tokens

        if options.checkpoint is not None:
            found = load_checkpoint(options.checkpoint, options.checkpoint_sha256)
        else:
            found = checkpoint_from_preset(
                options.preset, options.label_set, random_weights=options.random_weights, seed=options.seed
            )
        return found if options.merged_tokens is None else merging_tokens(found, options.merged_tokens)

    def run(self, recipe: str) -> Release:
        from cmt_export.parity import ParityError, pipeline_parity
        from cmt_export.samples import batches

        compared = batches(self.preprocessors, PARITY_BATCHES)
        engine, precision, config = self.engine, self.options.precision, self.source.config
        labels = config.labels
        rows: list[ParityRow] = []
        runners: dict[str, Runner] = {}
        with draft_folder(self.store) as draft:
            self._write_sources(draft, labels)
            stages = [sized(stage, self.source.model.sizes) for stage in COMPILED_STAGES]
            if engine.starts_from == "pytorch":
                self._compile_side_by_side(stages)
            for stage in stages:
                self._engine(stage, draft / STAGES_FOLDER / stage.name, compared, rows, runners)
            self._step("comparing whole pipelines")
            if runners:
                rows += pipeline_parity(runners, engine, self.source.model, precision, compared)
            if not all(row.passed for row in rows):
                raise ParityError(rows, self.truth)
            return release_from_engines(
                self.store,
                draft,
                self._info(),
                features=self.source.model.sizes,
                parity=[asdict(row) for row in rows],
                golden=self._golden_answers(labels),
                golden_tolerance=engine.tolerance(precision).probability,
                preprocess=fingerprint(self.preprocess, self.source.tokenizer),
                versions=_versions(self.options) | engine.versions(),
                recipe=recipe,
                source="onnx" if self.options.onnx else "pytorch",
                published=self._published(),
            )

    def _published(self) -> list[PublishedWeights]:
        """The weights in it that somebody else published."""
        found = []
        encoders = getattr(self.source.config, "encoders", {})  # graphs made elsewhere say nothing of theirs
        for m, encoder in encoders.items():
            if encoder.weights_from is not None:
                licence = encoder.classifier.licence if encoder.classifier else ""
                found.append(PublishedWeights(m, encoder.weights_from, encoder.weights_sha256 or "", licence))
        return found

    def _info(self) -> ReleaseInfo:
        """Without a number, which the store gives."""
        config, model = self.source.config, self.source.model
        return ReleaseInfo(
            release=0,
            label_set=config.label_set,
            labels=config.labels,
            preset=config.preset,
            engine=self.engine.name,
            precision=self.options.precision,
            trained=config.trained,
            modalities=model.modalities,
            valence_arousal=model.reads_valence_arousal,
        )

    def _write_sources(self, draft: Path, labels: tuple[str, ...]) -> None:
        """Every stage's folder with all that isn't compiled, and the golden files."""
        for stage in STAGES.values():
            folder = draft / STAGES_FOLDER / stage.name
            folder.mkdir(parents=True)
            (folder / ADAPTER_FILE).write_text(adapter(stage))
            if not stage.compiled:
                (folder / CONFIG_FILE).write_text(self.preprocess.to_json())
            if stage.kind == "preprocess":
                (folder / TOKENIZER_FILE).write_bytes(self.source.tokenizer.read_bytes())
        (draft / STAGES_FOLDER / FUSE.name / LABELS_FILE).write_text("\n".join(labels) + "\n")
        for modality, data in self.golden.of(self.source.model.modalities).items():
            (draft / GOLDEN_FOLDER).mkdir(exist_ok=True)
            (draft / GOLDEN_FOLDER / modality).write_bytes(data)

    def _engine(
        self,
        stage: Stage,
        folder: Path,
        compared: Sequence[Batch],
        rows: list[ParityRow],
        runners: dict[str, Runner],
    ) -> None:
        """Compiles a stage into its folder; adds its parity to `rows` and, where this machine runs it, its runner."""
        from cmt_export.parity import references, stage_parity

        expected = references(self.source.model, stage, compared)
        if self.engine.starts_from == "onnx":
            self._compile(stage, self._onnx(stage, expected, rows), folder)
        else:
            self._step(f"{stage.name}: PyTorch as it is")
            self.compile_traced(stage, folder)
        if not self.engine.opens_here():
            return
        runner = runners[stage.name] = open_engine(folder)
        sidecar = EngineSidecar.read(folder)
        rows.append(stage_parity(runner, self.engine, stage, sidecar.precision, expected))
        replace(sidecar, parity=asdict(rows[-1])).write(folder)

    def _onnx(self, stage: Stage, expected: References, rows: list[ParityRow]) -> Path:
        """The stage's graph and its parity row. Graphs are kept beside the releases for the next export."""
        from cmt_export.onnx_completion import MODEL_FILE
        from cmt_export.parity import stage_parity

        self._step(f"{stage.name}: {'ONNX as given' if self.options.onnx else 'PyTorch to ONNX'}")
        folder = self.graphs / stage.name
        path = folder / MODEL_FILE
        if self.options.onnx is not None:
            return path
        if not path.is_file():
            from cmt_export.onnx_from_checkpoint import onnx_from_checkpoint

            draft = folder.with_name(f".{stage.name}-{secrets.token_hex(6)}")
            onnx_from_checkpoint(cast("Checkpoint", self.source).model, stage, draft)
            keep(draft, folder)
        reference = ENGINES["onnxruntime"]
        rows.append(stage_parity(reference.open(path, "fp32", 0), reference, stage, "fp32", expected, name="onnx"))
        return path

    def _compile(self, stage: Stage, onnx: Path, folder: Path) -> None:
        self._step(f"{stage.name}: ONNX to {self.engine.name} {self.options.precision}")
        cache = self.store / f".{self.engine.name}"
        self.engine.build(Build(onnx, stage, folder, self.options.precision, lambda: self._calibration(stage), cache))

    def _compile_side_by_side(self, stages: Sequence[Stage]) -> None:
        """Into the cache, where this machine has cores for several of PyTorch's compiler at once."""
        workers = min(len(stages), len(os.sched_getaffinity(0)) // CORES_A_COMPILER)
        if workers > 1 and not self.options.onnx:
            self.progress(f"{', '.join(stage.name for stage in stages)}: PyTorch to {self.engine.name}", 0.0)
            with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
                compile_one = partial(_compile_into_cache, self.options, self.store, self.graphs)
                list(pool.map(compile_one, [stage.name for stage in stages]))

    def compile_traced(self, stage: Stage, folder: Path) -> None:
        """Of an engine that starts from PyTorch. What it makes is kept beside the graphs, for this model alone."""
        from cmt_export.onnx_from_checkpoint import traceable

        self._step(f"{stage.name}: PyTorch to {self.engine.name} {self.options.precision}")
        source: Path | Callable[[], Traceable] = self.graphs / stage.name / "model.onnx"
        if not self.options.onnx:
            source = partial(traceable, cast("Checkpoint", self.source).model, stage)
        self.engine.build(Build(source, stage, folder, self.options.precision, cache=self.graphs))

    def _calibration(self, stage: Stage) -> list[Arrays]:
        from cmt_export.parity import stage_inputs
        from cmt_export.samples import batches, batches_from_folder

        if self.options.calibration is not None:
            made = batches_from_folder(self.preprocessors, self.options.calibration, 8 * CALIBRATION_ITEMS)
        else:
            made = batches(self.preprocessors, (1,) * CALIBRATION_ITEMS, seed=self.options.seed + 1)
        return list(stage_inputs(self.source.model, stage, made))

    def _golden_answers(self, labels: tuple[str, ...]) -> list[GoldenAnswer]:
        from cmt_export.parity import wired
        from cmt_pipeline.preprocess import collate, is_absent

        model = self.source.model
        ready = {m: self.preprocessors[m](data) for m, data in self.golden.of(model.modalities).items()}
        if is_absent(ready.get("image", {})):
            del ready["image"]
        encoded = {m: model.run_stage(STAGES[f"encode_{m}"], collate(m, [item])) for m, item in ready.items()}
        answers = []
        for subset in (subset for subset in SUBSETS if set(subset) <= set(encoded)):
            answer = model.run_stage(FUSE, wired({m: encoded[m] for m in subset}))
            named = dict(zip(labels, answer["probabilities"][0].tolist(), strict=True))
            valence, arousal = answer["valence_arousal"][0].tolist()
            answers.append(GoldenAnswer(subset, named, valence, arousal))
        return answers

    def _step(self, what: str) -> None:
        self.progress(what, self.done / self.steps)
        self.done += 1


def _compile_into_cache(options: ExportOptions, store: Path, graphs: Path, name: str) -> None:
    """One stage, in a process of its own."""
    build = _Build(options, store, graphs, GoldenSample(), no_progress)
    with tempfile.TemporaryDirectory(prefix=".", dir=graphs) as folder:
        build.compile_traced(sized(STAGES[name], build.source.model.sizes), Path(folder))


@contextlib.contextmanager
def _fresh_cache(root: Path, key: str) -> Iterator[Path]:
    """The cache folder of a key, held; those of other keys that no export holds are removed."""
    remove_unlocked(folder for folder in root.glob("*") if folder.name != key)
    with locked(root / key) as folder:
        yield folder


def _versions(options: ExportOptions) -> dict[str, str]:
    """Of what makes the ONNX files and holds engines against them or PyTorch."""
    makers = () if options.onnx else ("torch", "transformers", "onnxscript")
    return {name: importlib.metadata.version(name) for name in (*makers, "onnx", "numpy", "onnxruntime")}
