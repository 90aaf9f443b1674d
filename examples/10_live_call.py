"""A call as it is spoken: sound and pictures go to a live session of the gateway, and turns come back with what to do.

Start one with `cmt serve --gateway`, then: python examples/10_live_call.py [URL]
"""

import asyncio
import json
import struct
import sys
from pathlib import Path

from websockets.asyncio.client import ClientConnection, connect

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
SECOND = 2 * 16_000  # bytes of sound: 16 kHz, 16 bits, mono
voice, face = (Path("cmt/cmt_cli/samples", name).read_bytes() for name in ("speech.wav", "face.jpg"))
sound = 2 * (bytes(SECOND) + voice[44:]) + bytes(SECOND)  # 44 bytes are the file's header


async def speak(socket: ClientConnection) -> None:
    """As a microphone and a camera would: each message is its kind, its time in milliseconds, and a piece."""
    for time_ms in range(0, 1000 * len(sound) // SECOND, 100):
        begin = SECOND * time_ms // 1000
        await socket.send(struct.pack(">BI", 2, time_ms) + sound[begin : begin + SECOND // 10])
        if time_ms % 500 == 0:
            await socket.send(struct.pack(">BI", 1, time_ms) + face)
        await asyncio.sleep(0.1)
    await socket.send(json.dumps({"type": "session.end"}))


async def main() -> None:
    async with connect(URL.replace("http", "ws", 1) + "/v1/live", subprotocols=["cmt.live.v1"]) as socket:
        await socket.send(json.dumps({"type": "session.begin", "policy": "customer_service"}))
        speaking = asyncio.create_task(speak(socket))
        async for message in socket:  # until the server closes it, at the session's end
            said = json.loads(message)
            if said["type"] == "turn.result":
                print(f"until {said['end_s']:.1f} s: {said['answer']['label']}; {said['decision']['reason']}")
        await speaking


asyncio.run(main())
