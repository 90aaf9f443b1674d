"""BentoML: a service class, one worker (docs.bentoml.com, "Hello world")."""

from __future__ import annotations

import os
from pathlib import Path

import bentoml

from cmt_perf.load_clients import FORM_PATH, TIMEOUT_S
from cmt_perf.whole_model import WholeModel
from cmt_pipeline.modality import Modality

CHECKPOINT, RUNTIME = "CMT_BENCH_CHECKPOINT", "CMT_BENCH_RUNTIME"


@bentoml.service(workers=1, traffic={"timeout": TIMEOUT_S})
class Emotion:
    def __init__(self) -> None:
        self._model = WholeModel(Path(os.environ[CHECKPOINT]), runtime=os.environ[RUNTIME])  # type: ignore[arg-type]

    @bentoml.api(route=FORM_PATH)
    def predict(
        self,
        image: Path,
        audio: Path,
        text: str,
    ) -> dict[str, list[float]]:
        files: dict[Modality, list[bytes]] = {
            "image": [image.read_bytes()],
            "audio": [audio.read_bytes()],
            "text": [text.encode()],
        }
        return {"probabilities": self._model.answer(files)["probabilities"][0].tolist()}
