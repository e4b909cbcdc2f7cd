"""Formats that libsndfile does not read, decoded by the program `ffmpeg`.

file -> `FfmpegSound` -> samples [N, C]

N samples, C channels. Nothing of the file reaches a shell, nothing but the file is
read, and its pictures are not decoded.
"""

import re
import shutil
import struct
import subprocess
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np

MAX_SECONDS = 12 * 3600  # of sound; a file may claim any length
MAX_ALLOCATION = 2**28  # bytes, of one buffer of ffmpeg
SETTLING_SECONDS = 5.0  # decoded before an offset; after a jump decoders have to settle
MAX_WAIT = 30.0  # seconds for the next samples
SAMPLE_BYTES = 4


class FfmpegError(Exception):
    """What ffmpeg says of a file that it cannot decode, in a line."""


def has_ffmpeg() -> bool:
    """Return whether the program is on the path."""
    return shutil.which("ffmpeg") is not None


class FfmpegSound:
    """The samples of a file's best audio stream, from an offset on, in seconds.

    It is read like a `soundfile.SoundFile` and does not know its length. Raises
    `FfmpegError` if there is no such stream, and if ffmpeg stands still.
    """

    left = 0  # of the samples that the file promises, which nobody knows

    def __init__(self, path: Path, offset: float, duration: float | None) -> None:
        self._is_stuck, self.num_read = False, 0
        # A pipe that nobody reads would block.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        most = MAX_SECONDS if duration is None else min(duration, MAX_SECONDS)
        command = [shutil.which("ffmpeg"), "-nostdin", "-v", "error", "-threads", "1"]
        command += ["-max_alloc", str(MAX_ALLOCATION), "-protocol_whitelist", "file"]
        offset = min(offset, MAX_SECONDS)
        settling = min(offset, SETTLING_SECONDS)
        # Even a jump to the beginning would lose a packet.
        before, after = (
            ["-ss", f"{seconds:f}"] if seconds else []
            for seconds in (offset - settling, settling)
        )
        # The protocol stands before the name, which may hold a colon or begin with -.
        command += [*before, "-i", f"file:{path.absolute()}", "-vn", "-sn", "-dn"]
        command += [*after, "-t", f"{most:f}"]
        # Sun's format: big-endian numbers behind a header of rate and channels.
        command += ["-f", "au", "-c:a", "pcm_f32be", "pipe:1"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        try:
            self._read_header()
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> None:
        header = self._bytes(24)
        if len(header) < 24:
            raise FfmpegError(self._complaint() or "ffmpeg finds no sound")
        _, size, _, _, self.samplerate, self.channels = struct.unpack(">6I", header)
        self._bytes(size - 24)

    def __enter__(self) -> "FfmpegSound":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the program."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def read(self, num_samples: int) -> np.ndarray:
        """Return the next samples, float32 [N, C]; fewer than asked for at the end."""
        data = self._bytes(num_samples * self.channels * SAMPLE_BYTES)
        size = len(data) // SAMPLE_BYTES // self.channels * self.channels
        samples = np.frombuffer(data, ">f4", size)
        self.num_read += size // self.channels
        return samples.reshape(-1, self.channels).astype(np.float32)

    def _bytes(self, size: int) -> bytes:
        timer = threading.Timer(MAX_WAIT, self._give_up)
        timer.start()
        try:
            data = self._process.stdout.read(size)
        finally:
            timer.cancel()
        if self._is_stuck:
            raise FfmpegError(f"ffmpeg gave nothing for {MAX_WAIT:g} s")
        return data

    def _give_up(self) -> None:
        self._is_stuck = True
        self._process.kill()

    @property
    def faults(self) -> tuple[str, ...]:
        """What ffmpeg says of the samples that it gave."""
        complaint = self._complaint()
        faults = (f"ffmpeg: {complaint}",) if complaint else ()
        if self.num_read >= MAX_SECONDS * self.samplerate:
            faults += (
                f"longer than {MAX_SECONDS // 3600} hours, the rest is left out",
            )
        return faults

    def _complaint(self) -> str:
        """Return the first line that ffmpeg wrote about the file, or nothing."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(MAX_WAIT)
        self._errors.seek(0)
        line = self._errors.readline(1000).decode(errors="replace").strip()
        return re.sub(r"^(\[.*?\] )+", "", line)
