"""Fetching collections from a server that fails in every way it can."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import stat
import threading
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from email.message import Message
from pathlib import Path
from typing import Any, get_args
from urllib.request import Request

import pytest
import tyro
from support.faulty_server import (
    Behaviour,
    Exchange,
    FaultyServer,
    breaking,
    endless,
    redirect,
    status,
    web_page,
    whole,
)
from support.refer_layout import small_refcoco

from cmsa_fast.cli.data_download import (
    CollectionName,
    DownloadOptions,
    DownloadResult,
    format_download,
    run_download,
)
from cmsa_fast.data import load
from cmsa_fast.data.download.catalogue import CATALOGUE, Collection, RemoteFile
from cmsa_fast.data.download.web import RefusedError, SafeRedirects, check_address
from cmsa_fast.data.formats.refer_layout import PUBLISHED_EXPRESSIONS, locate_refer_files

REFS, INSTANCES = bytes(range(256)) * 700, b'{"images": []}' * 333


def zipped(files: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def records_zip(refs: bytes = REFS) -> bytes:
    files = {"refcoco/": b"", "refcoco/refs(unc).p": refs, "refcoco/instances.json": INSTANCES}
    return zipped(files | {"__MACOSX/refcoco/._refs(unc).p": b"junk"}, zipfile.ZIP_STORED)


ARCHIVE = records_zip()
OTHER = records_zip(REFS[::-1])
HALF = len(ARCHIVE) // 2


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with FaultyServer() as running:
        yield running


def catalogue(*addresses: str, content: bytes | None = ARCHIVE) -> dict[str, Collection]:
    """RefCOCO's records at these addresses, with the checksum of `content`."""
    size = None if content is None else len(content)
    digest = None if content is None else hashlib.sha256(content).hexdigest()
    file = RemoteFile(name="refcoco.zip", addresses=addresses, size=size, sha256=digest)
    return {"refcoco": replace(CATALOGUE["refcoco"], files=(file,))}


def download(root: Path, known: Mapping[str, Collection], **options: Any) -> DownloadResult:
    defaults: dict[str, Any] = {"name": "refcoco", "attempts": 4, "timeout": 0.3, "wait": 0.001}
    return run_download(DownloadOptions(root=root, **defaults | options), known)


