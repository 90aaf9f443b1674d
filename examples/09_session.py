"""Emotion over time: the windows of a long sound become steady states, and a policy says what to do about them.

Start a server with `cmt serve`, then: python examples/09_session.py [URL]
"""

import sys
from dataclasses import replace

import numpy as np

from cmt_client import EmotionClient
from cmt_session import Observation, Session, SessionState, shipped_policy

URL = sys.argv[1] if len(sys.argv) > 1 else "grpc://127.0.0.1:8001"
RATE_HZ = 16_000

seconds = np.arange(20 * RATE_HZ) / RATE_HZ
rising = np.sin(2 * np.pi * (200 + 10 * seconds) * seconds)  # a recording of a call would do as well

policy = shipped_policy("customer_service")
options = replace(policy.options(), untrained=True)  # whatever weights the server has
state = SessionState().to_text()  # the caller keeps it; no server does

with EmotionClient(URL) as client:
    for window in client.predict_long(audio=(rising, RATE_HZ), window_s=4).windows:
        session = Session(policy, options, SessionState.from_json(state))  # as on any other machine
        step = session.observe(Observation.of(window.emotion, window.end_s, window.start_s))
        state = session.state.to_text()
        print(f"{window.end_s:4.1f} s: {step.reading.label or step.reading.standing}", end="; ")
        print(f"{step.decision.kind}: {step.decision.action or step.decision.why}")

print(f"the state that goes on: {len(state)} bytes")
