"""Every family of encoders against transformers and on every engine: `PYTHONPATH=tests python -m family_trial` writes
export/results/families.json and .md, or some families only, by their names in `published.ENCODERS`."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from cmt_engine.engine import ENGINES, Build, EngineError, Precision, open_engine
from cmt_engine.tensorrt_build import TensorRtOptions, engine_from_onnx, profile_of
from cmt_engine.tensorrt_fit import misfits
from cmt_engine.typed_onnx import TypedPrecision, onnx_in_precision
from cmt_export.family import FAMILIES
from cmt_export.fusion import CrossModalFusion
from cmt_export.model import CrossModalTransformer
from cmt_export.onnx_from_checkpoint import onnx_from_checkpoint
from cmt_export.parity import References, references, stage_parity
from cmt_export.samples import batches
from cmt_pipeline.modality import Modality
from cmt_pipeline.preprocess import PreprocessConfig, make_preprocessors
from cmt_pipeline.presets import FusionSize
from cmt_pipeline.stages import STAGES, Stage, sized
from cmt_pipeline.tensors import Array
from published import ENCODERS, VOCABULARY, backbone, states_of_sound
from tiny_model import TEXT_ENCODER

RESULTS = Path(__file__).parents[1] / "export" / "results" / "families.json"
#: Tokens after an image's first that are no features.
BESIDE_PATCHES = {"deit": 1, "dinov2, registers": 3}
COMPARED = (2, 1, 2)  # items in each batch
CALIBRATED: dict[Modality, int] = {"image": 5, "audio": 5, "text": 16}  # items; an export takes 32
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")
MODALITY_OF: dict[str, Modality] = {name: FAMILIES[model_type].modality for name, (model_type, _) in ENCODERS.items()}

#: Largest difference of a feature: from transformers' own forward, and of an item in a batch of other lengths (for
#: images: in a batch) from the item alone.
Differences = tuple[float, float]


def encoder_of(name: str) -> Any:
    family = FAMILIES[ENCODERS[name][0]]
    return family.wrap(family.settled(backbone(name))).eval()


def against_transformers(name: str) -> Differences:
    """Raises AssertionError where a mask is wrong."""
    compare = {"image": _of_images, "audio": _of_sounds, "text": _of_texts}[MODALITY_OF[name]]
    with torch.no_grad():
        return compare(name, encoder_of(name), backbone(name), torch.Generator().manual_seed(1))


def _of_images(name: str, encoder: Any, theirs: Any, random: torch.Generator) -> Differences:
    pixels = torch.randn(2, 3, 224, 224, generator=random)
    features, mask = encoder(pixels)
    hidden = theirs(pixels).last_hidden_state
    expected = torch.cat([hidden[:, :1], hidden[:, 1 + BESIDE_PATCHES.get(name, 0) :]], dim=1)
    assert mask.all()
    assert (features.shape[1],) == encoder.tokens
    return _difference(features, encoder.projection(expected)), _difference(features[:1], encoder(pixels[:1])[0])


def _of_sounds(_name: str, encoder: Any, theirs: Any, random: torch.Generator) -> Differences:
    sound = torch.randn(2, 16_000, generator=random)
    lengths = torch.tensor([[9_000], [16_000]])
    sound[0, 9_000:] = 0
    together, mask = encoder(sound, lengths)
    differences = []
    for row, samples in enumerate(lengths[:, 0].tolist()):
        own = sound[row : row + 1, :samples]
        alone, _ = encoder(own, lengths[row : row + 1])
        frames = alone.shape[1]
        assert mask[row].sum() == frames
        expected = encoder.projection(states_of_sound(theirs, own))
        differences.append((_difference(alone, expected), _difference(together[row : row + 1, :frames], alone)))
    return _worst(differences)


def _of_texts(_name: str, encoder: Any, theirs: Any, random: torch.Generator) -> Differences:
    ids = torch.randint(5, VOCABULARY, (2, 128), generator=random)
    mask = torch.ones_like(ids)
    ids[0, 9:], mask[0, 9:] = theirs.config.pad_token_id or 0, 0
    together, told = encoder(ids, mask)
    assert (told == mask).all()
    differences = []
    for row, tokens in enumerate(mask.sum(dim=1).tolist()):
        own = ids[row : row + 1, :tokens]
        alone, _ = encoder(own, torch.ones_like(own))
        expected = encoder.projection(theirs(own).last_hidden_state)
        differences.append((_difference(alone, expected), _difference(together[row : row + 1, :tokens], alone)))
    return _worst(differences)


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _worst(differences: list[Differences]) -> Differences:
    return max(first for first, _ in differences), max(second for _, second in differences)


class Exported:
    """A family's encoder as ONNX, in a folder, with what PyTorch makes of generated files."""

    def __init__(self, name: str, folder: Path) -> None:
        self.modality, self.folder = MODALITY_OF[name], folder
        fusion = CrossModalFusion(FusionSize(layers=1, heads=2, feed_forward_width=16), 7)
        self.model = CrossModalTransformer({self.modality: encoder_of(name)}, fusion).eval()
        self.stage: Stage = STAGES[f"encode_{self.modality}"]
        self.path = onnx_from_checkpoint(self.model, self.stage, folder / "onnx")
        config = PreprocessConfig(vocabulary=VOCABULARY, **FAMILIES[ENCODERS[name][0]].expects)
        self._prepare = make_preprocessors(config, TEXT_ENCODER / "tokenizer.json")
        self.expected: References = references(self.model, self.stage, batches(self._prepare, COMPARED))

    def error(self, engine: str, precision: Precision) -> float:
        """Relative, of the features' root mean square; infinite where a mask differs."""
        folder = self.folder / f"{engine}-{precision}"
        folder.mkdir()
        ENGINES[engine].build(Build(self.path, self.stage, folder, precision, self._calibration))
        return stage_parity(open_engine(folder), ENGINES[engine], self.stage, precision, self.expected).error

    def plan_bytes(self) -> int:
        """Of its plan by TensorRT for RTX in fp16, whose inputs and outputs are the contract's. EngineError."""
        folder = self.folder / "tensorrt"
        folder.mkdir()
        options = TensorRtOptions(flavour="tensorrt_rtx", precision="fp16")
        engine_from_onnx(self.path, sized(self.stage, self.model.sizes), folder, options)
        return (folder / "model.plan").stat().st_size

    def misfits(self, precision: TypedPrecision) -> list[str]:
        """What TensorRT can't take of its graph in a precision, and LayerNorms that are written out."""
        typed = onnx_in_precision(self.path, precision, self.folder / f"{precision}.onnx")
        return misfits(typed, profile_of(sized(self.stage, self.model.sizes))) + norms_in_parts(typed)

    def _calibration(self) -> list[Mapping[str, Array]]:
        made = batches(self._prepare, (1,) * CALIBRATED[self.modality], seed=1)
        return [{spec.name: batch.tensors[spec.name] for spec in self.stage.inputs} for batch in made]


