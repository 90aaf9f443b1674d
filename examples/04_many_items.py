"""Many items, of different modalities, some of them bad: each gets its own answer or its own error.

Start a server with `cmt serve`, then: python examples/04_many_items.py [URL]
"""

import sys
from pathlib import Path

from cmt_client import Emotion, EmotionClient, InvalidInput, Item

URL = sys.argv[1] if len(sys.argv) > 1 else "grpc://127.0.0.1:8001"
SAMPLES = Path(__file__).parents[1] / "cmt" / "cmt_cli" / "samples"

items: list[Item] = [
    {"image": SAMPLES / "face.jpg"},
    {"audio": SAMPLES / "speech.wav", "text": "Oh, you are here?"},
    {"text": "Leave me alone."},
    {"image": b"this is no picture"},
    {"text": ""},
]
with EmotionClient(URL) as client:
    for answer in client.predict_many(items, concurrency=4):  # the server batches what is in flight
        if isinstance(answer, Emotion):
            print(f"{answer.label} {answer.probability:.0%} from {', '.join(answer.modalities)}")
        elif isinstance(answer, InvalidInput):
            print(f"refused {answer.field}.{answer.code}: {answer.message}")
        else:
            print(f"failed: {answer}")
