"""Whether images can be read and masks lie on them, looked at in several processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Literal

from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..errors import by
from ..images import ImageFile, read_image_size
from ..loader import leave_interrupts_to_the_main_process
from ..masks import MaskSource
from ..types import EmbeddedImage, ImageSource, ObjectMask, Record

Trouble = Literal[
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

_FEW = 200  # images for which no process is started
_AT_ONCE = 32
_TOLERANCE = 2.0  # pixels by which polygons of the published files may pass the image's edge


@dataclass
class ImageFindings:
    """What was found at one image.

    Attributes:
        stored: Height and width in pixels as stored; None where the image was not read.
        upright: The same as its EXIF orientation turns it, looked up where the stored size does not
            fit.
        troubles: What is wrong and an expression naming file and record, each as often as it happens.
    """

    stored: Size | None = None
    upright: Size | None = None
    troubles: list[tuple[Trouble, str]] = field(default_factory=list)


def check_images(
    records: Sequence[Record],
    *,
    title: str,
    look: bool = True,
    decode: bool = False,
    num_workers: int = 0,
) -> Iterator[ImageFindings]:
    """Looks at every image of some records, and draws every mask on it.

    Args:
        records: The records.
        title: What the progress bar says.
        look: Read the images; without, masks are drawn at the recorded sizes.
        decode: Decode whole images, where otherwise the start of each file is read.
        num_workers: Processes that read beside this one; 0: none. Few images start none.

    Yields:
        The findings for each distinct image, in the order of the records.
    """
    places: dict[ImageSource, list[int]] = {}
    for place, record in enumerate(records):
        places.setdefault(record.image, []).append(place)
    work = _Work(records, list(places.items()), look, decode)
    loader: DataLoader[Any] = DataLoader(
        work,
        batch_size=_AT_ONCE,
        collate_fn=list,
        num_workers=num_workers if len(work) > _FEW else 0,
        worker_init_fn=leave_interrupts_to_the_main_process,
    )
    with tqdm(total=len(work), desc=title, unit="picture", dynamic_ncols=True) as bar:
        for several in loader:
            yield from several
            bar.update(len(several))


class _Work(Dataset[ImageFindings]):
    def __init__(
        self,
        records: Sequence[Record],
        images: list[tuple[ImageSource, list[int]]],
        look: bool,
        decode: bool,
    ) -> None:
        self._records, self._images = records, images
        self._look, self._decode = look, decode

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> ImageFindings:
        image, places = self._images[index]
        records = [self._records[place] for place in places]
        found = ImageFindings()
        if self._look:
            _look_at(image, records[0].mask_size, self._decode, found)
        sizes_told: set[Size] = set()
        seen: set[tuple[int, Size | None]] = set()
        for record in records:
            size = record.mask_size or found.stored
            if size is not None and found.stored not in (None, size):
                if size not in sizes_told:
                    sizes_told.add(size)
                    found.troubles.append(_other_size(record, found, size))
                if size != found.upright:
                    continue  # its masks are for some other image
            for one in record.objects:
                if (id(one), size) not in seen:  # references may share an object
                    seen.add((id(one), size))
                    found.troubles += _object_troubles(one, record, size, found.stored is not None)
        return found


def _look_at(image: ImageSource, expected: Size | None, decode: bool, found: ImageFindings) -> None:
    try:
        found.stored = found.upright = _size(image, decode, apply_orientation=False)
        if expected not in (None, found.stored):
            found.upright = _size(image, decode, apply_orientation=True)
    except FileNotFoundError as error:
        found.troubles.append(("image-missing", str(error)))
    except (ValueError, OSError) as error:
        found.stored = found.upright = None
        found.troubles.append(("image-unreadable", str(error)))


def _size(image: ImageSource, decode: bool, *, apply_orientation: bool) -> Size:
    if isinstance(image, ImageFile) and not decode:
        return read_image_size(image.locate(), apply_orientation=apply_orientation)
    if isinstance(image, EmbeddedImage) and not decode:
        stream = BytesIO(image.read_bytes())
        stream.name = image.name
        return read_image_size(stream, apply_orientation=apply_orientation)
    height, width = image.read(apply_orientation=apply_orientation).shape[1:]
    return height, width


def _other_size(record: Record, found: ImageFindings, size: Size) -> tuple[Trouble, str]:
    name = record.image.name
    if size == found.upright:
        return "image-turned", f"{name} fits its masks only turned upright"
    return "image-size", (
        f"{name} is {by(found.stored)} (height x width), where {_about(record)} says {by(size)}"
    )


def _object_troubles(
    one: ObjectMask, record: Record, size: Size | None, is_image_known: bool
) -> Iterator[tuple[Trouble, str]]:
    about = _about(record)
    for _ in range(one.dropped):
        yield "mask-part-degenerate", about
    if one.is_empty:
        yield "mask-empty", f"{about} has no part left"
        return
    if size is None:
        return
    if not is_image_known and record.size not in (None, one.size) and one.size is not None:
        yield (
            "mask-unfit",
            (
                f"{about} has a mask of {by(one.size)} (height x width) in an image recorded as "
                f"{by(record.size)}"
            ),
        )
        return
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and size[0] * size[1] > limit:
        yield "mask-unfit", f"{about} is for {by(size)} pixels, more than any image may have"
        return
    try:
        is_drawn = bool(one.decode(*size).any())
    except (ValueError, OSError) as error:
        yield "mask-unfit", f"{about}: {error}"
        return
    if not is_drawn:
        yield "mask-empty", f"{about} covers no pixel of {by(size)}"
    elif isinstance(one, MaskSource) and (beyond := _beyond(one, size)) > _TOLERANCE:
        yield "mask-outside", f"{about} passes the edge of {by(size)} by {beyond:.1f} pixels"


def _beyond(mask: MaskSource, size: Size) -> float:
    """By how many pixels the polygons pass the image's edges."""
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
