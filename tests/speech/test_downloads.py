"""Archives from a server on loopback: resumed, checked, and unpacked inside."""

import hashlib
import io
import os
import tarfile
import zipfile

import pytest

from speech.downloads import DownloadError, fetched, unpacked

CONTENT = os.urandom(100_000)


def tar(*others: tarfile.TarInfo, **contents: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in ({"deep/file": CONTENT} | contents).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for other in others:
            archive.addfile(other)
    return packed.getvalue()


def zipped(*names: str, **contents: bytes) -> bytes:
    packed = io.BytesIO()
    contents = {"deep/file": CONTENT} | contents | dict.fromkeys(names, b"x")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
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
    said = download.refusal()
    assert said.startswith(f"{download.url}: ")
    assert f"50000 of {size} bytes" in said
    assert download.partial.stat().st_size == 50_000
    assert download.fetch()
    assert download.server.requests[-1][1] == "bytes=50000-"


@pytest.mark.parametrize("is_complete", [True, False])
def test_what_is_there_is_not_trusted(download, is_complete):
    """A complete download is only unpacked; a server may start over."""
    download.server.knows_ranges = is_complete
    download.root.mkdir(parents=True)
    whole = download.server.archive
    download.partial.write_bytes(whole if is_complete else b"left behind")
    assert download.fetch()


@pytest.mark.parametrize("length", [9, 10**6])
def test_wrong_checksum(download, length):
    download.root.mkdir(parents=True)
    download.partial.write_bytes(b"x" * length)
    assert download.refusal().startswith(f"{download.url}: expected the published MD5")
    assert os.listdir(download.root) == []
    assert download.fetch()


@pytest.mark.parametrize("says_how_much", [True, False])
def test_a_server_that_sends_too_much(download, monkeypatch, says_how_much):
    monkeypatch.setattr("speech.downloads.MAX_ARCHIVE_BYTES", 2000)
    monkeypatch.setattr("speech.downloads.BYTES_PER_READ", 1000)
    download.server.says_length = says_how_much
    assert "at most 2000 bytes" in download.refusal()
    assert os.listdir(download.root) == []


@pytest.mark.parametrize(("members", "size"), [(1, 10**7), (5, 2 * 10**6)])
def test_an_archive_that_unpacks_to_too_much(download, members, size):
    zeros = {f"{number}": bytes(size) for number in range(members)}
    make = zipped if download.url.endswith(".zip") else tar
    download.offer(make(**zeros))
    said = download.refusal()
    assert said.startswith(f"{download.partial}: ")
    assert "at most 20 times" in said
    assert os.listdir(download.root) == [download.partial.name]


@pytest.mark.parametrize("status", [404, 416, 503])
def test_http_errors(download, status):
    download.server.status = status
    assert f"{download.url}: expected a file, got HTTP {status}" in download.refusal()


def test_no_server(download):
    download.url = "http://127.0.0.1:1/x.zip"
    assert download.refusal().startswith(f"{download.url}: ")


def test_no_archive(download):
    download.offer(b"not an archive")
    assert download.refusal().startswith(f"{download.partial}: cannot be unpacked: ")
    assert os.listdir(download.root) == [download.partial.name]


def test_a_python_that_unpacks_unsafely(monkeypatch, download):
    monkeypatch.delattr(tarfile, "data_filter")
    assert download.refusal().startswith("download: expected a Python")
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
