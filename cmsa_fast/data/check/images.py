"""Checks images and masks in worker processes: images exist, can be read, and fit their masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Literal

from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ...system.processes import ignore_interrupts
from ..errors import by
from ..images import ImageFile, read_image_size
from ..masks import MaskSource
from ..types import EmbeddedImage, ImageSource, ObjectMask, Record

ImageFinding = Literal[
    "image-missing",
    "image-unreadable",
    "image-size",
    "image-turned",
    "mask-unfit",
    "mask-outside",
    "mask-empty",
    "mask-part-degenerate",
]
Size = tuple[int, int]

_FEW = 200  # images for which no worker is started
_CHUNK = 32
_TOLERANCE = 2.0  # pixels by which polygons of the published files may exceed the image


@dataclass
class ImageCheck:
    """Result of checking one image and its masks.

    Attributes:
        stored: Height and width in pixels as stored; None if the image was not read.
        upright: Height and width after applying the EXIF orientation; computed only if `stored` does not fit.
        findings: Kind and message, which names file and record, of every finding.
    """

    stored: Size | None = None
    upright: Size | None = None
    findings: list[tuple[ImageFinding, str]] = field(default_factory=list)


def check_images(
    records: Sequence[Record],
    *,
    title: str,
    read: bool = True,
    decode: bool = False,
    num_workers: int = 0,
) -> Iterator[ImageCheck]:
    """Checks every image of some records, and decodes every mask.

    Args:
        records: Records to check.
        title: Title of the progress bar.
        read: Read the images; otherwise masks are decoded at the recorded sizes.
        decode: Decode the images completely; otherwise only the start of each file is read.
        num_workers: Number of worker processes; 0 uses this process. For few images none are started.

    Yields:
        The result for each distinct image, in the order of the records.
    """
    by_image: dict[ImageSource, list[int]] = {}
    for index, record in enumerate(records):
        by_image.setdefault(record.image, []).append(index)
    images = _Images(records, list(by_image.items()), read, decode)
    loader: DataLoader[Any] = DataLoader(
        images,
        batch_size=_CHUNK,
        collate_fn=list,
        num_workers=num_workers if len(images) > _FEW else 0,
        worker_init_fn=ignore_interrupts,
    )
    with tqdm(total=len(images), desc=title, unit="image", dynamic_ncols=True) as bar:
        for checks in loader:
            yield from checks
            bar.update(len(checks))


class _Images(Dataset[ImageCheck]):
    def __init__(
        self,
        records: Sequence[Record],
        images: list[tuple[ImageSource, list[int]]],
        read: bool,
        decode: bool,
    ) -> None:
        self._records, self._images = records, images
        self._read, self._decode = read, decode

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> ImageCheck:
        image, indices = self._images[index]
        records = [self._records[index] for index in indices]
        check = ImageCheck()
        if self._read:
            _check_size(image, records[0].mask_size, self._decode, check)
        reported_sizes: set[Size] = set()
        checked: set[tuple[int, Size | None]] = set()
        for record in records:
            size = record.mask_size or check.stored
            if size is not None and check.stored not in (None, size):
                if size not in reported_sizes:
                    reported_sizes.add(size)
                    check.findings.append(_size_finding(record, check, size))
                if size != check.upright:
                    continue  # its masks belong to another image
            for mask in record.objects:
                if (id(mask), size) not in checked:  # references may share an object
                    checked.add((id(mask), size))
                    check.findings += _mask_findings(mask, record, size, check.stored is not None)
        return check


def _check_size(image: ImageSource, expected: Size | None, decode: bool, check: ImageCheck) -> None:
    try:
        check.stored = check.upright = _size(image, decode, apply_orientation=False)
        if expected not in (None, check.stored):
            check.upright = _size(image, decode, apply_orientation=True)
    except FileNotFoundError as error:
        check.findings.append(("image-missing", str(error)))
    except (ValueError, OSError) as error:
        check.stored = check.upright = None
        check.findings.append(("image-unreadable", str(error)))


def _size(image: ImageSource, decode: bool, *, apply_orientation: bool) -> Size:
    if isinstance(image, ImageFile) and not decode:
        return read_image_size(image.locate(), apply_orientation=apply_orientation)
    if isinstance(image, EmbeddedImage) and not decode:
        stream = BytesIO(image.read_bytes())
        stream.name = image.name
        return read_image_size(stream, apply_orientation=apply_orientation)
    height, width = image.read(apply_orientation=apply_orientation).shape[1:]
    return height, width


def _size_finding(record: Record, check: ImageCheck, size: Size) -> tuple[ImageFinding, str]:
    name = record.image.name
    if size == check.upright:
        return "image-turned", f"{name} fits its masks only after applying its EXIF orientation"
    return "image-size", (
        f"{name} is {by(check.stored)} (height x width), but {_about(record)} says {by(size)}"
    )


def _mask_findings(
    mask: ObjectMask, record: Record, size: Size | None, is_image_known: bool
) -> Iterator[tuple[ImageFinding, str]]:
    about = _about(record)
    for _ in range(mask.dropped):
        yield "mask-part-degenerate", about
    if mask.is_empty:
        yield "mask-empty", f"{about} has no valid part"
        return
    if size is None:
        return
    if not is_image_known and record.size not in (None, mask.size) and mask.size is not None:
        yield (
            "mask-unfit",
            (
                f"{about} has a mask of {by(mask.size)} (height x width), but its image is recorded as "
                f"{by(record.size)}"
            ),
        )
        return
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and size[0] * size[1] > limit:
        yield "mask-unfit", f"{about} has {by(size)} pixels, more than the {limit} allowed"
        return
    try:
        has_pixels = bool(mask.decode(*size).any())
    except (ValueError, OSError) as error:
        yield "mask-unfit", f"{about}: {error}"
        return
    if not has_pixels:
        yield "mask-empty", f"{about} covers no pixel of {by(size)}"
    elif isinstance(mask, MaskSource) and (excess := _excess(mask, size)) > _TOLERANCE:
        yield "mask-outside", f"{about} extends beyond {by(size)} by {excess:.1f} pixels"


def _excess(mask: MaskSource, size: Size) -> float:
    """By how many pixels the polygons extend beyond the image."""
    height, width = size
    return max(
        (
            max(float(-polygon.min()), polygon[0::2].max() - width, polygon[1::2].max() - height)
            for polygon in mask.polygons
        ),
        default=0.0,
    )


def _about(record: Record) -> str:
    return f"{record.where} (ref_id {record.ref_id})"
