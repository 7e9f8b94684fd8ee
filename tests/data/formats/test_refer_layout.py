"""Finding the files of a REFER data set, and the messages if one is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.refer_layout import ReferLayout, small_refcoco

from cmsa_fast.data.formats.refer_layout import locate_refer_files
from cmsa_fast.data.images import image_file

IMAGE = "COCO_train2014_000000000007.jpg"


def locate_image(
    root: Path, file_name: str, name: str = "refcoco", split_by: str = "unc", **options: Path
) -> Path:
    folders = locate_refer_files(root, name, split_by, **options).image_folders
    return image_file(folders, file_name).locate()


def test_files_of_a_data_set(tmp_path: Path) -> None:
    root = small_refcoco(tmp_path).write()
    files = locate_refer_files(root, "refcoco", "unc")
    assert files.references == tmp_path / "refcoco" / "refs(unc).p"
    assert files.instances == tmp_path / "refcoco" / "instances.json"
    assert locate_image(root, IMAGE) == tmp_path / "images/mscoco/images/train2014" / IMAGE


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("refcoco", "images/mscoco/images/train2014"),
        ("refcocog", "images/train2014"),
        ("refclef", "images/saiapr_tc-12"),
        ("refclef", "images/saiapr_tc-12/40/images"),
        ("refclef", "images/saiaprtc12/03/images"),
        ("mine", "images/train2014"),
        ("mine", "images/saiaprtc12"),
    ],
)
def test_every_image_folder(tmp_path: Path, name: str, folder: str) -> None:
    layout = ReferLayout(tmp_path, name, "unc" if name != "refcocog" else "umd", folder)
    layout.add_image(1, 5, 7, "1.jpg")
    root = layout.write()
    assert locate_image(root, "1.jpg", name, layout.split_by) == tmp_path / folder / "1.jpg"


def test_image_in_the_second_folder(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    (tmp_path / "images/train2014").mkdir(parents=True)
    (layout.image_folder / IMAGE).rename(tmp_path / "images/train2014" / IMAGE)
    assert locate_image(layout.write(), IMAGE) == tmp_path / "images/train2014" / IMAGE


def test_given_image_folder(tmp_path: Path) -> None:
    layout = ReferLayout(tmp_path, image_folder="photos")
    layout.add_image(7, 5, 3)
    layout.write()
    for name in (IMAGE, f"train2014/{IMAGE}", f"train2014\\{IMAGE}", f"C:\\coco\\{IMAGE}"):
        found = locate_image(tmp_path, name, image_folder=tmp_path / "photos")
        assert found == tmp_path / "photos" / IMAGE
    with pytest.raises(FileNotFoundError, match="absent"):
        locate_refer_files(tmp_path, "refcoco", "unc", image_folder=tmp_path / "absent")


def test_missing_root_says_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        locate_refer_files(tmp_path / "absent", "refcoco+", "unc")
    for word in ("absent", "refcoco+/refs(unc).p", "refcoco+/instances.json", "train2014", "gone"):
        assert word in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"SAIAPR TC-12 in images/saiapr_tc-12"):
        locate_refer_files(tmp_path / "absent", "refclef", "berkeley")


@pytest.mark.parametrize(
    ("removed", "name", "split_by", "message"),
    [
        ("refcoco/refs(unc).p", "refcoco", "unc", r"no file .*refcoco/refs\(unc\)\.p\. .*is gone"),
        ("refcoco/instances.json", "refcoco", "unc", r"no file .*/instances\.json\. .*is gone"),
        ("refcoco", "refcocog", "umd", r"refcocog/refs\(umd\)\.p"),
        ("images", "refcoco", "unc", "images/mscoco/images/train2014 or images/train"),
    ],
)
def test_missing_part_of_a_published_data_set(
    tmp_path: Path, removed: str, name: str, split_by: str, message: str
) -> None:
    root = small_refcoco(tmp_path / "data").write()
    (root / removed).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=message):
        locate_refer_files(root, name, split_by)


def test_unknown_name_lists_the_data_sets(tmp_path: Path) -> None:
    small_refcoco(tmp_path).write()
    ReferLayout(tmp_path, "mine").write()
    with pytest.raises(ValueError, match=r"refcoco, refcoco\+, refcocog, refclef.*mine, refcoco"):
        locate_refer_files(tmp_path, "refcocoplus", "unc")


def test_unknown_split_by_lists_those_that_exist(tmp_path: Path) -> None:
    root = small_refcoco(tmp_path).write()
    (root / "refcoco" / "refs(mine).json").write_text("[]")
    with pytest.raises(ValueError, match=r"'umd' of 'refcoco'.*unc, google.*which has mine, unc"):
        locate_refer_files(tmp_path, "refcoco", "umd")


@pytest.mark.parametrize("value", ["", "..", "a/b", "/etc"])
def test_names_that_are_paths_are_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(ValueError, match="name must be"):
        locate_refer_files(tmp_path, value, "unc")
    with pytest.raises(ValueError, match="split_by must be"):
        locate_refer_files(tmp_path, "refcoco", value)


def test_missing_image_names_the_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"12\.jpg in .*images/mscoco/images/train2014"):
        locate_image(small_refcoco(tmp_path).write(), "12.jpg")


def test_long_lists_of_folders_are_shortened(tmp_path: Path) -> None:
    layout = ReferLayout(tmp_path, "refclef", "unc", "images/saiapr_tc-12/00/images")
    layout.add_image(1, 3, 5, "1.jpg")
    for number in range(1, 41):
        (tmp_path / f"images/saiapr_tc-12/{number:02d}/images").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="39 more folders"):
        locate_image(layout.write(), "2.jpg", "refclef")


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "..\\secret.jpg", "/etc/passwd", "a/../../b.jpg", "\\etc\\passwd", ""]
)
def test_image_names_stay_inside_the_folder(tmp_path: Path, name: str) -> None:
    root = small_refcoco(tmp_path).write()
    (tmp_path / "images/mscoco/images/secret.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="not the name of a file"):
        locate_image(root, name)
