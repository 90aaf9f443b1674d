"""What a program already holds: pixels and samples as arrays, no files.

Start a server with `cmt serve`, then: python examples/06_arrays.py [URL]
"""

import sys

import numpy as np

from cmt_client import EmotionClient, Sound

URL = sys.argv[1] if len(sys.argv) > 1 else "grpc://127.0.0.1:8001"

pixels = np.full((240, 320, 3), 128, np.uint8)  # [height, width, RGB]
seconds = np.arange(2 * 48_000) / 48_000
stereo = np.stack([np.sin(2 * np.pi * 220 * seconds), np.sin(2 * np.pi * 222 * seconds)], axis=1)  # [samples, channels]

with EmotionClient(URL, timeout_s=10) as client:
    answer = client.predict(image=pixels, audio=Sound(0.1 * stereo, 48_000))
    print({label: round(probability, 2) for label, probability in answer.probabilities.items()})