def files_under(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def assert_complete(root: Path, refs: bytes = REFS) -> None:
    """The records are byte-equal, and nothing else is left anywhere."""
    assert files_under(root) == {"refcoco/refs(unc).p", "refcoco/instances.json"}
    assert (root / "refcoco/refs(unc).p").read_bytes() == refs
    assert (root / "refcoco/instances.json").read_bytes() == INSTANCES
    assert not (root / "downloads").exists()


def assert_nothing_placed(root: Path) -> None:
    """No destination, and outside the downloads folder nothing at all."""
    assert not [name for name in files_under(root) if not name.startswith("downloads/")]
    assert not (root / "refcoco").exists()
    assert not [path for path in root.rglob("*") if ".unfinished-" in path.name]


def test_from_the_mirrors_to_the_first_sample(tmp_path: Path, server: FaultyServer) -> None:
    source, root = tmp_path / "source", tmp_path / "root"
    layout = small_refcoco(source)
    layout.write()
    records = zipped({f"refcoco/{p.name}": p.read_bytes() for p in (source / "refcoco").iterdir()})
    images = zipped(
        {f"train2014/{path.name}": path.read_bytes() for path in layout.image_folder.iterdir()}
    )
    known = catalogue(server.at("/refcoco.zip", whole(records)), content=None)
    file = RemoteFile(
        name="train2014.zip", addresses=(server.at("/zips/train2014.zip", whole(images)),)
    )
    coco = replace(CATALOGUE["coco-train2014"], files=(file,), images=3)
    known["coco-train2014"] = coco
    result = download(root, known)
    assert f"cmsa-fast data download coco-train2014 --root {root}" in format_download(result)
    result = download(root, known, name="coco-train2014")
    assert result.images == 3
    assert result.destination == root / "images/mscoco/images/train2014"
    assert not download(root, known).remains
    dataset = load("refer", root, "train")
    assert len(dataset) == 5
    assert dataset[0].expression == "left cup"


MODIFIED = "Sun, 06 Nov 1994 08:49:37 GMT"
WEAK: dict[str, Any] = {"tag": 'W/"1"', "modified": MODIFIED}
MENDING: dict[str, tuple[list[Behaviour], list[str | None]]] = {
    "the connection drops twice": (
        [breaking(ARCHIVE, 1000), breaking(ARCHIVE, 500), whole(ARCHIVE)],
        [None, "bytes=1000-", "bytes=1500-"],
    ),
    "the server stalls": (
        [breaking(ARCHIVE, HALF, stall=True), whole(ARCHIVE)],
        [None, f"bytes={HALF}-"],
    ),
    "the server stalls before it answers": (
        [lambda exchange: exchange.site.closing.wait(5), whole(ARCHIVE)],
        [None, None],
    ),
    "503, 500 and 429": (
        [status(503, Retry_After=0), status(500), status(429, Retry_After="soon"), whole(ARCHIVE)],
        [None] * 4,
    ),
    "drop, then 503": (
        [breaking(ARCHIVE, HALF), status(503), whole(ARCHIVE)],
        [None, f"bytes={HALF}-", f"bytes={HALF}-"],
    ),
    "an answer that is none": (
        [lambda exchange: exchange.wfile.write(b"what?\r\n\r\n"), whole(ARCHIVE)],
        [None, None],
    ),
    "Range is ignored": (
        [breaking(ARCHIVE, HALF), whole(ARCHIVE, ranges=False)],
        [None, f"bytes={HALF}-"],
    ),
    "a weak entity tag, but a date": (
        [breaking(ARCHIVE, HALF, **WEAK), whole(ARCHIVE, **WEAK)],
        [None, f"bytes={HALF}-"],
    ),
    "another file on resume": (
        [breaking(OTHER, HALF, tag='"0"'), whole(ARCHIVE)],
        [None, f"bytes={HALF}-"],
    ),
    "another file on resume, If-Range is ignored": (
        [breaking(OTHER, HALF, tag='"0"'), whole(ARCHIVE, if_range=False)],
        [None, f"bytes={HALF}-", None],
    ),
    "a shorter file on resume": (
        [
            breaking(ARCHIVE + b"tail", len(ARCHIVE) + 2, tag='"0"'),
            whole(ARCHIVE, if_range=False),
        ],
        [None, f"bytes={len(ARCHIVE) + 2}-", None],
    ),
}


@pytest.mark.parametrize("fault", MENDING)
def test_one_mirror_that_mends(tmp_path: Path, server: FaultyServer, fault: str) -> None:
    """Without a checksum, so that all depends on what the server says of its file."""
    behaviours, ranges = MENDING[fault]
    address = server.at("/data/refcoco.zip", *behaviours)
    result = download(tmp_path, catalogue(address, content=None))
    assert_complete(tmp_path)
    assert server.ranges() == ranges
    assert result.files[0].source == address


def test_without_tag_and_date_only_a_checksum_allows_to_go_on(
    tmp_path: Path, server: FaultyServer
) -> None:
    for content, second in ((None, None), (ARCHIVE, f"bytes={HALF}-")):
        server.requests.clear()
        address = server.at("/a.zip", breaking(ARCHIVE, HALF, tag=None), whole(ARCHIVE, tag=None))
        root = tmp_path / f"root {content is None}"
        download(root, catalogue(address, content=content))
        assert_complete(root)
        assert server.ranges() == [None, second]


def damaged() -> bytes:
    """A zip file with a wrong byte in the middle of a stored file."""
    content = bytearray(ARCHIVE)
    content[HALF] ^= 1
    return bytes(content)


FAILING: dict[str, tuple[Behaviour, str]] = {
    "404": (status(404), "answers 404 Not Found"),
    "403": (status(403), "answers 403 Forbidden"),
    "204": (status(204), "answers 204 No Content"),
    "always 503": (status(503), "answers 503 Service Unavailable; gave up at attempt 4"),
    "always drops at once": (breaking(ARCHIVE, 0), f"broke off after 0 of {len(ARCHIVE)} bytes"),
    "web page": (web_page(), "sends a web page in place of refcoco.zip"),
    "no zip": (whole(b"no zip at all" * 99), "sends something else in place of refcoco.zip"),
    "a tar file named zip": (whole(b"PK and then nothing" * 99), "no whole zip archive"),
    "truncated": (whole(ARCHIVE[:HALF]), "no whole zip archive"),
    "announces less than it has": (
        lambda exchange: exchange.answer(200, ARCHIVE, Content_Length=HALF),
        "no whole zip archive",
    ),
    "announces more than it has": (
        lambda exchange: exchange.answer(200, ARCHIVE, Content_Length=len(ARCHIVE) + 9),
        f"broke off after {len(ARCHIVE)} of {len(ARCHIVE) + 9} bytes",
    ),
    "announces more than any disk has": (
        lambda exchange: exchange.answer(200, ARCHIVE, Content_Length=10**18),
        "sends 1000000.0 TB, but",
    ),
    "a wrong byte": (whole(damaged()), "Bad CRC-32"),
    "lacks a file": (
        whole(zipped({"refcoco/instances.json": INSTANCES})),
        "it lacks refs(unc).p",
    ),
    "compressed on the way": (whole(ARCHIVE, Content_Encoding="gzip"), "encoded (gzip)"),
    "points to a file of this machine": (redirect("file:///etc/passwd"), "answers 302"),
    "points to FTP": (redirect("ftp://127.0.0.1/refcoco.zip"), "redirects from http to ftp"),
    "points to itself": (redirect("/bad.zip"), "answers 302"),
}


@pytest.mark.parametrize("fault", FAILING)
def test_a_mirror_that_fails_for_good(tmp_path: Path, server: FaultyServer, fault: str) -> None:
    """Alone it ends in one line and nothing placed; with another mirror behind it, well."""
    behaviour, reason = FAILING[fault]
    bad = server.at("/bad.zip", behaviour)
    with pytest.raises(ConnectionError) as caught:
        download(tmp_path, catalogue(bad, content=None))
    message = str(caught.value)
    assert f"{bad}: " in message
    assert reason in message
    assert f"Put refcoco.zip into {tmp_path / 'downloads' / 'refcoco'}" in message
    assert f"put instances.json and refs(unc).p into {tmp_path / 'refcoco'}" in message
    assert "\n" not in message
    assert_nothing_placed(tmp_path)
    good = server.at("/good.zip", whole(ARCHIVE))
    result = download(tmp_path, catalogue(bad, good, content=None))
    assert result.files[0].source == good
    assert_complete(tmp_path)


def test_every_mirror_is_named_with_its_reason(tmp_path: Path, server: FaultyServer) -> None:
    gone, page = server.at("/gone.zip", status(410)), server.at("/page.zip", web_page())
    nowhere = "http://no-such-host.invalid/refcoco.zip"
    with pytest.raises(ConnectionError) as caught:
        download(tmp_path, catalogue(gone, page, nowhere), attempts=1)
    for part in (f"{gone}: answers 410", f"{page}: sends a web page", f"{nowhere}: "):
        assert part in str(caught.value)


def test_redirects_are_followed_with_the_range(tmp_path: Path, server: FaultyServer) -> None:
    server.at("/there.zip", breaking(ARCHIVE, HALF), whole(ARCHIVE))
    result = download(
        tmp_path, catalogue(server.at("/here.zip", redirect("/there.zip")), content=None)
    )
    assert_complete(tmp_path)
    assert server.ranges() == [None, None, f"bytes={HALF}-", f"bytes={HALF}-"]
    assert result.files[0].source is not None
    assert result.files[0].source.endswith("/here.zip")


@pytest.mark.parametrize("fault", ["same length", "other length", "no length"])
def test_a_wrong_checksum(tmp_path: Path, server: FaultyServer, fault: str) -> None:
    served = {
        "same length": whole(OTHER),
        "other length": whole(zipped({"refcoco/refs(unc).p": REFS})),
        "no length": endless(ARCHIVE),
    }[fault]
    bad, good = server.at("/bad.zip", served), server.at("/good.zip", whole(ARCHIVE))
    reason = "sends more than the" if fault == "no length" else "not the published"
    with pytest.raises(ConnectionError, match=rf"bad\.zip: .*{reason}"):
        download(tmp_path, catalogue(bad))
    assert_nothing_placed(tmp_path)
    assert not files_under(tmp_path)
    assert len(server.requests) == 1  # the same again would bring the same
    download(tmp_path, catalogue(bad, good))
    assert_complete(tmp_path)


def test_a_run_goes_on_where_the_last_one_stopped(tmp_path: Path, server: FaultyServer) -> None:
    address = server.at("/refcoco.zip", breaking(ARCHIVE, HALF), whole(ARCHIVE))
    with pytest.raises(ConnectionError, match="broke off"):
        download(tmp_path, catalogue(address, content=None), attempts=1)
    assert_nothing_placed(tmp_path)
    download(tmp_path, catalogue(address, content=None), attempts=1)
    assert_complete(tmp_path)
    assert server.ranges() == [None, f"bytes={HALF}-"]


def test_ctrl_c_keeps_what_came(
    tmp_path: Path, server: FaultyServer, caplog: pytest.LogCaptureFixture
) -> None:
    begin = breaking(ARCHIVE, HALF, stall=True)

    def interrupted(exchange: Exchange) -> None:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        begin(exchange)

    known = catalogue(server.at("/refcoco.zip", interrupted, whole(ARCHIVE)), content=None)
    with caplog.at_level("INFO"), pytest.raises(KeyboardInterrupt):
        download(tmp_path, known, timeout=20)
    assert "what came so far is kept" in caplog.text
    assert_nothing_placed(tmp_path)
    download(tmp_path, known)
    assert_complete(tmp_path)
    assert server.ranges() == [None, f"bytes={HALF}-"]


def test_what_one_mirror_began_another_ends(tmp_path: Path, server: FaultyServer) -> None:
    """Only with a checksum: it tells whether both had the same file."""
    first = server.at("/a/refcoco.zip", breaking(ARCHIVE, HALF), status(404))
    second = server.at("/b/refcoco.zip", whole(ARCHIVE, tag='"of another server"'))
    download(tmp_path, catalogue(first, second))
    assert_complete(tmp_path)
    assert server.ranges() == [None, f"bytes={HALF}-", f"bytes={HALF}-"]


def test_a_beginning_of_another_file_is_dropped(tmp_path: Path, server: FaultyServer) -> None:
    first = server.at("/a/refcoco.zip", breaking(OTHER, HALF), status(404))
    second = server.at("/b/refcoco.zip", whole(ARCHIVE))
    download(tmp_path, catalogue(first, second))
    assert_complete(tmp_path)
    assert server.ranges()[2:] == [f"bytes={HALF}-", None]


@pytest.mark.parametrize("content", [None, ARCHIVE])
def test_a_beginning_that_is_the_whole(
    tmp_path: Path, server: FaultyServer, content: bytes | None
) -> None:
    """As a process leaves it that is ended between the last byte and the test."""
    folder = tmp_path / "downloads" / "refcoco"
    folder.mkdir(parents=True)
    (folder / "refcoco.zip.part").write_bytes(ARCHIVE)
    address = server.at("/refcoco.zip", whole(ARCHIVE))
    note = {"address": address, "entity_tag": '"1"', "last_modified": None, "total": len(ARCHIVE)}
    (folder / "refcoco.zip.part.json").write_text(json.dumps(note))
    download(tmp_path, catalogue(address, content=content))
    assert_complete(tmp_path)
    assert not server.requests


def test_progress_forgives_failures(tmp_path: Path, server: FaultyServer) -> None:
    """A large file over a bad line takes more attempts than are allowed in a row."""
    refs = os.urandom(5 << 20)
    archive = records_zip(refs)
    address = server.at("/refcoco.zip", breaking(archive, (1 << 20) + 1))
    download(tmp_path, catalogue(address, content=archive), attempts=2)
    assert_complete(tmp_path, refs)
    assert len(server.requests) == 6


def test_a_wait_that_the_server_asks_for_is_bounded(tmp_path: Path, server: FaultyServer) -> None:
    from cmsa_fast.data.download.fetch import Patience, fetch

    address = server.at("/f.json", status(503, Retry_After=10**6), whole(b"[1]"))
    file = RemoteFile(name="f.json", addresses=(address,))
    patience = Patience(wait=0.001, longest_wait=0.01)
    assert fetch(file, tmp_path, lambda path: None, patience) == address
    assert (tmp_path / "f.json").read_bytes() == b"[1]"


def test_what_is_there_is_left_alone(tmp_path: Path, server: FaultyServer) -> None:
    known = catalogue(server.at("/refcoco.zip", whole(ARCHIVE)))
    download(tmp_path, known)
    before = (tmp_path / "refcoco/refs(unc).p").stat()
    server.requests.clear()
    result = download(tmp_path, known)
    assert result.action == "present"
    assert "left alone" in format_download(result)
    assert not server.requests
    assert (tmp_path / "refcoco/refs(unc).p").stat() == before


def test_an_incomplete_folder_is_left_alone(tmp_path: Path, server: FaultyServer) -> None:
    known = catalogue(server.at("/refcoco.zip", whole(ARCHIVE)))
    (tmp_path / "refcoco").mkdir()
    (tmp_path / "refcoco/instances.json").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"refcoco is not empty, but it lacks refs\(unc\).p"):
        download(tmp_path, known)
    assert files_under(tmp_path) == {"refcoco/instances.json"}
    assert (tmp_path / "refcoco/instances.json").read_bytes() == b"mine"
    assert "is not empty" in format_download(download(tmp_path, known, dry_run=True))
    assert not server.requests


