"""Who is asked for a page goes before who draws figures: both share one interpreter."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final

GiveWay = Callable[[], None]


@final
class Priority:
    """Counts the answers that are being made, and lets drawing wait for them."""

    def __init__(self) -> None:
        self._n_answers = 0
        self._changed = threading.Condition()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Go first while the block runs."""
        with self._changed:
            self._n_answers += 1
        try:
            yield
        finally:
            with self._changed:
                self._n_answers -= 1
                self._changed.notify_all()

    def way(self, *, longest_s: float) -> GiveWay:
        """Return what waits until nobody is answered; all its waits together are limited."""
        left_s = longest_s

        def give_way() -> None:
            nonlocal left_s
            started = time.monotonic()
            with self._changed:
                self._changed.wait_for(lambda: self._n_answers == 0, timeout=max(0.0, left_s))
            left_s -= time.monotonic() - started

        return give_way
