"""A training of its own process: PREPARED OUT OPTIONS-AS-JSON [--resume]; also under torchrun."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cmt_training.distributed import world_of_environment
from cmt_training.options import TrainOptions
from cmt_training.prepare import open_prepared
from cmt_training.train import train
from small_training import silent

folder, out, options = sys.argv[1:4]
with world_of_environment() as world:
    train(
        open_prepared(Path(folder)),
        TrainOptions(**json.loads(options)),
        Path(out),
        silent,
        resume="--resume" in sys.argv,
        world=world,
    )
