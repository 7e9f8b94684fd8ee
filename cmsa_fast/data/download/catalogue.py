"""Where the referring data sets can be had, and where their files belong.

These are published addresses: those of the authors, and the copies in the Internet Archive that the
data sets' users name to each other since the server of REFER went away in 2022 (lichengunc/refer,
issues 14, 15, 22 and 26). In an address of the Internet Archive, `id_` behind the date asks for the
bytes as they were stored. A checksum stands here only where somebody published it; the comment says
who.
"""

from __future__ import annotations

from collections.abc import Collection as Names
from collections.abc import Mapping
from dataclasses import dataclass

_REFER = "bvisionweb1.cs.unc.edu/licheng/referit/data"
_GREFCOCO = (
    "https://huggingface.co/datasets/FudanCVL/gRefCOCO/resolve/"
    "81eede59b3ac070049f597d023c0ff08d1fb80e9"
)
_COCO_PLACES = ("images/mscoco/images/train2014", "images/train2014")
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One file to fetch.

    Attributes:
        name: Its name; ends in .zip (unpacked) or .json (taken as it is).
        addresses: Where it lies, in the order they are tried.
        size: In bytes; None where nobody published it.
        sha256: Hexadecimal; None where nobody published it.
    """

    name: str
    addresses: tuple[str, ...]
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Records or images that fill one folder.

    Attributes:
        title: What it is, for people.
        files: What to fetch for it.
        places: Folders under the root where it may lie; it is put into the first.
        required: Names of files that the folder must hold.
        images: The least number of images that it must hold, in folders of any depth.
        needs: The collection with its images; None for images.
        by_hand: Where else it can be had, with a browser.
    """

    title: str
    files: tuple[RemoteFile, ...]
    places: tuple[str, ...]
    required: tuple[str, ...] = ()
    images: int = 0
    needs: str | None = None
    by_hand: str

    def lack(self, names: Names[str]) -> str | None:
        """What is missing among the files of a folder.

        Args:
            names: Paths of the files relative to the folder, with forward slashes.

        Returns:
            "it lacks refs(unc).p" or the like; None where nothing is missing.
        """
        missing = [name for name in self.required if name not in names]
        if missing:
            return f"it lacks {', '.join(missing)}"
        images = self.count_images(names)
        if images < self.images:
            return f"it has {images} images of at least {self.images}"
        return None

    @staticmethod
    def count_images(names: Names[str]) -> int:
        """How many of the files are images."""
        return sum(name.lower().endswith(_IMAGE_SUFFIXES) for name in names)


def _archived(name: str, date: str, scheme: str = "https") -> tuple[str, ...]:
    original = f"{scheme}://{_REFER}/{name}"
    return (f"https://web.archive.org/web/{date}id_/{original}", original)


_ISSUES = "github.com/lichengunc/refer/issues/14 collects copies"

# Sizes and SHA-256 of refcoco.zip, refcoco+.zip and refcocog.zip: datasets.md of the repository
# TarunTomar122/attention-is-all-you-need-for-vlms; evaluation notes in other repositories have the
# same. Of train2014.zip: torchvision/prototype/datasets/_builtin/coco.py of pytorch/vision; the
# size is what the server answers (in many published logs), and the number of images is COCO's. Of
# gRefCOCO: what users of that revision recorded (schema arrow.grefcoco.dataset_manifest/v1).
CATALOGUE: Mapping[str, Collection] = {
    "refcoco": Collection(
        title="RefCOCO, the records",
        files=(
            RemoteFile(
                name="refcoco.zip",
                addresses=_archived("refcoco.zip", "20220413011718"),
                size=53_993_993,
                sha256="7f924bb7ed8dc4568058e4ff626281918d56e5206f4c868c5a80f088f38c8bf0",
            ),
        ),
        places=("refcoco",),
        required=("instances.json", "refs(unc).p"),
        needs="coco-train2014",
        by_hand=f"{_ISSUES}, kaggle.com/datasets/lhhhhl/refcoco-and-refcoco is one",
    ),
    "refcoco+": Collection(
        title="RefCOCO+, the records",
        files=(
            RemoteFile(
                name="refcoco+.zip",
                addresses=_archived("refcoco+.zip", "20220413011656"),
                size=45_613_210,
                sha256="5f1238112d63199e68da54a28f201471909b21ded7ed79a57d51b4c1443c6b45",
            ),
        ),
        places=("refcoco+",),
        required=("instances.json", "refs(unc).p"),
        needs="coco-train2014",
        by_hand=f"{_ISSUES}, kaggle.com/datasets/lhhhhl/refcoco-and-refcoco is one",
    ),
    "refcocog": Collection(
        title="RefCOCOg, the records",
        files=(
            RemoteFile(
                name="refcocog.zip",
                addresses=_archived("refcocog.zip", "20220413012904"),
                size=56_712_951,
                sha256="3d1f7e5b2ff2205940bf59de55f861f5f2cc1403fb980669933a7f9af1aa8211",
            ),
        ),
        places=("refcocog",),
        required=("instances.json", "refs(umd).p"),
        needs="coco-train2014",
        by_hand=_ISSUES,
    ),
    "refclef": Collection(
        title="RefCLEF, the records",
        files=(
            RemoteFile(name="refclef.zip", addresses=_archived("refclef.zip", "20220413011817")),
        ),
        places=("refclef",),
        required=("instances.json", "refs(unc).p"),
        needs="saiapr",
        by_hand=_ISSUES,
    ),
    "grefcoco": Collection(
        title="gRefCOCO, the records",
        files=(
            RemoteFile(
                name="grefs(unc).json",
                addresses=(f"{_GREFCOCO}/grefs(unc).json",),
                sha256="cc37c5ff95373c78a6a3f98b4c7bc67fde387ea8514752a1392db64223eb3366",
            ),
            RemoteFile(
                name="instances.json",
                addresses=(f"{_GREFCOCO}/instances.json",),
                sha256="7f86adb7f4c39db19c7f02a3cc604d17f8016e4c4e8312652d0acc4eae3a2cbd",
            ),
        ),
        places=("grefcoco",),
        required=("grefs(unc).json", "instances.json"),
        needs="coco-train2014",
        by_hand="github.com/henghuiding/gRefCOCO links to the authors' copies",
    ),
    "coco-train2014": Collection(
        title="COCO train2014, the images of RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO",
        files=(
            RemoteFile(
                name="train2014.zip",
                addresses=("http://images.cocodataset.org/zips/train2014.zip",),
                size=13_510_573_713,
                sha256="ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
            ),
        ),
        places=_COCO_PLACES,
        images=82_783,
        by_hand="cocodataset.org/#download offers it as 2014 Train images",
    ),
    "saiapr": Collection(
        title="SAIAPR TC-12, the images of RefCLEF",
        files=(
            RemoteFile(
                name="saiapr_tc-12.zip",
                addresses=_archived("images/saiapr_tc-12.zip", "20220515000000", "http"),
            ),
        ),
        places=("images/saiapr_tc-12", "images/saiaprtc12"),
        images=1,  # REFER speaks of 19 997; nobody published a count of the archive itself
        by_hand="imageclef.org/SIAPRdata describes the full set",
    ),
}