def test_images_in_the_other_usual_folder_count(tmp_path: Path) -> None:
    folder = tmp_path / "images/train2014"
    folder.mkdir(parents=True)
    for name in ("a.jpg", "b.JPG"):
        (folder / name).touch()
    coco = replace(CATALOGUE["coco-train2014"], images=2)
    result = download(tmp_path, {"coco-train2014": coco}, name="coco-train2014")
    assert (result.action, result.destination, result.images) == ("present", folder, 2)
    more = replace(coco, images=3)
    with pytest.raises(ValueError, match="it has 2 images of at least 3"):
        download(tmp_path, {"coco-train2014": more}, name="coco-train2014")


def test_the_folders_of_saiapr_stay(tmp_path: Path, server: FaultyServer) -> None:
    content = zipped({f"saiapr_tc-12/{n}/images/{n}1.jpg": b"x" for n in ("00", "07", "40")})
    address = server.at("/saiapr_tc-12.zip", whole(content))
    file = replace(CATALOGUE["saiapr"].files[0], addresses=(address,))
    known = {"saiapr": replace(CATALOGUE["saiapr"], files=(file,))}
    assert download(tmp_path, known, name="saiapr").images == 3
    assert (tmp_path / "images/saiapr_tc-12/07/images/071.jpg").is_file()


