"""Whether pictures can be read and masks lie on them, looked at in several processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Literal

from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..formats.converted.picture_store import EmbeddedPicture
from ..images import read_image_size
from ..loader import leave_interrupts_to_the_main_process
from ..masks import MaskSource
from ..pictures import PictureFile
from ..readable import by
from ..types import ObjectMask, Picture, Record

Trouble = Literal[
    "picture-missing",
    "picture-unreadable",
    "picture-size",
    "picture-turned",
    "mask-unfit",
    "mask-outside",
    "mask-empty",
    "mask-part-degenerate",
]
Size = tuple[int, int]

_FEW = 200  # pictures for which no process is started
_AT_ONCE = 32
_TOLERANCE = 2.0  # pixels by which polygons of the published files may pass the picture's edge


@dataclass
class PictureFindings:
    """What was found at one picture.

    Attributes:
        stored: Height and width in pixels as stored; None where the picture was not read.
        upright: The same as its EXIF orientation turns it, looked up where the stored size does not
            fit.
        troubles: What is wrong and a sentence naming file and record, each as often as it happens.
    """

    stored: Size | None = None
    upright: Size | None = None
    troubles: list[tuple[Trouble, str]] = field(default_factory=list)


def check_pictures(
    records: Sequence[Record],
    *,
    title: str,
    look: bool = True,
    decode: bool = False,
    num_workers: int = 0,
) -> Iterator[PictureFindings]:
    """Looks at every picture of some records, and draws every mask on it.

    Args:
        records: The records.
        title: What the progress bar says.
        look: Read the pictures; without, masks are drawn at the recorded sizes.
        decode: Decode whole pictures, where otherwise the start of each file is read.
        num_workers: Processes that read beside this one; 0: none. Few pictures start none.

    Yields:
        The findings for each distinct picture, in the order of the records.
    """
    places: dict[Picture, list[int]] = {}
    for place, record in enumerate(records):
        places.setdefault(record.picture, []).append(place)
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


class _Work(Dataset[PictureFindings]):
    def __init__(
        self,
        records: Sequence[Record],
        pictures: list[tuple[Picture, list[int]]],
        look: bool,
        decode: bool,
    ) -> None:
        self._records, self._pictures = records, pictures
        self._look, self._decode = look, decode

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> PictureFindings:
        picture, places = self._pictures[index]
        records = [self._records[place] for place in places]
        found = PictureFindings()
        if self._look:
            _look_at(picture, records[0].mask_size, self._decode, found)
        sizes_told: set[Size] = set()
        seen: set[tuple[int, Size | None]] = set()
        for record in records:
            size = record.mask_size or found.stored
            if size is not None and found.stored not in (None, size):
                if size not in sizes_told:
                    sizes_told.add(size)
                    found.troubles.append(_other_size(record, found, size))
                if size != found.upright:
                    continue  # its masks are for some other picture
            for one in record.objects:
                if (id(one), size) not in seen:  # references may share an object
                    seen.add((id(one), size))
                    found.troubles += _object_troubles(one, record, size, found.stored is not None)
        return found


def _look_at(picture: Picture, expected: Size | None, decode: bool, found: PictureFindings) -> None:
    try:
        found.stored = found.upright = _size(picture, decode, apply_orientation=False)
        if expected not in (None, found.stored):
            found.upright = _size(picture, decode, apply_orientation=True)
    except FileNotFoundError as error:
        found.troubles.append(("picture-missing", str(error)))
    except (ValueError, OSError) as error:
        found.stored = found.upright = None
        found.troubles.append(("picture-unreadable", str(error)))


def _size(picture: Picture, decode: bool, *, apply_orientation: bool) -> Size:
    if isinstance(picture, PictureFile) and not decode:
        return read_image_size(picture.locate(), apply_orientation=apply_orientation)
    if isinstance(picture, EmbeddedPicture) and not decode:
        stream = BytesIO(picture.read_bytes())
        stream.name = picture.name
        return read_image_size(stream, apply_orientation=apply_orientation)
    height, width = picture.read(apply_orientation=apply_orientation).shape[1:]
    return height, width


def _other_size(record: Record, found: PictureFindings, size: Size) -> tuple[Trouble, str]:
    name = record.picture.name
    if size == found.upright:
        return "picture-turned", f"{name} fits its masks only turned upright"
    return "picture-size", (
        f"{name} is {by(found.stored)} (height x width), where {_about(record)} says {by(size)}"
    )


def _object_troubles(
    one: ObjectMask, record: Record, size: Size | None, is_picture_known: bool
) -> Iterator[tuple[Trouble, str]]:
    about = _about(record)
    for _ in range(one.dropped):
        yield "mask-part-degenerate", about
    if one.is_empty:
        yield "mask-empty", f"{about} has no part left"
        return
    if size is None:
        return
    if not is_picture_known and record.size not in (None, one.size) and one.size is not None:
        yield (
            "mask-unfit",
            (
                f"{about} has a mask of {by(one.size)} (height x width) in a picture recorded as "
                f"{by(record.size)}"
            ),
        )
        return
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and size[0] * size[1] > limit:
        yield "mask-unfit", f"{about} is for {by(size)} pixels, more than any picture may have"
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
    """By how many pixels the polygons pass the picture's edges."""
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
