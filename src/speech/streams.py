"""Where the sound lies in a file: the parts that were joined, without what is none.

file -> `parts_of` -> `Part`s -> `Part.open` -> a file for libsndfile

Programs write a header before they know how long a recording will be, `cat` joins
files, and transfers lose or add bytes. libsndfile reads the first part, as far as its
header promises. Here the frames (MP3, ISO 11172-3; FLAC, RFC 9639), pages (Ogg, RFC
3533) or chunks (WAV) are followed to the end of the file.
"""

import io
import os
import re
import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import BinaryIO

PROMISES_LESS = "its header promises less than there is, and all is read"
NO_SOUND = "bytes between its frames that are no sound were left out"
STREAMED_SIZE = 0x7FFFF000  # bytes; the header of a streamed WAV claims at least this
MIN_MORE = 1024  # bytes after a WAV's data; fewer are no sound
SEARCHED = 2**16  # bytes that are searched at once
MAX_JUNK = 2**19  # bytes that are searched for frames of an MP3 file in all
LARGE = 2**22  # bytes of a file whose parts are worth remembering
MAX_FRAME = 2**21  # bytes of a FLAC frame
TAGS = rb"TAG|ID3|APETAGEX|LYRICSBEGIN"  # behind the sound


@dataclass(frozen=True)
class Part:
    """A recording in a file: stretches of the file (begin, end) and bytes that replace
    others, to be read one after another. Without any it is the whole file."""

    pieces: tuple[tuple[int, int] | bytes, ...] = ()
    is_cut: bool = False
    faults: tuple[str, ...] = ()
    is_mp3: bool = False  # or of no known format

    def open(self, file: BinaryIO) -> "PartFile":
        """Return the part as a file of its own."""
        return PartFile(file, self.pieces or ((0, file.seek(0, os.SEEK_END)),))


class PartFile(io.RawIOBase):
    """Pieces of an open file and other bytes as one file that can be read."""

    def __init__(
        self, file: BinaryIO, pieces: tuple[tuple[int, int] | bytes, ...]
    ) -> None:
        self.file, self.pieces, self.position = file, pieces, 0
        sizes = [len(p) if isinstance(p, bytes) else p[1] - p[0] for p in pieces]
        self.starts = [0, *accumulate(sizes)]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self.position}
        self.position = max(0, origin.get(whence, self.starts[-1]) + offset)
        return self.position

    def readinto(self, buffer: memoryview) -> int:
        filled = 0
        while filled < len(buffer) and self.position < self.starts[-1]:
            i = bisect_right(self.starts, self.position) - 1
            piece, skipped = self.pieces[i], self.position - self.starts[i]
            size = min(len(buffer) - filled, self.starts[i + 1] - self.position)
            if isinstance(piece, bytes):
                data = piece[skipped : skipped + size]
            else:
                self.file.seek(piece[0] + skipped)
                data = self.file.read(size)
            if not data:  # the file shrinks while it is read
                break
            buffer[filled : filled + len(data)] = data
            filled += len(data)
            self.position += len(data)
        return filled


def parts_of(path: Path) -> list[Part]:
    """Return the parts of an audio file in order; a file of another kind is one."""
    state = path.stat()
    if state.st_size < LARGE:
        return _parts_of(path)
    return _known_parts(path, state.st_size, state.st_mtime_ns)


@lru_cache(64)
def _known_parts(path: Path, size: int, changed: int) -> list[Part]:
    return _parts_of(path)  # once, since a manifest may name many segments of a file


def _parts_of(path: Path) -> list[Part]:
    with path.open("rb") as file:
        return _parts_in(file, file.seek(0, os.SEEK_END))


def _parts_in(file: BinaryIO, size: int) -> list[Part]:
    head = _at(file, 0, 12)
    if head[:4] == b"RIFF":
        parts = _wav_parts(file, size)
    elif head[:4] == b"OggS":
        parts = _ogg_parts(file, size)
    elif head[:4] == b"fLaC":
        parts = _flac_parts(file, size)
    elif head[:3] == b"ID3" or _mp3_frame(head[:4]):
        parts = _mp3_parts(file, size)
    else:
        parts = []
    return parts or [Part(is_mp3=True)]


def _at(file: BinaryIO, position: int, size: int) -> bytes:
    file.seek(position)
    return file.read(size)


def _matches(
    file: BinaryIO, pattern: bytes, begin: int, end: int, reach: int
) -> Iterator[int]:
    """Yield where matches of at most `reach` bytes begin in a stretch of a file."""
    while begin < end:
        stop = min(begin + SEARCHED, end)
        data = _at(file, begin, min(stop + reach - 1, end) - begin)
        for match in re.finditer(pattern, data, re.DOTALL):
            if match.start() < stop - begin:
                yield begin + match.start()
        begin = stop