def link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("refcoco/link")
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("member", "complaint"),
    [
        ("../outside", "a path that leads out"),
        ("refcoco/../../outside", "a path that leads out"),
        ("/outside", "a path that leads out"),
        ("refcoco\\..\\outside", "a path that leads out"),
        ("C:/outside", "a path that leads out"),
        (link(), "a link or a device"),
    ],
)
def test_archives_that_reach_out_are_refused(
    tmp_path: Path, server: FaultyServer, member: str | zipfile.ZipInfo, complaint: str
) -> None:
    buffer = io.BytesIO(ARCHIVE)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(member, b"/etc/passwd")
    content = buffer.getvalue()
    root = tmp_path / "deep" / "root"
    for checksum in (None, content):  # a matching checksum makes it no better
        known = catalogue(server.at("/refcoco.zip", whole(content)), content=checksum)
        with pytest.raises((ConnectionError, ValueError), match=complaint):
            download(root, known)
        assert_nothing_placed(root)
        assert not [name for name in files_under(tmp_path) if "outside" in name]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("fault", ["encrypted", "two files of one name"])
def test_archives_that_nobody_can_read(tmp_path: Path, server: FaultyServer, fault: str) -> None:
    if fault == "encrypted":  # by the flag in the archive's list of files
        content = bytearray(ARCHIVE)
        for start in (i for i in range(len(content)) if content.startswith(b"PK\x01\x02", i)):
            content[start + 8] |= 1
        archive = bytes(content)
    else:
        buffer = io.BytesIO(ARCHIVE)
        with zipfile.ZipFile(buffer, "a") as opened:
            opened.writestr("refcoco/refs(unc).p", REFS[::-1])
        archive = buffer.getvalue()
    known = catalogue(server.at("/refcoco.zip", whole(archive)), content=None)
    with pytest.raises(ConnectionError, match=fault):
        download(tmp_path, known)
    assert_nothing_placed(tmp_path)