def norms_in_parts(path: Path) -> list[str]:
    """Square roots of a mean and a small number, as of a LayerNorm that isn't one node."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    makers = {output: node for node in nodes for output in node.output}
    roots = [makers.get(node.input[0]) for node in nodes if node.op_type == "Sqrt"]
    summed = [node for node in roots if node is not None and node.op_type == "Add"]
    means = [makers[name] for node in summed for name in node.input if name in makers]
    return [f"{node.name} of a LayerNorm in parts" for node in means if node.op_type == "ReduceMean"]


def measured(name: str) -> dict[str, Any]:
    """One row of the table."""
    transformers, padded = against_transformers(name)
    row: dict[str, Any] = {"family": ENCODERS[name][0], "transformers": transformers, "padded": padded}
    with tempfile.TemporaryDirectory() as folder:
        exported = Exported(name, Path(folder))
        row["onnx"] = exported.error("onnxruntime", "fp32")
        row |= {f"openvino {precision}": exported.error("openvino", precision) for precision in PRECISIONS}
        try:
            row["tensorrt_rtx fp16 bytes"] = exported.plan_bytes()
        except EngineError as error:
            row["tensorrt_rtx fp16 error"] = str(error)
    return row


def tolerances() -> dict[str, float]:
    """What each figure may be at most; those of engines are what an export insists on."""
    openvino, onnx = ENGINES["openvino"], ENGINES["onnxruntime"]
    of_engines = {f"openvino {precision}": openvino.tolerance(precision).relative for precision in PRECISIONS}
    return {"transformers": 1e-4, "padded": 1e-4, "onnx": onnx.tolerance("fp32").relative, **of_engines}


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """In Markdown; what misses its tolerance is bold."""
    limits = tolerances()
    heads = ("encoder", "against transformers", "padded", "ONNX", *(f"OpenVINO {p}" for p in PRECISIONS), "TensorRT")
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join('---' for _ in heads)} |"]
    for name, row in rows.items():
        cells = [f"{row[key]:.0e}" if row[key] <= limits[key] else f"**{row[key]:.0e}**" for key in limits]
        built = "builds" if "tensorrt_rtx fp16 bytes" in row else "**fails**"
        lines.append(f"| `{name}` | {' | '.join(cells)} | {built} |")
    return "\n".join(lines) + "\n"


def write(rows: Mapping[str, Mapping[str, Any]], command: str) -> None:
    from cmt_perf.conditions import conditions

    RESULTS.parent.mkdir(exist_ok=True)
    ordered = {name: rows[name] for name in ENCODERS if name in rows}
    RESULTS.write_text(json.dumps({"conditions": conditions(command=command), "rows": ordered}, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(table(ordered))


def main(names: list[str]) -> None:
    """names: of the encoders to measure, all without any; rows of others stay."""
    rows = json.loads(RESULTS.read_text())["rows"] if names and RESULTS.is_file() else {}
    for name in names or ENCODERS:
        rows[name] = measured(name)
        write(rows, " ".join(["python -m family_trial", *names]))
        print(name, rows[name], flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