# WAV


def _wav_parts(file: BinaryIO, size: int) -> list[Part]:
    parts, begin = [], 0
    while begin is not None:
        part, begin = _wav_part(file, begin, size)
        parts += [part] if part else []
    return parts


def _wav_part(file: BinaryIO, begin: int, size: int) -> tuple[Part | None, int | None]:
    """Return the part that begins there, if it has data, and where the next begins."""
    data, position = None, begin + 12
    while len(header := _at(file, position, 8)) == 8:
        name, length = struct.unpack("<4sI", header)
        if name == b"RIFF" and data and _at(file, position + 8, 4) == b"WAVE":
            return Part(((begin, position),)), position
        if name == b"data" and not data:
            data = position + 8
            if length >= STREAMED_SIZE:
                break
            if data + length > size:
                return Part(((begin, size),), is_cut=True), None
        elif data and not _is_chunk(name, position + 8 + length, size):
            is_tag = re.match(TAGS, _at(file, position, 16))
            if size - position < MIN_MORE or is_tag:
                break
            if not any(_matches(file, rb"[^\0]", position, size, 1)):
                break
            # The data go on although they should have ended.
            length = struct.pack("<I", min(size - data, STREAMED_SIZE - 1))
            pieces = (begin, data - 4), length, (data, size)
            return Part(pieces, faults=(PROMISES_LESS,)), None
        position += 8 + length + length % 2
    return Part(((begin, size),)), None


def _is_chunk(name: bytes, end: int, size: int) -> bool:
    return bool(re.fullmatch(rb"[\w \-.]{4}", name)) and end <= size


# Ogg


def _ogg_parts(file: BinaryIO, size: int) -> list[Part]:
    """Follow the pages; after others, one that begins a stream begins a recording."""
    parts, runs, position, has_data, is_whole = [], [], 0, False, False
    num_skipped = 0

    def finish() -> None:
        faults = (f"{num_skipped} {NO_SOUND}",) if num_skipped else ()
        parts.append(Part(tuple(runs), not is_whole, faults))

    while position < size:
        header = _at(file, position, 27)
        if header[:4] != b"OggS":
            found = next(_matches(file, b"OggS", position, size, 4), size)
            num_skipped += found - position if found < size else 0
            position = found
            continue
        lengths = file.read(header[26]) if len(header) == 27 else b""
        end = position + 27 + len(lengths) + sum(lengths)
        begins, ends = (header[5] & 2, header[5] & 4) if len(header) == 27 else (0, 0)
        if begins and has_data:
            finish()
            runs, has_data, num_skipped = [], False, 0
        has_data |= not begins
        _extend(runs, position, min(end, size))
        is_whole = bool(ends) and end <= size and len(header) == 27
        position = end
    finish()
    return parts


def _extend(runs: list[tuple[int, int]], begin: int, end: int) -> None:
    """Add a stretch to the runs of a part, or to the last of them if they touch."""
    if runs and runs[-1][1] == begin:
        runs[-1] = (runs[-1][0], end)
    else:
        runs.append((begin, end))


# FLAC

FLAC_RATES = (None, 88200, 176400, 192000, 8000, 16000, 22050, 24000, 32000)
FLAC_RATES += (44100, 48000, 96000)
FLAC_BITS = (None, 8, 12, None, 16, 20, 24, 32)


def _flac_parts(file: BinaryIO, size: int) -> list[Part]:
    others = _matches(file, rb"fLaC[\0\x80]\0\0\x22", 4, size, 8)
    bounds = [0, *others, size]
    return [_flac_part(file, begin, end) for begin, end in pairwise(bounds)]


def _flac_part(file: BinaryIO, begin: int, end: int) -> Part:
    """Return a part whose header knows how many samples there are, if it did not."""
    if end - begin < 42:
        return Part(((begin, end),), is_cut=True)
    information = _at(file, begin + 8, 34)  # the block STREAMINFO
    numbers = int.from_bytes(information[10:18], "big")
    promised, others = numbers % 2**36, numbers >> 36 << 36
    length = _flac_length(file, begin + 42, end, information)
    if length <= promised:
        return Part(((begin, end),))
    patched = (others | length).to_bytes(8, "big")
    pieces = (begin, begin + 18), patched, (begin + 26, end)
    return Part(pieces, faults=(PROMISES_LESS,) if promised else ())