@pytest.mark.parametrize(("old", "allowed"), [("http", True), ("https", False)])
def test_no_redirect_leads_from_https_to_http(old: str, allowed: bool) -> None:
    asked = Request(f"{old}://a/refcoco.zip", headers={"Range": "bytes=5-"})
    answer = (io.BytesIO(), 302, "Found", Message(), "http://b/refcoco.zip")
    if allowed:
        again = SafeRedirects().redirect_request(asked, *answer)
        assert again.full_url == "http://b/refcoco.zip"
        assert again.get_header("Range") == "bytes=5-"
    else:
        with pytest.raises(RefusedError, match="redirects from https to http"):
            SafeRedirects().redirect_request(asked, *answer)


def test_an_archive_that_cannot_be_unpacked_leaves_nothing(
    tmp_path: Path, server: FaultyServer
) -> None:
    content = damaged()  # its published checksum says so
    known = catalogue(server.at("/refcoco.zip", whole(content)), content=content)
    with pytest.raises(ValueError, match="Bad CRC-32"):
        download(tmp_path, known)
    assert_nothing_placed(tmp_path)


def test_what_an_ended_process_left_is_cleared(tmp_path: Path, server: FaultyServer) -> None:
    left = tmp_path / ".refcoco.unfinished-0"
    left.mkdir()
    (left / "refs(unc).p").write_bytes(b"half")
    (tmp_path / "refcoco").mkdir()  # empty
    download(tmp_path, catalogue(server.at("/refcoco.zip", whole(ARCHIVE))))
    assert_complete(tmp_path)


