"""A face, a voice and a sentence: together, and the sentence alone.

Start a server with `cmt serve`, then: python examples/01_predict.py [URL]
"""

import sys
from pathlib import Path

from cmt_client import EmotionClient

URL = sys.argv[1] if len(sys.argv) > 1 else "grpc://127.0.0.1:8001"
SAMPLES = Path(__file__).parents[1] / "cmt" / "cmt_cli" / "samples"  # any JPEG and WAV

with EmotionClient(URL) as client:
    emotion = client.predict(image=SAMPLES / "face.jpg", audio=SAMPLES / "speech.wav", text="Oh, you are here?")
    print(f"{emotion.label} {emotion.probability:.0%}, from {', '.join(emotion.modalities)}")
    print({m: round(weight, 2) for m, weight in emotion.attention.items()})

    alone = client.predict(text="I am so happy to see you!")
    print(f"{alone.label} {alone.probability:.0%}, valence {alone.valence:+.2f}, arousal {alone.arousal:+.2f}")
