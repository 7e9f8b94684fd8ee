"""Where a REFER data set is looked for, and what is said where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.refer_layout import ReferLayout, small_refcoco

from cmsa_fast.data.formats.refer_layout import locate_refer_files

IMAGE = "COCO_train2014_000000000007.jpg"


def test_the_files_of_a_data_set(tmp_path: Path) -> None:
    files = locate_refer_files(small_refcoco(tmp_path).write(), "refcoco", "unc")
    assert files.references == tmp_path / "refcoco" / "refs(unc).p"
    assert files.instances == tmp_path / "refcoco" / "instances.json"
    assert files.image(IMAGE) == tmp_path / "images/mscoco/images/train2014" / IMAGE


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("refcoco", "images/mscoco/images/train2014"),
        ("refcocog", "images/train2014"),
        ("refclef", "images/saiapr_tc-12"),
        ("refclef", "images/saiapr_tc-12/00/images"),
        ("refclef", "images/saiapr_tc-12/40/images"),
        ("refclef", "images/saiaprtc12"),
        ("refclef", "images/saiaprtc12/03/images"),
        ("mine", "images/train2014"),
        ("mine", "images/saiaprtc12"),
    ],
)
def test_every_place_of_the_images(tmp_path: Path, name: str, folder: str) -> None:
    layout = ReferLayout(tmp_path, name, "unc" if name != "refcocog" else "umd", folder)
    layout.add_image(1, 5, 7, "1.jpg")
    files = locate_refer_files(layout.write(), name, layout.split_by)
    assert files.image("1.jpg") == tmp_path / folder / "1.jpg"


def test_a_image_may_lie_in_the_second_folder(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    (tmp_path / "images/train2014").mkdir(parents=True)
    moved = layout.image_folder / IMAGE
    moved.rename(tmp_path / "images/train2014" / IMAGE)
    files = locate_refer_files(layout.write(), "refcoco", "unc")
    assert files.image(IMAGE) == tmp_path / "images/train2014" / IMAGE


def test_a_image_folder_of_ones_own(tmp_path: Path) -> None:
    layout = ReferLayout(tmp_path, image_folder="photos")
    layout.add_image(7, 5, 3)
    layout.write()
    files = locate_refer_files(tmp_path, "refcoco", "unc", image_folder=str(tmp_path / "photos"))
    assert files.image(IMAGE) == tmp_path / "photos" / IMAGE
    assert files.image(f"train2014/{IMAGE}") == tmp_path / "photos" / IMAGE
    with pytest.raises(FileNotFoundError, match="absent"):
        locate_refer_files(tmp_path, "refcoco", "unc", image_folder=tmp_path / "absent")


def test_a_missing_root_says_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        locate_refer_files(tmp_path / "absent", "refcoco+", "unc")
    for word in ("absent", "refcoco+/refs(unc).p", "refcoco+/instances.json", "train2014", "gone"):
        assert word in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"SAIAPR TC-12 in images/saiapr_tc-12"):
        locate_refer_files(tmp_path / "absent", "refclef", "berkeley")


@pytest.mark.parametrize("file", ["refs(unc).p", "instances.json"])
def test_a_missing_file_of_a_published_set(tmp_path: Path, file: str) -> None:
    small_refcoco(tmp_path).write()
    (tmp_path / "refcoco" / file).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        locate_refer_files(tmp_path, "refcoco", "unc")
    assert f"there is no file {tmp_path / 'refcoco' / file}" in str(caught.value)
    assert "gone" in str(caught.value)


def test_a_published_set_whose_folder_is_missing(tmp_path: Path) -> None:
    small_refcoco(tmp_path).write()
    with pytest.raises(FileNotFoundError, match=r"refcocog/refs\(umd\)\.p"):
        locate_refer_files(tmp_path, "refcocog", "umd")


def test_no_folder_of_images(tmp_path: Path) -> None:
    ReferLayout(tmp_path).write()
    with pytest.raises(FileNotFoundError, match="images/mscoco/images/train2014 or images/train"):
        locate_refer_files(tmp_path, "refcoco", "unc")


def test_an_unknown_name_lists_what_there_is(tmp_path: Path) -> None:
    small_refcoco(tmp_path).write()
    ReferLayout(tmp_path, "mine").write()
    with pytest.raises(ValueError, match=r"refcoco, refcoco\+, refcocog, refclef.*mine, refcoco"):
        locate_refer_files(tmp_path, "refcocoplus", "unc")


def test_an_unknown_split_by_lists_what_there_is(tmp_path: Path) -> None:
    small_refcoco(tmp_path).write()
    with pytest.raises(ValueError, match=r"'umd' of 'refcoco'.*unc, google.*which has unc"):
        locate_refer_files(tmp_path, "refcoco", "umd")


@pytest.mark.parametrize("value", ["", "..", "a/b", "/etc"])
def test_names_that_are_paths_are_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(ValueError, match="name must be"):
        locate_refer_files(tmp_path, value, "unc")
    with pytest.raises(ValueError, match="split_by must be"):
        locate_refer_files(tmp_path, "refcoco", value)


def test_a_missing_image_says_where_it_was_looked_for(tmp_path: Path) -> None:
    files = locate_refer_files(small_refcoco(tmp_path).write(), "refcoco", "unc")
    with pytest.raises(FileNotFoundError, match=r"12\.jpg in .*images/mscoco/images/train2014"):
        files.image("12.jpg")


def test_many_folders_are_not_all_listed(tmp_path: Path) -> None:
    layout = ReferLayout(tmp_path, "refclef", "unc", "images/saiapr_tc-12/00/images")
    layout.add_image(1, 3, 5, "1.jpg")
    for number in range(1, 41):
        (tmp_path / f"images/saiapr_tc-12/{number:02d}/images").mkdir(parents=True)
    files = locate_refer_files(layout.write(), "refclef", "unc")
    with pytest.raises(FileNotFoundError, match="39 more folders"):
        files.image("2.jpg")


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "a/../../b.jpg", ""])
def test_image_names_stay_inside_the_folder(tmp_path: Path, name: str) -> None:
    files = locate_refer_files(small_refcoco(tmp_path).write(), "refcoco", "unc")
    (files.image_folders[0].parent / "secret.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="not the name of a file"):
        files.image(name)
