"""gRefCOCO, where an expression refers to one object, several, or none.

Liu, Ding, Jiang: GRES, Generalized Referring Expression Segmentation, CVPR 2023. The masks follow its
repository (henghuiding/ReLA): the union of all objects, without annotations of crowds.
"""

from __future__ import annotations

import logging
from operator import eq
from pathlib import Path
from typing import Any

from ..errors import ErrorCollector
from ..source import Reading, Source
from .parsing import Where, field, identifier, place, typed_field
from .refer import refer_records
from .refer_layout import COCO_FOLDERS, ReferFiles, check_names, image_folders, require_folder

_logger = logging.getLogger(__name__)

_NO_TARGET = "-1"


def read_grefcoco(source: Source, split: str | None, errors: ErrorCollector) -> Reading:
    """Reads gRefCOCO (`cmsa_fast.data.source.read_records`).

    The layout is `<root>/grefcoco/grefs(unc).json` (or `.p` in older releases; the JSON file has
    precedence), `<root>/grefcoco/instances.json`, and the images of COCO train2014 as REFER has them. A
    split is matched by its exact name.

    The expressions of a record refer to nothing if its `ann_id` is -1 or `[-1]`, which `no_target` must
    not contradict. Annotations of crowds are left out of the masks, and a warning gives their number; a
    record all of whose objects are crowds has no mask left.
    """
    name, split_by = source.name or "grefcoco", source.split_by or "unc"
    files = _locate(source.root, name, split_by, source.image_folder)
    records = refer_records(files, split, source.text, errors, eq, annotations_of, skip_crowds=True)
    return Reading(records, f"{name} ({split_by})")


def annotations_of(record: Any, where: Where) -> tuple[str, ...]:
    """The identifiers of the objects of a record; none if its expressions refer to nothing.

    `ann_id` may be a list or one identifier; `no_target` may be missing but must not contradict it.
    """
    value = field(record, "ann_id", where)
    values = value if isinstance(value, list) else [value]
    annotations = tuple(identifier(one, "ann_id", where) for one in values)
    names_nothing = annotations == (_NO_TARGET,)
    if _NO_TARGET in annotations and not names_nothing:
        raise ValueError(
            f"{place(where)} has {value} as its 'ann_id', where -1 (the expressions refer to nothing) "
            "can only stand alone"
        )
    if not annotations and "no_target" not in record:
        raise ValueError(f"{place(where)} has an empty 'ann_id' and no 'no_target'")
    no_target = names_nothing
    if "no_target" in record:
        no_target = typed_field(record, "no_target", where, bool, "true or false")
    if no_target != (names_nothing or not annotations):
        raise ValueError(
            f"{place(where)} contradicts itself: its 'no_target' is {str(no_target).lower()} and "
            f"its 'ann_id' is {value}"
        )
    return () if no_target else annotations


def _locate(root: Path, name: str, split_by: str, image_folder: Path | None) -> ReferFiles:
    check_names(name=name, split_by=split_by)
    what_belongs = (
        f"A gRefCOCO folder holds {name}/grefs({split_by}).json (or .p), {name}/instances.json and "
        f"the images of COCO train2014 in {' or '.join(COCO_FOLDERS)}."
    )
    folder = root / name
    require_folder(root, what_belongs)
    require_folder(folder, what_belongs)
    instances = folder / "instances.json"
    candidates = [folder / f"grefs({split_by}){suffix}" for suffix in (".json", ".p")]
    found = [file for file in candidates if file.is_file()]
    if not found:
        there = sorted(file.name for file in folder.iterdir())
        raise FileNotFoundError(
            f"there is no file {candidates[0].name} or {candidates[1].name} in {folder}, which has "
            f"{', '.join(there) or 'nothing'}. {what_belongs}"
        )
    if len(found) > 1:
        _logger.warning("%s has both %s and %s; the first is read", folder, *(f.name for f in found))
    if not instances.is_file():
        raise FileNotFoundError(f"there is no file {instances}. {what_belongs}")
    folders = image_folders(root, COCO_FOLDERS, image_folder, what_belongs)
    return ReferFiles(found[0], instances, folders)
