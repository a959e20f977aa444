"""A trainer without torch: it speaks the trainer's protocol and trains nothing.

What an epoch gives follows from the recipe and from what the epoch before left (a chain of hashes),
so that a run resumed from the wrong place has another curve. Its checkpoints are real files under
the rules of the real ones. Run as: stub_trainer.py HOME EPOCH_S FAULT CONNECTION.
"""

import contextlib
import hashlib
import json
import os
import queue
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

from nbtl_search.files.atomic import write_durably

FOOTER = 32
N_STEPS = 4


def advanced(recipe, chain, epoch):
    """Return the chain after an epoch, and what the epoch gave."""
    key = json.dumps([recipe["dials"], recipe["train"]["seed"], chain, epoch], sort_keys=True)
    digest = hashlib.sha256(key.encode()).digest()
    chance = int.from_bytes(digest[:4], "big") / 2**32
    skill = int.from_bytes(hashlib.sha256(key.split("]")[0].encode()).digest()[:2], "big") / 2**16
    top1 = round(min(99.0, 20 + 40 * skill + 5 * epoch + 10 * chance), 6)
    return digest.hex(), {
        "epoch": epoch, "train_loss": 1 + chance, "val_loss": 2 - chance, "val_top1": top1,
        "val_top5": min(100.0, top1 + 1), "lr": 0.1 / epoch, "n_images": 32, "seconds": 0.01,
        "micro_batch": 8,
    }  # fmt: skip


def curve(recipe):
    """Return all epochs of a recipe, as an undisturbed run has them."""
    chain = ""
    epochs: list[dict[str, float]] = []
    for number in range(1, recipe["train"]["epochs"] + 1):
        chain, epoch = advanced(recipe, chain, number)
        epochs.append(epoch)
    return epochs


def save(folder, chain, history):
    folder.mkdir(parents=True, exist_ok=True)
    payload = json.dumps({"chain": chain, "history": history}).encode()
    path = folder / f"{len(history):06d}-00000000.ckpt"
    write_durably(path, payload, hashlib.sha256(payload).digest())
    for old in sorted(folder.glob("*.ckpt"), reverse=True)[2:]:
        old.unlink(missing_ok=True)


def load(folder):
    for path in sorted(folder.glob("*.ckpt"), reverse=True):
        content = path.read_bytes()
        payload, footer = content[:-FOOTER], content[-FOOTER:]
        if hashlib.sha256(payload).digest() == footer:
            state = json.loads(payload)
            return state["chain"], state["history"]
    return "", []


class Trainer:
    def __init__(self, connection, *, epoch_s, fault):
        self.connection = connection
        self.epoch_s = epoch_s
        self.fault, _, self.at = fault.partition(":")
        self.orders: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        self.pause = threading.Event()  # never set; `sleep` fails where faketime is at work
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        try:
            while True:
                self.orders.put(json.loads(self.connection.recv_bytes()))
        except (EOFError, OSError):
            os._exit(70)

    def send(self, **message):
        self.connection.send_bytes(json.dumps(message).encode())

    def serve(self):
        while True:
            order = self.orders.get()
            if order["kind"] == "open":
                if self.fault == "dies-at-once":
                    os._exit(3)
                self.send(kind="ready", device="cpu")
            elif order["kind"] == "train":
                self.send(**self.train(order))

    def train(self, order):
        recipe, folder = order["recipe"], Path(order["checkpoints"])
        chain, history = load(folder)
        self.send(kind="started", history=history)
        while len(history) < order["until"]:
            number = len(history) + 1
            self.go_wrong(number, folder)
            for _ in range(N_STEPS):
                self.pause.wait(self.epoch_s / N_STEPS)
                if self.is_to_halt():
                    return {"kind": "halted", "rss_mb": 50.0}
            chain, epoch = advanced(recipe, chain, number)
            history.append(epoch)
            try:
                save(folder, chain, history)
            except OSError as error:
                self.send(kind="warned", message=f"no checkpoint: {error.strerror}")
            self.send(kind="trained", epoch=epoch)
        is_whole = len(history) == recipe["train"]["epochs"]
        return {"kind": "completed" if is_whole else "paused", "rss_mb": 50.0}

    def is_to_halt(self):
        with contextlib.suppress(queue.Empty):
            return self.orders.get_nowait()["kind"] == "halt"
        return False

    def go_wrong(self, number, folder):
        """Commit the fault, where this is the epoch for it; only trial 0 kills its supervisor."""
        if not self.at or int(self.at) != number:
            return
        if self.fault == "hangs":
            time.sleep(3600)
        if self.fault == "segfaults":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.fault == "is-killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "kills-its-supervisor" and folder.name == "0":
            os.kill(os.getppid(), signal.SIGKILL)
            # Its end of the connection closes last: an epoch could be done before `read` sees it.
            time.sleep(3600)


def main():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _, _home, epoch_s, fault, descriptor = sys.argv
    Trainer(Connection(int(descriptor)), epoch_s=float(epoch_s), fault=fault).serve()


if __name__ == "__main__":
    main()
