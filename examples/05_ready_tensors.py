"""Preprocess here, with the functions that the server uses, and send a batch of tensors as one request.

Start a server with `cmt serve`, then: python examples/05_ready_tensors.py [URL]
"""

import sys
from pathlib import Path

from cmt_client import EmotionClient
from cmt_pipeline.preprocess import PreprocessConfig, collate, make_preprocessors

URL = sys.argv[1] if len(sys.argv) > 1 else "grpc://127.0.0.1:8001"
PACKAGE = Path(__file__).parents[1] / "cmt" / "cmt_cli"
WEIGHTS = PACKAGE / "weights" / "mini-meld"  # of the model that the server runs

prepare = make_preprocessors(PreprocessConfig(), WEIGHTS / "tokenizer.json")
face = (PACKAGE / "samples" / "face.jpg").read_bytes()
sentences = (b"I am so happy to see you!", b"Leave me alone.")
batch = {
    **collate("image", [prepare["image"](face) for _ in sentences]),  # pixel_values: [2, 3, 224, 224]
    **collate("text", [prepare["text"](sentence) for sentence in sentences]),  # input_ids, …: [2, tokens]
}
print({name: (array.dtype.name, array.shape) for name, array in batch.items()})

with EmotionClient(URL) as client:
    for answer in client.predict_tensors(**batch):
        print(f"{answer.label} {answer.probability:.0%} from {', '.join(answer.modalities)}")
