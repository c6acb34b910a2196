"""Running Qt's event loop in a test, and proof that nothing has held it up."""

from __future__ import annotations

import time
from collections.abc import Callable

from PySide6.QtCore import QEventLoop, Qt, QTimer

TICK_MS = 5


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Run the event loop until `condition()` is true; TimeoutError if it does not become so."""
    loop = QEventLoop()
    end = time.monotonic() + timeout_s
    poll = make_timer(lambda: (condition() or time.monotonic() > end) and loop.quit())
    if not condition():
        loop.exec()
    poll.stop()
    if not condition():
        raise TimeoutError(f"after {timeout_s} s the condition does not hold")


class EventLoopWatch:
    """Measures, in a `with` block, the longest time for which the event loop did not run."""

    def __enter__(self) -> EventLoopWatch:
        self.longest_gap_s = 0.0
        self._last = time.monotonic()
        self._timer = make_timer(self._tick)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.stop()
        self._tick()

    def _tick(self) -> None:
        now = time.monotonic()
        self.longest_gap_s = max(self.longest_gap_s, now - self._last)
        self._last = now


def make_timer(callback: Callable[[], object]) -> QTimer:
    timer = QTimer(interval=TICK_MS, timerType=Qt.TimerType.PreciseTimer)
    timer.timeout.connect(callback)
    timer.start()
    return timer
