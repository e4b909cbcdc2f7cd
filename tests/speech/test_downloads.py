"""Archives from a server on loopback: resumed, checked, and unpacked inside."""

import hashlib
import io
import os
import tarfile
import zipfile

import pytest

from speech.downloads import DownloadError, fetched, unpacked

CONTENT = os.urandom(100_000)


def tar(*others: tarfile.TarInfo) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        member = tarfile.TarInfo("deep/file")
        member.size = len(CONTENT)
        archive.addfile(member, io.BytesIO(CONTENT))
        for other in others:
            archive.addfile(other)
    return packed.getvalue()


def zipped(*names: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("deep/file", CONTENT)
        for name in names:
            archive.writestr(name, b"x")
    return packed.getvalue()


class Download:
    """An archive that a server offers, and what is fetched of it."""

    def __init__(self, server, root, name: str, archive: bytes) -> None:
        self.server, self.root = server, root
        self.url = f"{server.url}/{name}"
        self.partial = root / f"{name}.partial"
        self.offer(archive)

    def offer(self, archive: bytes) -> None:
        self.server.archive = archive
        self.checksum = hashlib.md5(archive).hexdigest()

    def fetch(self) -> list[str]:
        with unpacked(self.url, "md5", self.checksum, self.root) as scratch:
            assert (scratch / "deep" / "file").read_bytes() == CONTENT
            return sorted(os.listdir(scratch))

    def refusal(self) -> str:
        with pytest.raises(DownloadError) as caught:
            self.fetch()
        assert "\n" not in str(caught.value)
        return str(caught.value)


@pytest.fixture(params=["x.tar.gz", "x.zip"])
def download(request, archive_server, tmp_path) -> Download:
    archive = tar() if request.param == "x.tar.gz" else zipped()
    return Download(archive_server, tmp_path / "deep" / "root", request.param, archive)


def test_nothing_but_what_the_caller_took_is_left(download):
    assert download.fetch() == ["deep"]
    assert os.listdir(download.root) == []


def test_resumes_after_a_cut_connection(download):
    download.server.cut_after = 50_000
    size = len(download.server.archive)
    assert download.refusal() == (
        f"{download.url}: download to {download.partial} stopped: "
        f"closed after 50000 of {size} bytes; the same command resumes"
    )
    assert download.partial.stat().st_size == 50_000
    assert download.fetch()
    assert download.server.requests[-1][1] == "bytes=50000-"


def test_starts_over_where_ranges_are_ignored(download):
    download.server.knows_ranges = False
    download.root.mkdir(parents=True)
    download.partial.write_bytes(b"left behind")
    assert download.fetch()


def test_a_complete_download_is_only_unpacked(download):
    download.root.mkdir(parents=True)
    download.partial.write_bytes(download.server.archive)
    assert download.fetch()


@pytest.mark.parametrize("length", [9, 10**6])
def test_wrong_checksum(download, length):
    download.root.mkdir(parents=True)
    download.partial.write_bytes(b"x" * length)
    assert download.refusal() == (
        f"{download.url}: expected the published MD5, found another; "
        "the download was deleted"
    )
    assert os.listdir(download.root) == []
    assert download.fetch()


@pytest.mark.parametrize("says_how_much", [True, False])
def test_a_server_that_sends_too_much(download, monkeypatch, says_how_much):
    monkeypatch.setattr("speech.downloads.MAX_ARCHIVE_BYTES", 2000)
    monkeypatch.setattr("speech.downloads.BYTES_PER_READ", 1000)
    download.server.says_length = says_how_much
    assert download.refusal() == f"{download.url}: expected at most 2000 bytes"
    assert os.listdir(download.root) == []


@pytest.mark.parametrize(("members", "size"), [(1, 10**7), (5, 2 * 10**6)])
def test_an_archive_that_unpacks_to_too_much(download, members, size):
    packed = io.BytesIO()
    zeros = [bytes(size)] * members
    if download.url.endswith(".zip"):
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for number, content in enumerate(zeros):
                archive.writestr(f"{number}", content)
    else:
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for number, content in enumerate(zeros):
                member = tarfile.TarInfo(f"{number}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    download.offer(packed.getvalue())
    assert download.refusal() == (
        f"{download.partial}: cannot be unpacked: expected at most 20 times its size"
    )
    assert os.listdir(download.root) == [download.partial.name]


@pytest.mark.parametrize("status", [404, 416, 503])
def test_http_errors(download, status):
    download.server.status = status
    expected = f"{download.url}: expected a file, got HTTP {status} "
    assert download.refusal().startswith(expected)


def test_no_server(download):
    download.url = "http://127.0.0.1:1/x.zip"
    said = download.refusal()
    assert " stopped: " in said
    assert said.endswith("; the same command resumes")


def test_no_archive(download):
    download.offer(b"not an archive")
    assert download.refusal().startswith(f"{download.partial}: cannot be unpacked: ")
    assert os.listdir(download.root) == [download.partial.name]


def test_a_python_that_unpacks_unsafely(monkeypatch, download):
    monkeypatch.delattr(tarfile, "data_filter")
    assert download.refusal().startswith("download: expected a Python that unpacks")
    assert download.server.requests == []


def test_a_file_is_kept_once_it_is_found_sound(archive_server, tmp_path):
    archive_server.archive = CONTENT
    url = f"{archive_server.url}/list.txt"
    with pytest.raises(ValueError, match="unsound"), fetched(url, tmp_path):
        raise ValueError("unsound")
    assert os.listdir(tmp_path) == []
    with fetched(url, tmp_path) as partial:
        assert partial.read_bytes() == CONTENT
    assert os.listdir(tmp_path) == ["list.txt"]
    archive_server.status = 404
    with pytest.raises(DownloadError, match="got HTTP 404"), fetched(url, tmp_path):
        pass
    assert os.listdir(tmp_path) == ["list.txt"]


def link() -> tarfile.TarInfo:
    member = tarfile.TarInfo("deep/link")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc"
    return member


@pytest.mark.parametrize("member", [tarfile.TarInfo("../../../../escaped"), link()])
def test_escaping_members_of_a_tar_are_refused(archive_server, tmp_path, member):
    download = Download(archive_server, tmp_path, "x.tar.gz", tar(member))
    assert download.refusal().startswith(f"{download.partial}: cannot be unpacked: ")
    assert os.listdir(tmp_path) == ["x.tar.gz.partial"]


def test_members_without_number(archive_server, tmp_path):
    members = map(tarfile.TarInfo, map(str, range(20_000)))  # six bytes each, packed
    download = Download(archive_server, tmp_path, "x.tar.gz", tar(*members))
    assert download.refusal().endswith("expected at most 20 times its size")


def test_absolute_members_stay_inside(archive_server, tmp_path):
    outside, root = tmp_path / "outside", tmp_path / "root"
    archives = {"x.tar.gz": tar(tarfile.TarInfo(str(outside)))}
    archives["x.zip"] = zipped(str(outside), "../../outside")
    for name, archive in archives.items():
        assert len(Download(archive_server, root, name, archive).fetch()) > 1
        assert os.listdir(tmp_path) == ["root"]
        assert os.listdir(root) == []