def test_too_small_a_disk_is_known_before(tmp_path: Path, server: FaultyServer) -> None:
    known = catalogue(server.at("/refcoco.zip", whole(ARCHIVE)))
    file = replace(known["refcoco"].files[0], size=10**18)
    with pytest.raises(OSError, match=r"needs 2000000\.0 TB of free space, but has"):
        download(tmp_path, {"refcoco": replace(known["refcoco"], files=(file,))})
    assert not server.requests
    assert not files_under(tmp_path)


@pytest.mark.parametrize(
    "mirror",
    [
        "file:///etc/passwd",
        "ftp://host/refcoco.zip",
        "/home/me/refcoco.zip",
        "http://",
        "http://host:port/",
        "http://me:secret@host/refcoco.zip",
        "http://host/a b.zip",
        "http://host/\u00e9.zip",
    ],
)
def test_addresses_that_are_refused(tmp_path: Path, mirror: str) -> None:
    with pytest.raises(ValueError, match="address") as caught:
        download(tmp_path, catalogue(), mirror=mirror)
    assert "secret" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["/own", "/own/", "/own/copy.zip?token=secret"])
def test_ones_own_mirror_comes_first(tmp_path: Path, server: FaultyServer, form: str) -> None:
    path = form if "zip" in form else "/own/refcoco.zip"
    base = server.at(path, whole(ARCHIVE)).removesuffix(path)
    result = download(tmp_path, catalogue(f"{base}/published.zip"), mirror=base + form)
    assert_complete(tmp_path)
    assert [path for path, _ in server.requests] == [path]
    assert "secret" not in format_download(result)


