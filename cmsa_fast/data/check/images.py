"""Checks images and masks in worker processes: images exist, can be read, and fit their masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from ...system.processes import ignore_interrupts
from ..errors import by
from ..images import image_size
from ..masks import MaskSource
from ..types import ImageSource, ObjectMask, Record

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


def check_images(
    records: Sequence[Record], *, title: str, read: bool = True, decode: bool = False, num_workers: int = 0
) -> Iterator[list[tuple[ImageFinding, str]]]:
    """Checks every image of some records, and decodes every mask.

    Args:
        records: Records to check.
        title: Title of the progress bar.
        read: Read the images; otherwise masks are decoded at the recorded sizes.
        decode: Decode the images completely; otherwise only the start of each file is read.
        num_workers: Number of worker processes; 0 uses this process. For few images none are started.

    Yields:
        Kind and message, which names file and record, of every finding about each distinct image.
    """
    by_image: dict[ImageSource, list[Record]] = {}
    for record in records:
        by_image.setdefault(record.image, []).append(record)
    loader: DataLoader[Any] = DataLoader(
        list(by_image.values()),  # type: ignore[arg-type]
        batch_size=_CHUNK,
        collate_fn=partial(_check_chunk, read, decode),
        num_workers=num_workers if len(by_image) > _FEW else 0,
        worker_init_fn=ignore_interrupts,
    )
    with tqdm(total=len(by_image), desc=title, unit="image", dynamic_ncols=True) as bar:
        for checks in loader:
            yield from checks
            bar.update(len(checks))


def _check_chunk(read: bool, decode: bool, images: list[list[Record]]) -> list[list[tuple[ImageFinding, str]]]:
    return [list(_check_image(records, read, decode)) for records in images]


def _check_image(records: list[Record], read: bool, decode: bool) -> Iterator[tuple[ImageFinding, str]]:
    """Checks one image and the masks of all its records."""
    image, expected = records[0].image, records[0].mask_size
    stored = upright = None
    try:
        if read:
            stored = upright = _size(image, decode, apply_orientation=False)
            if expected not in (None, stored):
                upright = _size(image, decode, apply_orientation=True)
    except FileNotFoundError as error:
        yield "image-missing", f"{_about(records[0])}: {error}"
    except (ValueError, OSError) as error:
        stored = upright = None
        yield "image-unreadable", f"{_about(records[0])}: {error}"
    reported_sizes: set[Size] = set()
    checked: set[tuple[int, Size | None]] = set()
    for record in records:
        size = record.mask_size or stored
        if size is not None and stored not in (None, size):
            if size not in reported_sizes:
                reported_sizes.add(size)
                if size == upright:
                    turned = "fits its masks only after applying its EXIF orientation"
                    yield "image-turned", f"{image.name} {turned}"
                else:
                    recorded = f"{_about(record)} says {by(size)}"
                    message = f"{image.name} is {by(stored)} (height x width), but {recorded}"
                    yield "image-size", message
            if size != upright:
                continue  # its masks belong to another image
        for mask in (*record.objects, *record.ignored):
            if (id(mask), size) not in checked:  # references may share an object
                checked.add((id(mask), size))
                yield from _mask_findings(mask, record, size, stored is not None)


def _size(image: ImageSource, decode: bool, *, apply_orientation: bool) -> Size:
    if not decode:
        return image_size(image, apply_orientation=apply_orientation)
    height, width = image.read(apply_orientation=apply_orientation).shape[1:]
    return height, width


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
        sizes = f"{by(mask.size)} (height x width), but its image is recorded as {by(record.size)}"
        yield "mask-unfit", f"{about} has a mask of {sizes}"
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
    excesses = (
        max(float(-polygon.min()), polygon[0::2].max() - width, polygon[1::2].max() - height)
        for polygon in mask.polygons
    )
    return max(excesses, default=0.0)


def _about(record: Record) -> str:
    return f"{record.where} (ref_id {record.ref_id})"
