"""Tests of downloading collections from a local HTTP server that can fail."""

from __future__ import annotations

import hashlib
import io
import os
import re
import signal
import stat
import threading
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import tyro
from support.faulty_server import Behaviour, Exchange, FaultyServer, broken, status, whole

from cmsa_fast.cli.data_download import CollectionName, DownloadOptions, run_download
from cmsa_fast.data.download import fetch
from cmsa_fast.data.download.catalogue import CATALOGUE, Collection, RemoteFile
from cmsa_fast.data.formats.refer_layout import PUBLISHED_EXPRESSIONS, locate_refer_files

REFS, INSTANCES = bytes(range(256)) * 700, b'{"images": []}' * 333


def zipped(files: Mapping[str | zipfile.ZipInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


MEMBERS: dict[str | zipfile.ZipInfo, bytes] = {
    "refcoco/": b"",
    "refcoco/refs(unc).p": REFS,
    "refcoco/instances.json": INSTANCES,
    "__MACOSX/refcoco/._refs(unc).p": b"junk",
}
ARCHIVE = zipped(MEMBERS)
OTHER = zipped(MEMBERS | {"refcoco/refs(unc).p": REFS[::-1]})
HALF = len(ARCHIVE) // 2


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetch, "_TIMEOUT", 0.3)
    with FaultyServer() as running:
        yield running


def catalogue(url: str, content: bytes | None = ARCHIVE) -> dict[str, Collection]:
    """RefCOCO's annotations at this URL, with the size and checksum of `content`."""
    file = RemoteFile(name="refcoco.zip", url=url)
    if content is not None:
        file = replace(file, size=len(content), sha256=hashlib.sha256(content).hexdigest())
    return {"refcoco": replace(CATALOGUE["refcoco"], files=(file,))}


def download(root: Path, known: Mapping[str, Collection], **options: Any) -> str:
    return run_download(DownloadOptions(root=root, **{"name": "refcoco"} | options), known)


def files_under(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def assert_complete(root: Path) -> None:
    """The annotations are equal to the served ones, and no other file or folder is left."""
    assert files_under(root) == {"refcoco/refs(unc).p", "refcoco/instances.json"}
    assert (root / "refcoco/refs(unc).p").read_bytes() == REFS
    assert (root / "refcoco/instances.json").read_bytes() == INSTANCES
    assert [path.name for path in root.iterdir()] == ["refcoco"]


@pytest.mark.parametrize("content", [None, ARCHIVE], ids=["without checksum", "with checksum"])
def test_download_verifies_and_unpacks(tmp_path: Path, server: FaultyServer, content: bytes | None) -> None:
    server.add("/there.zip", whole(ARCHIVE))
    url = server.add("/refcoco.zip", status(302, Location="/there.zip"))
    report = download(tmp_path, catalogue(url, content))
    assert_complete(tmp_path)
    assert f"refcoco.zip: {url}" in report
    server.requests.clear()
    assert "is complete; nothing to download" in download(tmp_path, catalogue(url, content))
    assert not server.requests


def encrypted() -> bytes:
    """An archive with the flag for encryption in its directory."""
    return re.sub(rb"(PK\x01\x02.{4}).", rb"\1" + b"\x01", ARCHIVE, flags=re.DOTALL)


LINK = zipfile.ZipInfo("refcoco/link")
LINK.create_system, LINK.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
FAULTS: dict[str, tuple[Behaviour, type[Exception], str]] = {
    "404": (status(404), ConnectionError, "HTTP Error 404"),
    "503": (status(503), ConnectionError, "HTTP Error 503"),
    "local file": (status(302, Location="file:///etc/passwd"), ConnectionError, "HTTP Error 302"),
    "not HTTP": (lambda exchange: exchange.wfile.write(b"what?\r\n\r\n"), ConnectionError, "what?"),
    "connection closed before the answer": (lambda _: None, ConnectionError, "closed connection"),
    "stalled before the answer": (
        lambda exchange: exchange.server_state.closing.wait(5),
        ConnectionError,
        "timed out",
    ),
    "stalled in the file": (broken(ARCHIVE, HALF, stall=True), ConnectionError, "timed out"),
    "connection closed in the file": (broken(ARCHIVE, HALF), ValueError, "not a zip file"),
    "web page": (whole(b"<!DOCTYPE html>", Content_Type="text/html"), ValueError, "not a zip file"),
    "wrong byte": (
        whole(ARCHIVE[:HALF] + bytes([ARCHIVE[HALF] ^ 1]) + ARCHIVE[HALF + 1 :]),
        ValueError,
        "Bad CRC-32",
    ),
    "file missing": (
        whole(zipped({"refcoco/instances.json": INSTANCES})),
        ValueError,
        r"not RefCOCO, annotations: refs\(unc\).p missing",
    ),
    "empty archive": (whole(zipped({})), ValueError, "contains no files"),
    "encrypted archive": (whole(encrypted()), ValueError, "encrypted"),
    "link": (whole(zipped(MEMBERS | {LINK: b"/etc/passwd"})), ValueError, "symbolic link"),
} | {
    name: (whole(zipped(MEMBERS | {name: b"x"})), ValueError, "outside the folder")
    for name in ("../up", "refcoco/../../up", "/up", "refcoco\\..\\up", "C:/up")
}


@pytest.mark.parametrize("fault", FAULTS)
def test_failed_download_leaves_nothing(tmp_path: Path, server: FaultyServer, fault: str) -> None:
    behaviour, kind, reason = FAULTS[fault]
    root = tmp_path / "deep" / "root"
    url = server.add("/refcoco.zip", behaviour)
    with pytest.raises(kind, match=reason) as caught:
        download(root, catalogue(url, None))
    message = str(caught.value)
    archive = root / "downloads" / "refcoco" / "refcoco.zip"
    assert f"`curl -fL -C - --create-dirs -o {archive} {url}`, then this command again" in message
    assert f"put instances.json and refs(unc).p into {root / 'refcoco'}" in message
    assert not list(root.rglob("*"))
    assert files_under(tmp_path) == set()
    server.add("/refcoco.zip", whole(ARCHIVE))
    download(root, catalogue(url, None))
    assert_complete(root)


@pytest.mark.parametrize("served", [OTHER, ARCHIVE[:HALF]], ids=["same size", "truncated"])
def test_file_that_differs_from_the_published_one_is_refused(
    tmp_path: Path, server: FaultyServer, served: bytes
) -> None:
    url = server.add("/refcoco.zip", whole(served))
    problem = f"has {len(served)} bytes, expected {len(ARCHIVE)}"
    if len(served) == len(ARCHIVE):
        actual, expected = (hashlib.sha256(content).hexdigest() for content in (served, ARCHIVE))
        problem = f"has the SHA-256 {actual}, expected {expected}"
    with pytest.raises(ValueError, match=f"refcoco.zip from {url} {problem}"):
        download(tmp_path, catalogue(url))
    assert not list(tmp_path.iterdir())


def test_ctrl_c_leaves_nothing(tmp_path: Path, server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_TIMEOUT", 20.0)
    begin = broken(ARCHIVE, HALF, stall=True)

    def interrupted(exchange: Exchange) -> None:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        begin(exchange)

    url = server.add("/refcoco.zip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download(tmp_path, catalogue(url))
    assert not list(tmp_path.iterdir())
    server.add("/refcoco.zip", whole(ARCHIVE))
    download(tmp_path, catalogue(url))
    assert_complete(tmp_path)


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path, server: FaultyServer) -> None:
    for name in (".refcoco.unfinished-0/refs(unc).p", "downloads/refcoco/refcoco.zip.part.0"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "refcoco").mkdir()  # empty
    download(tmp_path, catalogue(server.add("/refcoco.zip", whole(ARCHIVE))))
    assert_complete(tmp_path)


def test_file_put_there_by_hand_is_verified_used_and_kept(tmp_path: Path, server: FaultyServer) -> None:
    known = catalogue(server.add("/refcoco.zip", whole(ARCHIVE)))
    path = tmp_path / "downloads/refcoco/refcoco.zip"
    path.parent.mkdir(parents=True)
    path.write_bytes(OTHER)
    with pytest.raises(ValueError, match=rf"refcoco.zip from {path} has the SHA-256"):
        download(tmp_path, known)
    assert files_under(tmp_path) == {"downloads/refcoco/refcoco.zip"}
    path.write_bytes(ARCHIVE)
    assert f"refcoco.zip: {path}" in download(tmp_path, known)
    assert (tmp_path / "refcoco/refs(unc).p").read_bytes() == REFS
    assert path.read_bytes() == ARCHIVE
    assert not server.requests


def test_incomplete_folder_is_not_changed(tmp_path: Path, server: FaultyServer) -> None:
    known = catalogue(server.add("/refcoco.zip", whole(ARCHIVE)))
    (tmp_path / "refcoco").mkdir()
    (tmp_path / "refcoco/instances.json").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"refcoco exists, but is not .*: refs\(unc\).p missing"):
        download(tmp_path, known)
    assert files_under(tmp_path) == {"refcoco/instances.json"}
    assert (tmp_path / "refcoco/instances.json").read_bytes() == b"mine"
    assert not server.requests


def test_images_in_the_other_usual_folder_are_recognised(tmp_path: Path) -> None:
    folder = tmp_path / "images/train2014"
    folder.mkdir(parents=True)
    (folder / "a.jpg").touch()
    (folder / "b.JPG").touch()
    coco = replace(CATALOGUE["coco-train2014"], images=2)
    report = download(tmp_path, {"coco-train2014": coco}, name="coco-train2014")
    assert f"{folder} is complete" in report
    with pytest.raises(ValueError, match="2 of 3 images"):
        download(tmp_path, {"coco-train2014": replace(coco, images=3)}, name="coco-train2014")


def test_folders_of_saiapr_are_kept_and_images_counted(tmp_path: Path, server: FaultyServer) -> None:
    content = zipped({f"saiapr_tc-12/{n}/images/{n}1.jpg": b"x" for n in ("00", "07", "40")})
    url = server.add("/saiapr_tc-12.zip", whole(content))
    file = replace(CATALOGUE["saiapr"].files[0], url=url)
    known = {"saiapr": replace(CATALOGUE["saiapr"], files=(file,), images=3)}
    download(tmp_path, known, name="saiapr", keep_archive=True)
    assert (tmp_path / "images/saiapr_tc-12/07/images/071.jpg").is_file()
    assert (tmp_path / "downloads/saiapr/saiapr_tc-12.zip").read_bytes() == content


def test_collection_of_two_files(tmp_path: Path, server: FaultyServer) -> None:
    contents = {"instances.json": b"{}", "grefs(unc).json": b'[{"a": 1}]'}
    files = tuple(
        RemoteFile(
            name=name, url=server.add(f"/own/{name}", whole(content)), sha256=hashlib.sha256(content).hexdigest()
        )
        for name, content in contents.items()
    )
    known = {"grefcoco": replace(CATALOGUE["grefcoco"], files=files)}
    server.add("/own/grefs(unc).json", whole(b"other"))
    with pytest.raises(ValueError, match=r"grefs\(unc\).json from .* has the SHA-256"):
        download(tmp_path, known, name="grefcoco")
    assert not list(tmp_path.iterdir())
    server.add("/own/grefs(unc).json", whole(contents["grefs(unc).json"]))
    download(tmp_path, known, name="grefcoco")
    assert files_under(tmp_path) == {f"grefcoco/{name}" for name in contents}
    assert (tmp_path / "grefcoco/grefs(unc).json").read_bytes() == contents["grefs(unc).json"]


def test_insufficient_disk_space_is_reported_before(tmp_path: Path, server: FaultyServer) -> None:
    known = catalogue(server.add("/refcoco.zip", whole(ARCHIVE)))
    file = replace(known["refcoco"].files[0], size=10**18)
    with pytest.raises(OSError, match=r"needs 2000000\.0 TB of free space, but has"):
        download(tmp_path, {"refcoco": replace(known["refcoco"], files=(file,))})
    assert not server.requests


def test_second_process_is_refused(tmp_path: Path, server: FaultyServer) -> None:
    fcntl = pytest.importorskip("fcntl")
    folder = tmp_path / "downloads/refcoco"
    folder.mkdir(parents=True)
    known = catalogue(server.add("/refcoco.zip", whole(ARCHIVE)))
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            download(tmp_path, known)
        assert folder.is_dir()
    finally:
        os.close(descriptor)
    download(tmp_path, known)
    assert_complete(tmp_path)


@pytest.mark.parametrize("mirror", ["/own", "/own/", "/own/copy.zip?token=1"])
def test_mirror_replaces_the_published_url(tmp_path: Path, server: FaultyServer, mirror: str) -> None:
    path = mirror if "zip" in mirror else "/own/refcoco.zip"
    content = zipped({"refs(unc).p": REFS, "instances.json": INSTANCES})
    base = server.add(path, whole(content)).removesuffix(path)
    known = catalogue(f"{base}/published.zip")
    with pytest.raises(ValueError, match="--repacked accepts other versions"):
        download(tmp_path, known, mirror=base + mirror)
    download(tmp_path, known, mirror=base + mirror, repacked=True)
    assert_complete(tmp_path)
    assert server.requests == [path, path]


@pytest.mark.parametrize("mirror", ["file:///etc/passwd", "ftp://host/a.zip", "/home/me", "http://"])
def test_mirror_must_be_an_http_url(tmp_path: Path, mirror: str) -> None:
    with pytest.raises(ValueError, match="mirror must be an http or https URL"):
        download(tmp_path, CATALOGUE, mirror=mirror)
    with pytest.raises(ValueError, match=r"the folder with grefs\(unc\).json and instances.json"):
        download(tmp_path, CATALOGUE, name="grefcoco", mirror="https://host/instances.json")
    assert not list(tmp_path.iterdir())


def test_dry_run_writes_and_requests_nothing(tmp_path: Path, server: FaultyServer) -> None:
    url = server.add("/refcoco.zip", whole(ARCHIVE))
    known = catalogue(url) | {"coco-train2014": CATALOGUE["coco-train2014"]}
    root = tmp_path / "root"
    report = download(root, known, dry_run=True)
    images = f"The images are missing: cmsa-fast data download coco-train2014 --root {root}"
    for part in (f"refcoco.zip (184.3 kB): {url}", str(root / "refcoco"), "curl -fL -C -", images):
        assert part in report
    assert not server.requests
    assert not root.exists()


def test_options_on_the_command_line() -> None:
    assert tyro.cli(DownloadOptions, args=["refcoco+"]) == DownloadOptions(name="refcoco+")
    words = ["grefcoco", "--root", "/d", "--mirror", "http://m/g", "--dry-run", "--repacked"]
    assert tyro.cli(DownloadOptions, args=words) == DownloadOptions(
        name="grefcoco", root=Path("/d"), mirror="http://m/g", dry_run=True, repacked=True
    )


def test_published_catalogue_is_consistent() -> None:
    assert set(CATALOGUE) == set(get_args(CollectionName))
    for collection in CATALOGUE.values():
        for file in collection.files:
            assert Path(file.name).suffix in (".zip", ".json")
            assert file.url.startswith(("https://", "http://images.cocodataset.org/"))
            assert "web.archive.org" not in file.url or "id_/http" in file.url
            if file.sha256 is not None:
                assert len(bytes.fromhex(file.sha256)) == 32
        assert collection.needs is None or collection.needs in CATALOGUE


@pytest.mark.parametrize("name", PUBLISHED_EXPRESSIONS)
def test_reader_finds_what_the_download_creates(tmp_path: Path, name: str) -> None:
    annotations = CATALOGUE[name]
    images = CATALOGUE[annotations.needs or ""]
    for folder in (*annotations.folders, *images.folders):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for file in annotations.required:
        (tmp_path / annotations.folders[0] / file).touch()
    files = locate_refer_files(tmp_path, name, "umd" if name == "refcocog" else "unc")
    assert tmp_path / images.folders[0] in files.image_folders
