"""URLs, checksums and target folders of the published data sets.

The server of REFER has been offline since 2022; its archives are fetched from the Internet Archive, at the
addresses collected in lichengunc/refer, issues 14, 15, 22 and 26. (`id_` after the date requests the stored
bytes.) A checksum is given only where somebody published one.
"""

from __future__ import annotations

from collections.abc import Collection as Names
from collections.abc import Mapping
from dataclasses import dataclass

from ..formats.refer_layout import COCO_FOLDERS, SAIAPR_FOLDERS


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One file to download; its size in bytes and SHA-256 are None if they are not published."""

    name: str  # a .zip file is unpacked, a .json file is copied
    url: str
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Collection:
    """The annotations or the images of a data set, which fill one folder."""

    title: str
    files: tuple[RemoteFile, ...]
    folders: tuple[str, ...]  # under the root, in which it may be; it is downloaded into the first
    required: tuple[str, ...] = ()  # files that the folder must contain
    images: int = 0  # smallest number of images that it must contain, subfolders included
    needs: str | None = None  # name of the collection with its images
    elsewhere: str  # other places where it can be downloaded with a browser

    def missing(self, names: Names[str]) -> str | None:
        """Says what a folder with the given files lacks, or returns None if it is complete."""
        missing = [name for name in self.required if name not in names]
        if missing:
            return f"{', '.join(missing)} missing"
        images = sum(name.lower().endswith((".jpg", ".jpeg", ".png")) for name in names)
        return f"{images} of {self.images} images" if images < self.images else None


_ARCHIVE = "https://web.archive.org/web/{date}id_/{scheme}://bvisionweb1.cs.unc.edu/licheng/referit/data"
_GREFCOCO = "https://huggingface.co/datasets/FudanCVL/gRefCOCO/resolve/81eede59b3ac070049f597d023c0ff08d1fb80e9"
_ISSUES = "github.com/lichengunc/refer/issues/14 collects copies"
_KAGGLE = f"{_ISSUES}, kaggle.com/datasets/lhhhhl/refcoco-and-refcoco is one"


def _refer(
    name: str,
    title: str,
    *,
    date: str,
    size: int | None = None,
    sha256: str | None = None,
    author: str = "unc",
    needs: str = "coco-train2014",
    elsewhere: str = _ISSUES,
) -> Collection:
    """A data set of REFER, from the Internet Archive's copy of that date."""
    url = f"{_ARCHIVE.format(date=date, scheme='https')}/{name}.zip"
    return Collection(
        title=f"{title}, annotations",
        files=(RemoteFile(name=f"{name}.zip", url=url, size=size, sha256=sha256),),
        folders=(name,),
        required=("instances.json", f"refs({author}).p"),
        needs=needs,
        elsewhere=elsewhere,
    )


# Sizes and SHA-256 of refcoco.zip, refcoco+.zip and refcocog.zip: datasets.md of the repository
# TarunTomar122/attention-is-all-you-need-for-vlms; evaluation notes in other repositories agree.
# train2014.zip: torchvision/prototype/datasets/_builtin/coco.py of pytorch/vision; the size is what the
# server answers (in many published logs), the number of images is COCO's. gRefCOCO: recorded by users of
# that revision (schema arrow.grefcoco.dataset_manifest/v1).
CATALOGUE: Mapping[str, Collection] = {
    "refcoco": _refer(
        "refcoco",
        "RefCOCO",
        date="20220413011718",
        size=53_993_993,
        sha256="7f924bb7ed8dc4568058e4ff626281918d56e5206f4c868c5a80f088f38c8bf0",
        elsewhere=_KAGGLE,
    ),
    "refcoco+": _refer(
        "refcoco+",
        "RefCOCO+",
        date="20220413011656",
        size=45_613_210,
        sha256="5f1238112d63199e68da54a28f201471909b21ded7ed79a57d51b4c1443c6b45",
        elsewhere=_KAGGLE,
    ),
    "refcocog": _refer(
        "refcocog",
        "RefCOCOg",
        date="20220413012904",
        size=56_712_951,
        sha256="3d1f7e5b2ff2205940bf59de55f861f5f2cc1403fb980669933a7f9af1aa8211",
        author="umd",
    ),
    "refclef": _refer("refclef", "RefCLEF", date="20220413011817", needs="saiapr"),
    "grefcoco": Collection(
        title="gRefCOCO, annotations",
        files=(
            RemoteFile(
                name="grefs(unc).json",
                url=f"{_GREFCOCO}/grefs(unc).json",
                sha256="cc37c5ff95373c78a6a3f98b4c7bc67fde387ea8514752a1392db64223eb3366",
            ),
            RemoteFile(
                name="instances.json",
                url=f"{_GREFCOCO}/instances.json",
                sha256="7f86adb7f4c39db19c7f02a3cc604d17f8016e4c4e8312652d0acc4eae3a2cbd",
            ),
        ),
        folders=("grefcoco",),
        required=("grefs(unc).json", "instances.json"),
        needs="coco-train2014",
        elsewhere="github.com/henghuiding/gRefCOCO links to the authors' copies",
    ),
    "coco-train2014": Collection(
        title="COCO train2014, the images of RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO",
        files=(
            RemoteFile(
                name="train2014.zip",
                url="http://images.cocodataset.org/zips/train2014.zip",
                size=13_510_573_713,
                sha256="ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
            ),
        ),
        folders=COCO_FOLDERS,
        images=82_783,
        elsewhere="cocodataset.org/#download offers it as 2014 Train images",
    ),
    "saiapr": Collection(
        title="SAIAPR TC-12, the images of RefCLEF",
        files=(
            RemoteFile(
                name="saiapr_tc-12.zip",
                url=f"{_ARCHIVE.format(date='20220515000000', scheme='http')}/images/saiapr_tc-12.zip",
            ),
        ),
        folders=SAIAPR_FOLDERS,
        images=1,  # REFER reports 19,997; no count of the archive itself was published
        elsewhere="imageclef.org/SIAPRdata describes the full set",
    ),
}
