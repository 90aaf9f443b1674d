"""Many questions at once from one event loop.

Start a server with `cmt serve`, then: python examples/02_asyncio.py [URL]
"""

import asyncio
import sys

from cmt_client import AsyncEmotionClient

URL = sys.argv[1] if len(sys.argv) > 1 else "grpc://127.0.0.1:8001"
SENTENCES = ("I am so happy to see you!", "Leave me alone.", "What was that noise?", "The bus leaves at nine.")


async def main() -> None:
    async with AsyncEmotionClient(URL) as client:
        answers = await asyncio.gather(*(client.predict(text=sentence) for sentence in SENTENCES))
    for sentence, answer in zip(SENTENCES, answers, strict=True):
        print(f"{answer.label:<9}{answer.probability:4.0%}  {sentence}")


asyncio.run(main())
