"""Sound longer than a request may be: one answer for the whole, and one for each window.

Start a server with `cmt serve`, then: python examples/08_long_sound.py [URL]
"""

import sys

import numpy as np

from cmt_client import EmotionClient

URL = sys.argv[1] if len(sys.argv) > 1 else "grpc://127.0.0.1:8001"
RATE_HZ = 16_000

seconds = np.arange(20 * RATE_HZ) / RATE_HZ
rising = np.sin(2 * np.pi * (200 + 10 * seconds) * seconds)  # a file of any length would do as well

with EmotionClient(URL) as client:
    answer = client.predict_long(audio=(rising, RATE_HZ), window_s=8)  # at most; 16 s by default
    print(f"as a whole: {answer.whole.label}")
    for window in answer.windows:
        print(f"{window.start_s:.1f} to {window.end_s:.1f} s: {window.emotion.label}")
