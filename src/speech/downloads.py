"""Download archives and files, each whole or not at all.

URL, published checksum -> `unpacked` -> a folder of its members
URL -> `fetched` -> a file
a path that may be missing, a download -> `download_once`

A download that was cut off resumes where it stopped. Members are unpacked into a
scratch folder, never outside it; the caller renames it once all of them are there.
"""

import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm.auto import tqdm

from engine.files import file_digest, locked
from engine.parallel import progress_options
from errors import UserError, first_line

TIMEOUT_SECONDS = 60  # without an answer from the server
BYTES_PER_READ = 2**20
MAX_ARCHIVE_BYTES, MAX_FILE_BYTES = 2**37, 2**27
HEADER_BYTES = 512  # counted for each member of an archive, beside its content
MAX_RATIO = 20  # of unpacked bytes to packed bytes; recordings have less than 4


class DownloadError(UserError):
    """A download that fails or differs from what was published."""


def download_once(target: Path, root: Path, download: Callable[[], None]) -> None:
    """Call a download to `root` that makes `target`, unless it is there; wait while
    another program downloads to `root`."""
    if target.exists():
        return
    root.mkdir(parents=True, exist_ok=True)
    with locked(root):
        if not target.exists():  # another program may have made it in the meantime
            download()


@contextmanager
def unpacked(url: str, algorithm: str, checksum: str, root: Path) -> Iterator[Path]:
    """Download a tar or zip archive and yield a folder below `root` with its members.

    On exit the folder is deleted unless the caller renamed it. If the block raises, the
    archive stays for another try. Raises `DownloadError` if the download stops, if its
    checksum differs, or if it cannot be unpacked.
    """
    if not hasattr(tarfile, "data_filter"):
        raise DownloadError(
            "download: expected a Python that unpacks safely: 3.10.12, 3.11.4 or newer"
        )
    root.mkdir(parents=True, exist_ok=True)
    partial = root / f"{url.rpartition('/')[2]}.partial"
    _fetch(url, partial, MAX_ARCHIVE_BYTES)
    if file_digest(partial, algorithm) != checksum:
        partial.unlink()
        raise DownloadError(
            f"{url}: expected the published {algorithm.upper()}, found another; "
            "the download was deleted"
        )
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=root) as private:
        scratch = Path(private, "members")  # only this user may read `private`
        scratch.mkdir()
        left = MAX_RATIO * partial.stat().st_size

        def take(size: int) -> None:
            nonlocal left
            left -= size
            if left < 0:
                raise tarfile.TarError(f"expected at most {MAX_RATIO} times its size")

        def bounded(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
            take(member.size + HEADER_BYTES)
            return tarfile.data_filter(member, path)

        try:
            if url.endswith(".zip"):
                with zipfile.ZipFile(partial) as archive:
                    take(sum(m.file_size + HEADER_BYTES for m in archive.infolist()))
                    archive.extractall(scratch)  # drops absolute and parent paths
            else:
                with tarfile.open(partial, "r:gz") as archive:
                    archive.extractall(scratch, filter=bounded)
        except (tarfile.TarError, zipfile.BadZipFile) as error:
            reason = first_line(error)
            raise DownloadError(f"{partial}: cannot be unpacked: {reason}") from None
        yield scratch
    partial.unlink()


@contextmanager
def fetched(url: str, root: Path) -> Iterator[Path]:
    """Download a file that has no published checksum; the caller checks it inside the
    block.

    When the block ends, the file gets its final name in `root`; if the block raises, it
    is deleted. Raises `DownloadError` if the download stops.
    """
    name = url.rpartition("/")[2]
    partial = root / f"{name}.partial"
    _fetch(url, partial, MAX_FILE_BYTES)
    try:
        yield partial
        partial.rename(root / name)
    finally:
        partial.unlink(missing_ok=True)


def _fetch(url: str, partial: Path, largest: int) -> None:
    """Download the missing rest of a file of at most `largest` bytes; raise
    `DownloadError` if it stays incomplete."""
    start = partial.stat().st_size if partial.exists() else 0
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            if response.status != 206:  # the server sends the whole file again
                start = 0
            missing = response.headers["Content-Length"]
            total = missing and start + int(missing)
            too_large = DownloadError(f"{url}: expected at most {largest} bytes")
            if total and total > largest:
                raise too_large
            with (
                partial.open("ab" if start else "wb") as file,
                tqdm(
                    desc=url.rpartition("/")[2],
                    initial=start,
                    total=total,
                    unit="B",
                    unit_scale=True,
                    **progress_options(),
                ) as bar,
            ):
                while chunk := response.read(BYTES_PER_READ):
                    if file.tell() + len(chunk) > largest:
                        partial.unlink()
                        raise too_large
                    file.write(chunk)
                    bar.update(len(chunk))
                if total and file.tell() < total:
                    raise ConnectionError(
                        f"closed after {file.tell()} of {total} bytes"
                    )
    except HTTPError as error:
        error.close()
        if not (error.code == 416 and start):  # 416: nothing is missing
            raise DownloadError(
                f"{url}: expected a file, got HTTP {error.code} {error.reason}"
            ) from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise DownloadError(
            f"{url}: download to {partial} stopped: {reason}; the same command resumes"
        ) from None
