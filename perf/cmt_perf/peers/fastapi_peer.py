"""FastAPI on uvicorn: one process, a route that takes a form (fastapi.tiangolo.com, "Request Forms and Files")."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import FastAPI, File, Form

from cmt_perf.load_clients import FORM_PATH
from cmt_perf.whole_model import WholeModel

READY_PATH = "/ready"


def app_of(model: WholeModel) -> FastAPI:
    app = FastAPI()

    @app.post(FORM_PATH)
    def predict(
        image: Annotated[bytes, File()], audio: Annotated[bytes, File()], text: Annotated[str, Form()]
    ) -> dict[str, list[float]]:
        outputs = model.answer({"image": [image], "audio": [audio], "text": [text.encode()]})
        return {"probabilities": outputs["probabilities"][0].tolist()}

    @app.get(READY_PATH)
    def ready() -> bool:
        return True

    return app


if __name__ == "__main__":
    checkpoint, runtime, port = sys.argv[1:]
    uvicorn.run(app_of(WholeModel(Path(checkpoint), runtime=runtime)), port=int(port), log_level="warning")  # type: ignore[arg-type]
