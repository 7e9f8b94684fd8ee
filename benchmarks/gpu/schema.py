"""The form of a result file, and a check of it in plain Python."""

import math
from typing import Any

VERSION = 1

_STATUSES = {
    "correctness": {"passed", "failed", "skipped"},
    "ceilings": {"measured", "failed", "skipped"},
    "speed": {"measured", "inexact", "failed", "skipped"},
    "kernels": {"measured", "failed", "skipped"},
}
_KEYS = {
    "correctness": ("operation", "form", "dtype", "case"),
    "ceilings": ("name",),
    "speed": ("operation", "size_name", "dtype", "form", "pass"),
    "kernels": ("operation", "size_name", "dtype", "form"),
}
_SPEED_NUMBERS = (
    "median_ms",
    "low_ms",
    "high_ms",
    "rounds",
    "estimate_ms",
    "prepare_s",
    "floor_flop",
    "own_flop",
    "least_bytes",
    "tflop_per_s",
)
_SPEED_NUMBERS_OR_NONE = (
    "peak_mib",
    "share_of_matmul",
    "floor_share_of_matmul",
    "share_of_copy",
)


def check(results: Any) -> None:
    """
    Raises:
        ValueError: `results`, read from a result file, does not have the form; the message says where.
    """
    wanted = {"schema", "metadata", *_KEYS, "summary", "plots"}
    _require(
        isinstance(results, dict) and set(results) == wanted, "the file", f"fields {sorted(wanted)}"
    )
    _require(results["schema"] == VERSION, "schema", f"{VERSION}")
    metadata = results["metadata"]
    for name in (
        "command",
        "date",
        "commit",
        "packages",
        "device",
        "minutes",
        "seconds",
        "finished",
        "notes",
    ):
        _require(name in metadata, "metadata", f"a field {name}")
    for section in _KEYS:
        seen = set()
        for number, record in enumerate(results[section]):
            where = f"{section}[{number}]"
            key = tuple(record.get(name) for name in _KEYS[section])
            _require(all(isinstance(part, str) for part in key), where, f"texts {_KEYS[section]}")
            _require(key not in seen, where, f"another key than {key}, which is there already")
            seen.add(key)
            _check_record(section, record, where)
    _check_summary(results["summary"])
    _require(
        all(reason is None or isinstance(reason, str) for reason in results["plots"].values()),
        "plots",
        "for each name None, or why it was not drawn",
    )


def _check_record(section: str, record: dict[str, Any], where: str) -> None:
    status = record.get("status")
    _require(status in _STATUSES[section], where, f"a status of {sorted(_STATUSES[section])}")
    good = status in ("passed", "measured")
    reason = record.get("reason")
    _require(
        reason is None if good else isinstance(reason, str) and bool(reason),
        where,
        "a reason, where something is not as it should be, and there alone",
    )
    if section == "correctness" and "errors" in record:
        for name, row in record["errors"].items():
            _require(
                set(row) == {"error", "literal", "allowed", "kept"},
                f"{where}.{name}",
                "four fields",
            )
            _require(_number(row["allowed"]), f"{where}.{name}", "a number allowed")
    if section == "ceilings" and good:
        _require(_number(record.get("value")) and record["value"] > 0, where, "a value above 0")
        _require(record.get("unit") in ("TFLOP/s", "TB/s"), where, "a unit")
    if section == "speed":
        _require(isinstance(record.get("own"), bool), where, "own: bool")
        _require(isinstance(record.get("size"), dict), where, "a size")
        if status in ("measured", "inexact"):
            _check_speed(record, where)


def _check_speed(record: dict[str, Any], where: str) -> None:
    for name in _SPEED_NUMBERS:
        _require(_number(record.get(name)), where, f"a number {name}")
    for name in _SPEED_NUMBERS_OR_NONE:
        _require(name in record, where, f"a field {name}")
        _require(record[name] is None or _number(record[name]), where, f"a number or None {name}")
    _require(record["rounds"] >= 1, where, "at least one round")
    _require(
        0 < record["low_ms"] <= record["median_ms"] <= record["high_ms"],
        where,
        "percentiles about the median",
    )
    graph = record.get("graph")
    _require(isinstance(graph, dict), where, "a graph")
    assert isinstance(graph, dict)
    if "median_ms" in graph:
        _require(isinstance(graph.get("same_bits"), bool), where, "graph.same_bits")
        _require(_number(record.get("launch_overhead_ms")), where, "launch_overhead_ms")
    else:
        _require(isinstance(graph.get("reason"), str), where, "why there is no graph")
    parity = record.get("parity")
    _require(isinstance(parity, dict) and isinstance(parity.get("kept"), bool), where, "parity")
    assert isinstance(parity, dict)
    held = record["own"] or None in parity["errors"]
    exact = record["status"] == "measured"
    _require(not held or parity["kept"] == exact, where, "a status that fits parity")


def _check_summary(summary: dict[str, Any]) -> None:
    _require(set(summary) == {"counts", "goals", "comparisons"}, "summary", "its three parts")
    for goal in summary["goals"]:
        _require(
            set(goal) == {"goal", "at_least", "measured", "met"}, "summary.goals", "four fields"
        )
        found = goal["measured"]
        met = None if found is None else found >= goal["at_least"]
        _require(goal["met"] is met, f"goal {goal['goal']}", f"met = {met}")
    for row in summary["comparisons"]:
        faster = "faster" if row["times_faster"] > 1 else "slower"
        _require(row["verdict"] == faster, "summary.comparisons", f"the verdict {faster}")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _require(holds: bool, where: str, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{where} must have {wanted}.")
