"""Time and memory of opening a data set as large as RefCOCO's training split, in REFER's layout and converted.

    python -m benchmarks.data_loading --json benchmarks/results/data-loading-cpu.json

Builds a synthetic set in a temporary folder: 42 404 references with 120 624 expressions to some of 50 000
annotations, whose polygons are wavy outlines of 20 to 60 points. Every reading takes place in a new process, the
two forms in turn, with the files in the system's cache.
"""

import json
import math
import os
import pickle
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cmsa_fast.data.dataset import open_split
from cmsa_fast.data.formats.convert import convert
from cmsa_fast.data.source import Form, Source

from .measuring import in_fresh_process, machine, peak_mib, run_command

REFERENCES = 42_404
EXPRESSIONS = 120_624
ANNOTATIONS = 50_000
IMAGES = 16_994
SIZES = ((480, 640), (640, 480), (427, 640), (640, 427), (375, 500), (500, 375))  # height, width
WORDS = ("left", "right", "man", "woman", "in", "the", "red", "shirt", "dog", "on", "front", "of")
FORMS: tuple[Form, ...] = ("refer", "converted")
MASKS = 2_000
ROUNDS = 7
RATIOS = ("open_s", "first_sample_s", "peak_mib", "pickled_mib")


def build(root: Path, references: int = REFERENCES, expressions: int = EXPRESSIONS) -> None:
    """Write a data set in REFER's layout, deterministically; annotations and photos scale with the references."""
    random = np.random.default_rng(0)
    annotations = references * ANNOTATIONS // REFERENCES
    photos = max(1, references * IMAGES // REFERENCES)
    folder = root / "images" / "train2014"
    folder.mkdir(parents=True)
    (root / "refcoco").mkdir()
    images = []
    for number in range(photos):
        height, width = SIZES[number % len(SIZES)]
        name = f"COCO_train2014_{number:012d}.jpg"
        images.append({"id": number, "file_name": name, "height": height, "width": width})
    entries = [
        {
            "id": 10_000 + number,
            "image_id": number % photos,
            "category_id": 1,
            "iscrowd": 0,
            "segmentation": list(outlines(random, *SIZES[number % photos % len(SIZES)])),
        }
        for number in range(annotations)
    ]
    pixels = random.integers(0, 256, (*SIZES[0], 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"COCO_train2014_{0:012d}.jpg")  # the only one that is read
    counts = [expressions // references + (i < expressions % references) for i in range(references)]
    starts = np.cumsum([0, *counts]).tolist()
    records = [
        {
            "ref_id": number,
            "ann_id": 10_000 + number,
            "image_id": number % photos,
            "category_id": 1,
            "file_name": f"COCO_train2014_{number % photos:012d}_{number}.jpg",
            "split": "train",
            "sent_ids": list(range(starts[number], starts[number + 1])),
            "sentences": [expression(random, sent_id) for sent_id in range(starts[number], starts[number + 1])],
        }
        for number in range(references)
    ]
    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(records, protocol=2))
    content = {"images": images, "annotations": entries, "categories": []}
    (root / "refcoco" / "instances.json").write_text(json.dumps(content), encoding="ascii")


def outlines(random: np.random.Generator, height: int, width: int) -> Iterator[list[float]]:
    """The polygons of an object: one, or two for every tenth object."""
    for _ in range(1 + (random.random() < 0.1)):
        points = int(random.integers(20, 61))
        angles = np.sort(random.uniform(0, 2 * math.pi, points))
        radius = random.uniform(0.06, 0.3) * height * (1 + 0.3 * np.sin(3 * angles))
        radius *= random.uniform(0.95, 1.05, points)
        x = random.uniform(0.2, 0.8) * width + radius * np.cos(angles)
        y = random.uniform(0.2, 0.8) * height + radius * np.sin(angles)
        corners = np.stack([x.clip(0, width), y.clip(0, height)], axis=1)
        yield corners.round(2).ravel().tolist()


def expression(random: np.random.Generator, sent_id: int) -> dict[str, Any]:
    """An expression of one to seven words, with the fields of REFER's records."""
    tokens = [WORDS[i] for i in random.integers(0, len(WORDS), int(random.integers(1, 8)))]
    text = " ".join(tokens)
    return {"sent_id": sent_id, "sent": text, "raw": text, "tokens": tokens}


def read_once(form: Form, root: Path) -> dict[str, float]:
    """Open the split in this process, read a sample and draw masks.

    Returns:
        Seconds to open the split, seconds until the first sample, masks drawn per second, MiB that opening adds to
        the process's peak memory, and MiB of the pickled data set that a worker receives.
    """
    torch.set_num_threads(1)
    source = Source(form=form, root=root)
    before = peak_mib()
    start = time.perf_counter()
    data = open_split(source, "train", for_training=True)
    opened = time.perf_counter()
    data[0]
    first = time.perf_counter()
    added = peak_mib() - before
    step = max(1, len(data.records) // MASKS)
    chosen = data.records[::step]
    sizes = [record.mask_size or (1, 1) for record in chosen]
    drawing = time.perf_counter()
    for record, size in zip(chosen, sizes, strict=True):
        record.mask(*size)
    seconds = time.perf_counter() - drawing
    return {
        "open_s": opened - start,
        "first_sample_s": first - start,
        "masks_per_s": len(chosen) / seconds,
        "peak_mib": added,
        "pickled_mib": len(pickle.dumps(data)) / 2**20,
    }


def read_in_turn(roots: dict[Form, Path], rounds: int) -> dict[Form, list[dict[str, float]]]:
    """Results of `read_once` in new processes, the forms in turn."""
    readings: dict[Form, list[dict[str, float]]] = {form: [] for form in roots}
    for _ in range(rounds):
        for form, root in roots.items():
            readings[form].append(in_fresh_process(read_once, form, root))
    return readings


def collect(rounds: int = ROUNDS, references: int = REFERENCES, expressions: int = EXPRESSIONS) -> dict[str, Any]:
    """Measure medians and ranges over the rounds, sizes of the files, and ratios."""
    with tempfile.TemporaryDirectory() as name:
        roots: dict[Form, Path] = {
            "refer": Path(name) / "refer",
            "converted": Path(name) / "converted.parquet",
        }
        build(roots["refer"], references, expressions)
        start = time.perf_counter()
        convert(Source(form="refer", root=roots["refer"]), roots["converted"])
        seconds = time.perf_counter() - start
        readings = read_in_turn(roots, rounds)
        files = {
            "refer": sorted((roots["refer"] / "refcoco").iterdir()),
            "converted": [roots["converted"]],
        }
        bytes_of = {form: sum(file.stat().st_size for file in files[form]) for form in FORMS}
    forms = {form: {"file_mb": bytes_of[form] / 1e6, **spread(readings[form])} for form in FORMS}
    median = {form: {key: forms[form][key]["median"] for key in RATIOS} for form in FORMS}
    return {
        "machine": machine(),
        "load_average": os.getloadavg()[0],
        "sizes": {"references": references, "expressions": expressions},
        "rounds": rounds,
        "convert_s": seconds,
        "forms": forms,
        "refer_over_converted": {key: median["refer"][key] / median["converted"][key] for key in RATIOS},
    }


def spread(readings: list[dict[str, float]]) -> dict[str, Any]:
    """Median and range of each figure."""
    figures = {}
    for key in readings[0]:
        values = [reading[key] for reading in readings]
        figures[key] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return figures


def format_table(figures: dict[str, Any]) -> str:
    head = f"{'':12}{'files':>10}{'open':>10}{'1st sample':>12}{'masks/s':>9}{'peak':>10}{'to worker':>11}"
    lines = [head]
    for form, row in figures["forms"].items():
        median = {key: value["median"] for key, value in row.items() if key != "file_mb"}
        lines.append(
            f"{form:12}{row['file_mb']:>7.1f} MB{median['open_s']:>8.2f} s"
            f"{median['first_sample_s']:>10.2f} s{median['masks_per_s']:>9.0f}"
            f"{median['peak_mib']:>6.0f} MiB{median['pickled_mib']:>7.0f} MiB"
        )
    lines.append(f"conversion: {figures['convert_s']:.1f} s")
    lines += [f"refer / converted, {key}: {ratio:.1f}" for key, ratio in figures["refer_over_converted"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(__doc__, collect, format_table, ROUNDS)
