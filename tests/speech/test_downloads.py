"""Archives from a server on loopback: resumed, checked, and unpacked inside."""

import hashlib
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from layouts import archive

from speech.downloads import DownloadError, download_once, fetched, unpacked

CONTENT = os.urandom(100_000)


class Download:
    """An archive that a server offers, and what is fetched of it."""

    def __init__(self, server, root, name: str) -> None:
        self.server, self.root, self.name = server, root, name
        self.url = f"{server.url}/{name}"
        self.partial = root / f"{name}.partial"
        self.offer()

    def offer(self, *others: tarfile.TarInfo, **contents: bytes) -> None:
        self.serve(archive(self.name, {"deep/file": CONTENT} | contents, *others))

    def serve(self, content: bytes) -> None:
        self.server.archive = content
        self.checksum = hashlib.md5(content).hexdigest()

    def fetch(self) -> list[str]:
        with unpacked(self.url, "md5", self.checksum, self.root) as scratch:
            assert (scratch / "deep" / "file").read_bytes() == CONTENT
            return sorted(os.listdir(scratch))

    def refusal(self) -> str:
        with pytest.raises(DownloadError) as caught:
            self.fetch()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def left(self, content: bytes) -> None:
        """An earlier try left this behind."""
        self.root.mkdir(parents=True)
        self.partial.write_bytes(content)


@pytest.fixture(params=["x.tar.gz", "x.zip"])
def download(request, archive_server, tmp_path) -> Download:
    return Download(archive_server, tmp_path / "deep" / "root", request.param)


@pytest.fixture
def tar(archive_server, tmp_path) -> Download:
    return Download(archive_server, tmp_path, "x.tar.gz")


def test_resumes_after_a_cut_connection_and_leaves_nothing(download):
    download.server.cut_after = 50_000
    size = len(download.server.archive)
    said = download.refusal()
    assert said.startswith(f"{download.url}: ")
    assert f"50000 of {size} bytes" in said
    assert download.partial.stat().st_size == 50_000
    assert download.fetch() == ["deep"]
    assert download.server.requests[-1][1] == "bytes=50000-"
    assert os.listdir(download.root) == []


def test_two_runs_download_once(download):
    home = download.root / "home"

    def fetch() -> None:
        with unpacked(download.url, "md5", download.checksum, download.root) as scratch:
            os.rename(scratch, home)

    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(download_once, home, download.root, fetch) for _ in "ab"]
    assert [run.result() for run in runs] == [None, None]
    assert len(download.server.requests) == 1
    assert (home / "deep" / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("is_complete", [True, False])
def test_what_is_there_is_not_trusted(download, is_complete):
    """A complete download is only unpacked; a server may start over."""
    download.server.knows_ranges = is_complete
    download.left(download.server.archive if is_complete else b"left behind")
    assert download.fetch()


@pytest.mark.parametrize("length", [9, 10**6])
def test_wrong_checksum(download, length):
    download.left(b"x" * length)
    assert download.refusal().startswith(f"{download.url}: expected the published MD5")
    assert os.listdir(download.root) == []
    assert download.fetch()


@pytest.mark.parametrize("says_length", [True, False])
def test_a_server_that_sends_too_much(download, monkeypatch, says_length):
    monkeypatch.setattr("speech.downloads.MAX_ARCHIVE_BYTES", 2000)
    monkeypatch.setattr("speech.downloads.BYTES_PER_READ", 1000)
    download.server.says_length = says_length
    assert "at most 2000 bytes" in download.refusal()
    assert os.listdir(download.root) == []


@pytest.mark.parametrize("sizes", [[10**7], [2 * 10**6] * 5, None])
def test_what_cannot_be_unpacked(download, sizes):
    if sizes is None:
        download.serve(b"not an archive")
    else:
        download.offer(**{f"{i}": bytes(size) for i, size in enumerate(sizes)})
    said = download.refusal()
    assert said.startswith(f"{download.partial}: cannot be unpacked: ")
    assert ("at most 20 times" in said) == (sizes is not None)
    assert os.listdir(download.root) == [download.partial.name]


@pytest.mark.parametrize("status", [404, 416, 503])
def test_http_errors_and_no_server(download, status):
    download.server.status = status
    assert f"{download.url}: expected a file, got HTTP {status}" in download.refusal()
    download.url = "http://127.0.0.1:1/x.zip"
    assert download.refusal().startswith(f"{download.url}: ")


def test_a_python_that_unpacks_unsafely(monkeypatch, download):
    monkeypatch.delattr(tarfile, "data_filter")
    assert download.refusal().startswith("download: expected a Python")
    assert download.server.requests == []


def test_a_file_is_kept_once_it_is_found_sound(archive_server, tmp_path):
    archive_server.archive, url = CONTENT, f"{archive_server.url}/list.txt"
    with pytest.raises(ValueError, match="unsound"), fetched(url, tmp_path):
        raise ValueError("unsound")
    assert os.listdir(tmp_path) == []
    with fetched(url, tmp_path) as partial:
        assert partial.read_bytes() == CONTENT
    archive_server.status = 404
    with pytest.raises(DownloadError, match="got HTTP 404"), fetched(url, tmp_path):
        pass
    assert os.listdir(tmp_path) == ["list.txt"]


def test_escaping_members_of_a_tar_are_refused(tar):
    link = tarfile.TarInfo("deep/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc"
    for member in (tarfile.TarInfo("../../../../escaped"), link):
        tar.offer(member)
        assert tar.refusal().startswith(f"{tar.partial}: cannot be unpacked: ")
        assert os.listdir(tar.root) == [tar.partial.name]
        tar.partial.unlink()


def test_members_without_number(tar):
    tar.offer(*map(tarfile.TarInfo, map(str, range(20_000))))  # six bytes each, packed
    assert tar.refusal().endswith("expected at most 20 times its size")


def test_absolute_members_stay_inside(download, tmp_path):
    outside = str(tmp_path / "outside")
    if download.name == "x.zip":
        download.offer(**{outside: b"x", "../../outside": b"x"})
    else:
        download.offer(tarfile.TarInfo(outside))
    assert len(download.fetch()) > 1
    assert os.listdir(tmp_path) == ["deep"]
    assert os.listdir(download.root) == []
