"""A trainer that trains nothing, to load a database with: epochs take no time, nothing is saved.

It speaks the trainer's protocol and imports the standard library only, so that many start at once.
Run as: idle_trainer.py EPOCH_S CONNECTION.
"""

import json
import random
import signal
import sys
import time
from multiprocessing.connection import Connection
from typing import Any


def main() -> None:
    """Serve the orders of one supervisor."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    epoch_s, connection = float(sys.argv[1]), Connection(int(sys.argv[2]))
    try:
        while True:
            order = _received(connection)
            if order["kind"] == "open":
                _send(connection, kind="ready", device="none", n_updates=100)
            elif order["kind"] == "train":
                _train(connection, order["recipe"], epoch_s)
    except (EOFError, OSError):
        return  # the supervisor is gone


def _train(connection: Any, recipe: dict[str, Any], epoch_s: float) -> None:
    _send(connection, kind="started", history=[])
    draw = random.Random(json.dumps(recipe, sort_keys=True))
    level = draw.uniform(20, 90)
    for epoch in range(1, recipe["train"]["epochs"] + 1):
        time.sleep(epoch_s)
        _send(connection, kind="trained", epoch=_epoch(epoch, level + draw.uniform(-2, 2)))
        if _received(connection)["kind"] == "halt":
            _send(connection, kind="halted", rss_mb=50.0)
            return
    _send(connection, kind="ended", rss_mb=50.0)


def _epoch(number: int, top1: float) -> dict[str, float]:
    return {
        "epoch": number, "train_loss": 1.0, "val_loss": 1.0, "val_top1": top1, "val_top5": 95.0,
        "lr": 0.01, "n_images": 32, "seconds": 0.01, "micro_batch": 8,
    }  # fmt: skip


def _send(connection: Any, **message: Any) -> None:
    connection.send_bytes(json.dumps(message).encode())


def _received(connection: Any) -> dict[str, Any]:
    order: dict[str, Any] = json.loads(connection.recv_bytes())
    return order


if __name__ == "__main__":
    main()
