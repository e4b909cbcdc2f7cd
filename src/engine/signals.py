"""Stop training after a signal, with everything saved."""

import signal
import threading
from types import FrameType
from typing import Any

from engine.parallel import anywhere


class StopSignals:
    """Notes SIGINT and SIGTERM while training; a second signal interrupts at once."""

    KINDS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received = False
        self.agreed = False  # whether any rank has received one
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self.before = {kind: signal.signal(kind, self._note) for kind in self.KINDS}
        return self

    def __exit__(self, *_: object) -> None:
        for kind, handler in self.before.items():
            signal.signal(kind, handler)

    def asked(self) -> bool:
        """Return whether any rank is to stop; every rank must call this."""
        self.agreed = anywhere(self.received)
        return self.agreed

    def _note(self, kind: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True
