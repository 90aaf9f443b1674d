"""Asks all the time, and counts which release answered.

Start a server with `cmt serve`, start this, then run `cmt upgrade` in another terminal: nothing fails.
python examples/07_during_an_upgrade.py [URL] [SECONDS]
"""

import sys
import time
from collections import Counter

from cmt_client import EmotionClient

URL = sys.argv[1] if len(sys.argv) > 1 else "grpc://127.0.0.1:8001"
SECONDS = float(sys.argv[2]) if len(sys.argv) > 2 else 60.0

answers: Counter[int] = Counter()
until = time.monotonic() + SECONDS
with EmotionClient(URL, canary="follow") as client:  # "follow": takes its share of the requests on trial
    while time.monotonic() < until:
        answers[client.predict(text="I am so happy to see you!").release] += 1
for release, count in sorted(answers.items()):
    print(f"release {release}: {count} answers")