def _flac_length(file: BinaryIO, begin: int, end: int, information: bytes) -> int:
    """Return how many samples there are up to the end of the last frame."""
    for reach in (SEARCHED, MAX_FRAME):
        data = _at(file, max(begin, end - reach), min(reach, end - begin))
        for match in reversed(list(re.finditer(rb"\xff[\xf8\xf9]", data))):
            if length := _flac_frame_end(data[match.start() :][:16], information):
                return length
    return 0


def _flac_frame_end(header: bytes, information: bytes) -> int | None:
    """Return the number of samples up to the end of the frame that this header begins,
    if it is a header of this stream."""
    if len(header) < 16:
        return None
    numbers = int.from_bytes(information[10:18], "big")
    rate, channels = numbers >> 44, (numbers >> 41 & 7) + 1
    bits, most = (numbers >> 36 & 31) + 1, int.from_bytes(information[2:4], "big")
    size_code, rate_code = header[2] >> 4, header[2] & 15
    layout, bits_code = header[3] >> 4, header[3] >> 1 & 7
    if header[3] & 1 or not size_code or layout > 10:
        return None
    if (2 if layout > 7 else layout + 1) != channels:
        return None
    if rate_code < 12 and FLAC_RATES[rate_code] not in (None, rate):
        return None
    if rate_code == 15 or FLAC_BITS[bits_code] not in (None, bits):
        return None
    extra = 8 - (header[4] ^ 0xFF).bit_length()  # ones that lead, as in UTF-8
    if extra == 1 or extra == 8:
        return None
    position = 4 + max(extra, 1)
    number = header[4] & (0x7F >> extra)
    for byte in header[5:position]:
        number = number << 6 | byte & 0x3F
    if size_code in (6, 7):
        width = size_code - 5
        size = int.from_bytes(header[position : position + width], "big") + 1
        position += width
    elif size_code == 1:
        size = 192
    else:
        size = 144 << size_code if size_code < 6 else 1 << size_code
    position += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if size > most or _crc8(header[:position]) != header[position]:
        return None
    return number + size if header[1] & 1 else number * most + size


def _crc8(data: bytes) -> int:
    """Return the checksum of a frame's header, x^8 + x^2 + x + 1."""
    checksum = 0
    for byte in data:
        checksum ^= byte
        for _ in range(8):
            checksum = checksum << 1 ^ (0x107 if checksum & 0x80 else 0)
    return checksum


# MP3

MP3_BITRATES = {  # kbit/s by the header's code, of MPEG 1 and of MPEG 2
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
MP3_RATES = {
    3: (44100, 48000, 32000),
    2: (22050, 24000, 16000),
    0: (11025, 12000, 8000),
}
MP3_HEADER = rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]"  # layer 3
COUNTED = 64  # bytes of a frame, in which the number of frames lies


@dataclass
class _Frames:
    """The frames of one recording."""

    kind: bytes
    header: bytes
    tag: bytes = b""  # its first frame, if that says how many follow
    count: int = 0  # of those that follow
    runs: list[tuple[int, int]] = field(default_factory=list)  # stretches of the file
    num_skipped: int = 0  # bytes between them

    @property
    def promised(self) -> int:
        """The number of frames that the first one promises, or 0."""
        place = _counter(self.tag)
        has_number = place and self.tag[place + 7] & 1
        return int.from_bytes(self.tag[place + 8 : place + 12], "big") * has_number

    @property
    def promises_less(self) -> bool:
        """Whether the promise falls short, by more than the first frame itself."""
        return self.count > self.promised + 1


@lru_cache(2**12)
def _mp3_frame(header: bytes) -> tuple[int, bytes] | None:
    """Return the bytes of a frame and what all frames of a recording share, if these
    four bytes begin a frame of layer 3 of a known size."""
    if len(header) < 4 or not re.match(MP3_HEADER, header):
        return None
    version, bitrate, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if bitrate in (0, 15) or rate == 3:
        return None
    bits = 1000 * MP3_BITRATES[version or 2][bitrate]
    size = (144 if version == 3 else 72) * bits // MP3_RATES[version][rate]
    is_mono = header[3] >> 6 == 3
    kind = bytes([header[1] & 0xFE, header[2] & 0x0C, is_mono])
    return size + (header[2] >> 1 & 1), kind


