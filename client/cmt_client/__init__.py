"""Client of the emotion pipelines: blocking and asyncio, over gRPC or HTTP; model control; typed errors.

    from cmt_client import EmotionClient

    with EmotionClient("localhost:8001") as client:
        print(client.predict(image="face.jpg", audio="speech.wav", text="I can't believe it!").label)

Importing it needs numpy and tritonclient alone; gRPC or an HTTP library loads when a client is made.
"""

from cmt_client.arrays import Sound
from cmt_client.async_client import AsyncEmotionClient
from cmt_client.client import EmotionClient
from cmt_client.control import ModelControl
from cmt_client.errors import (
    ControlFailed,
    DeadlineExceeded,
    EmotionError,
    InferenceFailed,
    InvalidInput,
    Overloaded,
    PermissionDenied,
    ServerUnavailable,
    ServiceError,
    UnknownPipeline,
)
from cmt_client.fake import AsyncFakeTransport, FakeTransport
from cmt_client.requests import Item
from cmt_client.result import Emotion
from cmt_client.status import ServerStatus, server_status
from cmt_client.transport import AsyncTransport, Transport, connect, connect_async
from cmt_client.windows import LongEmotion, WindowEmotion
from cmt_pipeline import __version__

__all__ = [
    "AsyncEmotionClient",
    "AsyncFakeTransport",
    "AsyncTransport",
    "ControlFailed",
    "DeadlineExceeded",
    "Emotion",
    "EmotionClient",
    "EmotionError",
    "FakeTransport",
    "InferenceFailed",
    "InvalidInput",
    "Item",
    "LongEmotion",
    "ModelControl",
    "Overloaded",
    "PermissionDenied",
    "ServerStatus",
    "ServerUnavailable",
    "ServiceError",
    "Sound",
    "Transport",
    "UnknownPipeline",
    "WindowEmotion",
    "__version__",
    "connect",
    "connect_async",
    "server_status",
]
