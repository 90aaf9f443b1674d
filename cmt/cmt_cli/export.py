"""`cmt export`: checkpoint -> ONNX -> engines -> release."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from cmt_cli.state import DEFAULT_STATE, State, StateOption

if TYPE_CHECKING:
    from cmt_export.export import ExportOptions, GoldenSample
    from cmt_pipeline.faces import FaceMode
    from cmt_release.release import Release


def export(
    preset: Annotated[str, typer.Option(help="Encoders and sizes: mini, base, or the path of a TOML file.")] = "mini",
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder of a checkpoint; by default the bundled weights of that preset.")
    ] = None,
    onnx: Annotated[
        Path | None,
        typer.Option(help="Folder of stages made elsewhere: encode_*.onnx, fuse.onnx, model.toml, tokenizer."),
    ] = None,
    checkpoint_sha256: Annotated[str | None, typer.Option(help="Expected SHA-256 of its model.safetensors.")] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Random weights (seeded) in place of those of a model hub.")
    ] = False,
    face: Annotated[
        str | None, typer.Option(help="Cut the face out of a picture: never, auto (where there is one) or always.")
    ] = None,
    label_set: Annotated[str, typer.Option(help="A label set, such as meld, or labels: calm,angry,sad.")] = "meld",
    engine: Annotated[
        str, typer.Option(help="openvino, onnxruntime, aotinductor, tensorrt, or a package's.")
    ] = "openvino",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or int8; TensorRT: fp32, fp16 or bf16.")] = "fp32",
    calibration: Annotated[Path | None, typer.Option(help="Folder of example files to calibrate int8 with.")] = None,
    merged_tokens: Annotated[
        int | None, typer.Option(help="Patches that each layer of a ViT, DeiT or DINOv2 merges away: faster (ToMe).")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of random weights; giving one leaves the bundled weights out.")
    ] = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Exports a checkpoint, or graphs made elsewhere, to a release, and prints how far it is from them.

    Example: [bold]cmt export --preset mini --precision bf16[/]
    """
    from cmt_export.export import ExportOptions

    options = ExportOptions(
        preset=preset,
        checkpoint=checkpoint if checkpoint or onnx or seed is not None else trained_weights(preset, label_set),
        onnx=onnx,
        face=cast("FaceMode | None", face),
        checkpoint_sha256=checkpoint_sha256,
        random_weights=random_weights,
        label_set=label_set,
        engine=engine,
        precision=precision,
        calibration=calibration,
        merged_tokens=merged_tokens,
        seed=seed or 0,
    )
    run_export(options, State(state))


def run_export(options: ExportOptions, state: State) -> Release:
    """Exports with a progress bar and prints the release."""
    from cmt_cli.show import console, parity_table, progress_bar
    from cmt_engine.engine import ENGINES
    from cmt_export.export import export as export_release
    from cmt_export.parity import ParityError

    try:
        with progress_bar("export") as progress:
            release, built = export_release(options, state.releases, golden_sample(), progress)
    except ParityError as error:
        console.print(parity_table([vars(row) for row in error.rows]))
        raise
    if built and release.manifest.parity:
        console.print(parity_table(release.manifest.parity))
    info = release.manifest.info
    if all(row["engine"] != info.engine for row in release.manifest.parity):
        reason = ENGINES[info.engine].closed_here() or "it couldn't run where it was exported"
        console.print(f"no parity of {info.engine}: {reason}", style="yellow", markup=False, highlight=False)
    if advice := ENGINES[info.engine].faster_here(info.precision):
        console.print(advice, style="yellow", markup=False, highlight=False)
    for line in kept_in_fp32(release):
        console.print(line, style="yellow", markup=False, highlight=False)
    console.print(
        f"release {info.release} ({info.preset}, {info.engine} {info.precision}, {info.label_set}"
        f"{'' if info.trained else ', [red]untrained[/]'}) "
        f"{'written to' if built else 'is up to date in'} {release.folder}",
        highlight=False,
    )
    return release


def kept_in_fp32(release: Release) -> list[str]:
    """A line for each stage some of whose tensors its precision doesn't hold."""
    from cmt_engine.engine import EngineSidecar
    from cmt_pipeline.stages import COMPILED_STAGES

    lines = []
    for stage in COMPILED_STAGES:
        sidecar = EngineSidecar.read(release.stage_folder(stage.name))
        if kept := sidecar.fp32_tensors:
            named = ", ".join(list(kept)[:5]) + (f" and {len(kept) - 5} more" if len(kept) > 5 else "")
            lines.append(
                f"{stage.name}: stay in fp32, since {sidecar.precision} doesn't hold what samples make of them "
                f"(up to {max(kept.values()):.3g}): {named}"
            )
    return lines


def golden_sample() -> GoldenSample:
    """The samples that come with the command; a release keeps PyTorch's answers for them."""
    from cmt_export.export import GoldenSample

    return GoldenSample({name: sample(name).read_bytes() for name in ("image", "audio", "text")})


def trained_weights(preset: str, label_set: str) -> Path | None:
    """The checkpoint that comes with the command; None for sizes and labels that none comes for."""
    folder = Path(str(files("cmt_cli") / "weights" / f"{preset}-{label_set}"))
    return folder if folder.is_dir() else None


def sample(what: str) -> Path:
    """The bundled file of a modality, or of the `label` that all three were made to show."""
    name = {"image": "face.jpg", "audio": "speech.wav", "text": "sentence.txt", "label": "label.txt"}[what]
    return Path(str(files("cmt_cli") / "samples" / name))