def _mp3_parts(file: BinaryIO, size: int) -> list[Part]:
    """Follow the frames; a recording begins where a frame counts those after it, or
    where they are of another kind."""
    recordings, position, is_cut, in_step, patience = [], 0, False, False, MAX_JUNK
    while position < size and not is_cut:
        head = _at(file, position, COUNTED)
        frame, current = _mp3_frame(head[:4]), recordings[-1] if recordings else None
        if frame and not (in_step and frame[1] == current.kind):
            frame = frame if _is_followed(file, position, size, frame) else None
        if not frame:
            in_step, found = False, position + _tag_size(head)
            if found == position:
                found = _next_frame(file, position + 1, size, patience)
                patience -= found - position
                if current and (found < size or patience < 0):
                    current.num_skipped += found - position
            position = found
            continue
        length, kind = frame
        counts = bool(_counter(head))
        if counts or not current or kind != current.kind:
            current = _Frames(kind, head[:4])
            if counts:
                current.tag = _at(file, position, length)
            recordings.append(current)
        if is_cut := position + length > size:
            break
        current.count += not counts
        _extend(current.runs, position, position + length)
        position, in_step = position + length, True
    if len(recordings) == 1:
        only = recordings[0]
        if only.promised and not only.promises_less and len(only.runs) == 1:
            return [Part((), is_cut, is_mp3=True)]
    return [
        _mp3_part(recording, is_cut and recording is recordings[-1])
        for recording in recordings
        if recording.count
    ]


def _is_followed(
    file: BinaryIO, position: int, size: int, frame: tuple[int, bytes]
) -> bool:
    """Return whether the end of the file, a tag or a frame of the same kind follows."""
    end = position + frame[0]
    head = _at(file, end, 128)
    other = _mp3_frame(head[:4])
    return end == size or _tag_size(head) > 0 or (other and other[1] == frame[1])


def _next_frame(file: BinaryIO, begin: int, size: int, patience: int) -> int:
    """Return where the next frame begins within so many bytes, or else the end."""
    for position in _matches(file, MP3_HEADER, begin, min(size, begin + patience), 2):
        frame = _mp3_frame(_at(file, position, 4))
        if frame and _is_followed(file, position, size, frame):
            return position
    return size


def _tag_size(head: bytes) -> int:
    """Return the bytes of the tag that these bytes begin, or 0."""
    if head[:3] == b"ID3" and len(head) >= 10:
        size = 0
        for byte in head[6:10]:
            size = size << 7 | byte & 0x7F
        return 10 + size + (10 if head[5] & 0x10 else 0)
    if head[:8] == b"APETAGEX" and len(head) >= 32:
        return int.from_bytes(head[12:16], "little") + 32
    return 128 if head[:3] == b"TAG" else 0


def _counter(frame: bytes) -> int:
    """Return where a frame holds the number of those that follow, or 0."""
    if b"Xing" not in frame[:COUNTED] and b"Info" not in frame[:COUNTED]:
        return 0
    place = _side_end(frame)
    places = place, place + 2  # 2 bytes of a checksum
    return next((p for p in places if frame[p : p + 4] in (b"Xing", b"Info")), 0)


def _side_end(header: bytes) -> int:
    """Return where a frame's side information ends, which begins after 4 bytes."""
    is_mono, is_mpeg_1 = header[3] >> 6 == 3, header[1] >> 3 & 3 == 3
    return 4 + (17 if is_mono == is_mpeg_1 else 9 if is_mono else 32)


def _mp3_part(recording: _Frames, is_cut: bool) -> Part:
    """Return the frames without what lies between them, behind one that counts them."""
    tag, runs, faults = recording.tag, recording.runs, []
    if recording.num_skipped:
        faults.append(f"{recording.num_skipped} {NO_SOUND}")
    if not recording.promises_less:
        return Part(tuple(runs), is_cut, tuple(faults), is_mp3=True)
    if recording.promised:
        faults.append(PROMISES_LESS)
        place = _counter(tag) + 8
        counted = tag[:place] + recording.count.to_bytes(4, "big") + tag[place + 4 :]
    else:
        counted = _counting_frame(recording)
    (begin, end), *others = runs
    pieces = counted, (begin + len(tag), end), *others
    return Part(pieces, is_cut, tuple(faults), is_mp3=True)


def _counting_frame(recording: _Frames) -> bytes:
    """Return a frame like those of a recording, without sound, that counts them."""
    first, second, third, fourth = recording.header
    for bitrate in range(1, 15):
        header = bytes([first, second | 1, bitrate << 4 | third & 0x0C, fourth])
        size, _ = _mp3_frame(header)
        if size >= COUNTED:
            break
    counter = b"Info" + struct.pack(">II", 1, recording.count)
    return (header.ljust(_side_end(header), b"\0") + counter).ljust(size, b"\0")
