"""Without this project's client: tritonclient alone. The classification extension answers with label names.

Start a server with `cmt serve`, then: python examples/03_plain_tritonclient.py [URL]
"""

import sys

import numpy as np
import tritonclient.grpc as triton

URL = sys.argv[1] if len(sys.argv) > 1 else "grpc://127.0.0.1:8001"

text = triton.InferInput("text", [1, 1], "BYTES")
text.set_data_from_numpy(np.array([[b"I am so happy to see you!"]], dtype=object))  # object: numpy strips zero bytes
wanted = [
    triton.InferRequestedOutput("probabilities", class_count=3),  # the three likeliest
    triton.InferRequestedOutput("valence_arousal"),
]
with triton.InferenceServerClient(URL.removeprefix("grpc://")) as client:
    answer = client.infer("emotion_text", [text], outputs=wanted)

for entry in answer.as_numpy("probabilities")[0]:
    probability, _, label = entry.decode().split(":")
    print(f"{label:<9}{float(probability):.3f}")
print("valence, arousal:", answer.as_numpy("valence_arousal")[0])