def test_a_copy_zipped_anew(tmp_path: Path, server: FaultyServer) -> None:
    content = zipped({"refs(unc).p": REFS, "instances.json": INSTANCES})
    base = server.at("/refcoco.zip", whole(content)).removesuffix("/refcoco.zip")
    with pytest.raises(ConnectionError, match="not the published"):
        download(tmp_path, catalogue(), mirror=base)
    download(tmp_path, catalogue(), mirror=base, repacked=True)
    assert_complete(tmp_path)


def test_a_dry_run_touches_nothing(tmp_path: Path, server: FaultyServer) -> None:
    address = server.at("/refcoco.zip", whole(ARCHIVE))
    root = tmp_path / "root"
    result = download(root, catalogue(address), dry_run=True)
    shown = format_download(result)
    for part in (address, "184.3 kB", str(root / "refcoco"), "Put refcoco.zip into"):
        assert part in shown
    assert result.action == "planned"
    assert not server.requests
    assert not root.exists()


def test_an_archive_put_there_by_hand(tmp_path: Path, server: FaultyServer) -> None:
    known = catalogue(server.at("/refcoco.zip", whole(ARCHIVE)))
    path = tmp_path / "downloads/refcoco/refcoco.zip"
    path.parent.mkdir(parents=True)
    path.write_bytes(OTHER)
    with pytest.raises(ValueError, match=r"refcoco\.zip was there, but .*SHA-256"):
        download(tmp_path, known)
    assert path.read_bytes() == OTHER
    assert_nothing_placed(tmp_path)
    path.write_bytes(ARCHIVE)
    result = download(tmp_path, known)
    assert (tmp_path / "refcoco/refs(unc).p").read_bytes() == REFS
    assert path.read_bytes() == ARCHIVE
    assert f"{path} was kept" in format_download(result)
    assert not server.requests


def test_what_was_fetched_is_kept_on_request(tmp_path: Path, server: FaultyServer) -> None:
    download(tmp_path, catalogue(server.at("/refcoco.zip", whole(ARCHIVE))), keep_archive=True)
    assert (tmp_path / "downloads/refcoco/refcoco.zip").read_bytes() == ARCHIVE


def test_two_processes_do_not_meet(tmp_path: Path, server: FaultyServer) -> None:
    fcntl = pytest.importorskip("fcntl")
    folder = tmp_path / "downloads/refcoco"
    folder.mkdir(parents=True)
    known = catalogue(server.at("/refcoco.zip", whole(ARCHIVE)))
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="another process is at work in"):
            download(tmp_path, known)
        assert folder.is_dir()
    finally:
        os.close(descriptor)
    download(tmp_path, known)
    assert_complete(tmp_path)


