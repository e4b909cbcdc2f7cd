"""Stopping a training by a signal, with everything saved."""

import signal
import threading
from types import FrameType
from typing import Any

from engine.parallel import anywhere


class StopSignals:
    """SIGINT and SIGTERM, noted while training; a second one interrupts at once."""

    KINDS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received = False
        self.agreed = False  # that one of the ranks has received one
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self.before = {kind: signal.signal(kind, self._note) for kind in self.KINDS}
        return self

    def __exit__(self, *_: object) -> None:
        for kind, handler in self.before.items():
            signal.signal(kind, handler)

    def asked(self) -> bool:
        """Whether to stop, asked and answered on all ranks together."""
        self.agreed = anywhere(self.received)
        return self.agreed

    def _note(self, kind: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True
