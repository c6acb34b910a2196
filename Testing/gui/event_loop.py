"""Running Qt's event loop in a test, and proof that nothing has held it up; on the stand-in and in a real Slicer."""

from __future__ import annotations

import time
from collections.abc import Callable

TICK_MS = 5


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Run the event loop until `condition()` is true; TimeoutError if it does not become so."""
    import slicer

    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"after {timeout_s} s the condition does not hold")
        slicer.app.processEvents()
        time.sleep(0.001)


def wait(seconds: float) -> None:
    """Run the event loop for a while, to see that nothing happens."""
    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > end, 2 * seconds + 10)


class EventLoopWatch:
    """Measures, in a `with` block, the longest time for which the event loop did not run."""

    def __enter__(self) -> EventLoopWatch:
        import qt

        self.longest_gap_s = 0.0
        self._last = time.monotonic()
        self._timer = qt.QTimer()
        self._timer.setTimerType(qt.Qt.PreciseTimer)
        self._timer.connect("timeout()", self._tick)
        self._timer.start(TICK_MS)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.stop()
        self._tick()

    def _tick(self) -> None:
        now = time.monotonic()
        self.longest_gap_s = max(self.longest_gap_s, now - self._last)
        self._last = now