def grefcoco(server: FaultyServer, grefs: bytes, instances: bytes) -> dict[str, Collection]:
    contents = (("grefs(unc).json", grefs), ("instances.json", instances))
    files = tuple(
        RemoteFile(name=name, addresses=(server.at(f"/g/{name}", whole(content)),))
        for name, content in contents
    )
    return {"grefcoco": replace(CATALOGUE["grefcoco"], files=files)}


def test_two_files_make_one_folder(tmp_path: Path, server: FaultyServer) -> None:
    download(tmp_path, grefcoco(server, b'[{"a": 1}]', b"{}"), name="grefcoco")
    assert files_under(tmp_path) == {"grefcoco/grefs(unc).json", "grefcoco/instances.json"}
    assert (tmp_path / "grefcoco/grefs(unc).json").read_bytes() == b'[{"a": 1}]'


def test_one_bad_file_of_two_leaves_no_folder(tmp_path: Path, server: FaultyServer) -> None:
    known = grefcoco(server, b'[{"a": 1}]', b'{"images": [')
    with pytest.raises(ConnectionError, match=r"instances\.json: .*no whole JSON file"):
        download(tmp_path, known, name="grefcoco")
    assert not (tmp_path / "grefcoco").exists()
    base = server.at("/mirror/instances.json", whole(b"{}")).removesuffix("/instances.json")
    server.requests.clear()
    download(tmp_path, known, name="grefcoco", mirror=base)
    assert [path for path, _ in server.requests] == ["/mirror/instances.json"]
    assert (tmp_path / "grefcoco/instances.json").read_bytes() == b"{}"
    with pytest.raises(ValueError, match="must be the folder of"):
        download(tmp_path / "new", known, name="grefcoco", mirror=f"{base}/instances.json")


@pytest.mark.parametrize(
    ("option", "value"),
    [("attempts", 0), ("timeout", 0.0), ("timeout", float("nan")), ("wait", -1.0)],
)
def test_options_out_of_range(tmp_path: Path, option: str, value: float) -> None:
    with pytest.raises(ValueError, match=option):
        download(tmp_path, catalogue(), **{option: value})


def test_the_options_as_typed() -> None:
    assert tyro.cli(DownloadOptions, args=["refcoco+"]) == DownloadOptions(name="refcoco+")
    typed = [
        "grefcoco",
        "--root",
        "/d",
        "--mirror",
        "http://m/g",
        "--dry-run",
        "--attempts",
        "2",
        "--timeout",
        "3",
    ]
    assert tyro.cli(DownloadOptions, args=typed) == DownloadOptions(
        name="grefcoco",
        root=Path("/d"),
        mirror="http://m/g",
        dry_run=True,
        attempts=2,
        timeout=3.0,
    )


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "root").touch()
    with pytest.raises(ValueError, match="root must be a folder"):
        download(tmp_path / "root", catalogue())


def test_the_published_catalogue() -> None:
    assert set(CATALOGUE) == set(get_args(CollectionName))
    for name, collection in CATALOGUE.items():
        for file in collection.files:
            assert Path(file.name).suffix in (".zip", ".json")
            assert file.addresses
            for address in file.addresses:
                check_address(address)
                if "web.archive.org" in address:
                    assert "id_/http" in address
            if file.sha256 is not None:
                assert len(bytes.fromhex(file.sha256)) == 32
        assert collection.needs is None or collection.needs in CATALOGUE, name


@pytest.mark.parametrize("name", PUBLISHED_EXPRESSIONS)
def test_the_reader_looks_where_the_download_puts(tmp_path: Path, name: str) -> None:
    records = CATALOGUE[name]
    for place in (*records.places, *CATALOGUE[records.needs or ""].places):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
    for file in records.required:
        (tmp_path / records.places[0] / file).touch()
    split_by = "umd" if name == "refcocog" else "unc"
    files = locate_refer_files(tmp_path, name, split_by)
    assert tmp_path / CATALOGUE[records.needs or ""].places[0] in files.image_folders
