"""Shares of the ceilings, goals, and every comparison with a peer, losses beside wins."""

from typing import Any

from . import plan
from .plan import PASSES

Record = dict[str, Any]
Results = dict[str, Any]

# form, pass, share of the floor's rate that is asked for
_SHARES = (
    ("tiled", PASSES[0], 0.5),
    ("tiled", PASSES[2], 0.4),
    ("fused", PASSES[0], 0.3),
    ("fused", PASSES[2], 0.2),
)
_TIMES_ALL_PAIRS = 200.0
_TIMES_SDPA = ((PASSES[0], 1.3), (PASSES[1], 2.5))
_DTYPE = "bfloat16"


def measured(results: Results, **wanted: Any) -> list[Record]:
    """Speed records with a time that can be trusted, and with these fields."""
    return [
        record
        for record in results["speed"]
        if record["status"] == "measured"
        and all(record.get(name) == value for name, value in wanted.items())
    ]


def milliseconds(record: Record) -> float:
    """A record's time: the graph's where there is one, so that launches do not count."""
    time: float = record["graph"].get("median_ms", record["median_ms"])
    return time


def add_shares(results: Results) -> None:
    """Give every speed record with a time its rates and its shares of the measured ceilings."""
    ceilings = {record["name"]: record.get("value") for record in results["ceilings"]}
    for record in results["speed"]:
        if "median_ms" not in record:
            continue
        seconds = milliseconds(record) / 1e3
        rate = record["own_flop"] / seconds / 1e12
        matmul, copy = ceilings.get(f"matmul {record['dtype']}"), ceilings.get("copy")
        record["tflop_per_s"] = rate
        record["share_of_matmul"] = rate / matmul if matmul else None
        floor = record["floor_flop"] / seconds / 1e12
        record["floor_share_of_matmul"] = floor / matmul if matmul else None
        moved = record["least_bytes"] / seconds / 1e12
        record["share_of_copy"] = moved / copy if copy else None


def summarise(results: Results) -> dict[str, Any]:
    """Counts, goals and comparisons; the shares must have been added."""
    counts = {
        section: _count(results[section])
        for section in ("correctness", "ceilings", "speed", "kernels")
    }
    return {"counts": counts, "goals": _goals(results), "comparisons": _comparisons(results)}


def _count(records: list[Record]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in records:
        counts[record["status"]] = counts.get(record["status"], 0) + 1
    return counts


def _goals(results: Results) -> list[dict[str, Any]]:
    headline = plan.size_name(plan.HEADLINE)
    goals = []
    for form, part, wanted in _SHARES:
        found = measured(
            results,
            operation="separable",
            form=form,
            dtype=_DTYPE,
            size_name=headline,
            **{"pass": part},
        )
        share = found[0]["floor_share_of_matmul"] if found else None
        goals.append(_goal(f"{form}, {part}: share of the matmul rate at the floor", wanted, share))
    for part in (PASSES[0], PASSES[2]):
        of_size = measured(
            results, operation="separable", dtype=_DTYPE, size_name=headline, **{"pass": part}
        )
        goals.append(
            _goal(
                f"separable, {part}: times the best all-pairs peer",
                _TIMES_ALL_PAIRS,
                _best_ratio(of_size),
            )
        )
    for batch in (8, 1):
        size = plan.size_name(plan.joint_size(plan.WIDTH, batch))
        for part, wanted in _TIMES_SDPA:
            of_size = measured(
                results, operation="joint", dtype=_DTYPE, size_name=size, **{"pass": part}
            )
            names = ("fused", "sdpa efficient")
            pair = {record["form"]: _alike(record) for record in of_size if record["form"] in names}
            ratio = pair[names[1]] / pair[names[0]] if len(pair) == 2 else None
            goals.append(
                _goal(f"joint, {part}, batch {batch}: times SDPA efficient", wanted, ratio)
            )
    return goals


def _goal(name: str, wanted: float, found: float | None) -> dict[str, Any]:
    return {
        "goal": name,
        "at_least": wanted,
        "measured": found,
        "met": None if found is None else found >= wanted,
    }


def _alike(record: Record) -> float:
    """For a ratio with a peer, which has no graph: the time with launches."""
    time: float = record["median_ms"]
    return time


def _best_ratio(records: list[Record]) -> float | None:
    own = [_alike(record) for record in records if record["own"]]
    peers = [_alike(record) for record in records if not record["own"]]
    return min(peers) / min(own) if own and peers else None


def _comparisons(results: Results) -> list[dict[str, Any]]:
    """Each form of our own with every other form at its size: how many times faster, and how much leaner."""
    rows = []
    for own in measured(results, own=True):
        same = {name: own[name] for name in ("operation", "size_name", "dtype", "pass")}
        for other in measured(results, **same):
            if other["form"] == own["form"] or (other["own"] and own["form"] > other["form"]):
                continue
            times = _alike(other) / _alike(own)
            memory = None
            if own["peak_mib"] and other["peak_mib"] is not None:
                memory = other["peak_mib"] / own["peak_mib"]
            rows.append(
                {
                    **same,
                    "form": own["form"],
                    "than": other["form"],
                    "times_faster": times,
                    "times_leaner": memory,
                    "verdict": "faster" if times > 1 else "slower",
                }
            )
    return rows


def format_tables(results: Results) -> str:
    """Everything for people, the most important last: what failed, and the goals."""
    lines = []
    for record in results["ceilings"]:
        value = f"{record['value']:.1f} {record['unit']}" if "value" in record else record["reason"]
        lines.append(f"  {record['name']}: {value}")
    lines.append(f"{'':74}{'median':>10}{'20 %':>9}{'80 %':>9}{'graph':>9}{'floor':>7}{'peak':>11}")
    for record in results["speed"]:
        name = f"{record['operation']} {record['dtype']} {short(record['size'])}"
        name += f" {record['form']} {record['pass']}"
        if "median_ms" not in record:
            lines.append(f"{name:74} {record['status']}: {record['reason']}")
            continue
        graph = record["graph"].get("median_ms")
        share = record.get("floor_share_of_matmul")
        lines.append(
            f"{name:74}{record['median_ms']:>7.3f} ms{record['low_ms']:>9.3f}{record['high_ms']:>9.3f}"
            f"{'' if graph is None else f'{graph:.3f}':>9}{'' if share is None else f'{share:.1%}':>7}"
            f"{'' if record['peak_mib'] is None else format(record['peak_mib'], '.0f') + ' MiB':>11}"
            f"{'' if record['status'] == 'measured' else '  ' + record['status'].upper()}"
        )
    for record in results["kernels"]:
        name = f"kernels of {record['operation']} {record['form']}"
        said = ", ".join(row["kernel"] for row in record.get("kernels", [])) or record["reason"]
        lines.append(f"{name}: {said}")
    lines += _format_comparisons(results)
    for section, counts in results["summary"]["counts"].items():
        said = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        lines.append(f"{section}: {said or 'not done'}")
    for record in results["correctness"]:
        if record["status"] != "passed":
            name = f"{record['operation']} {record['form']} {record['dtype']} [{record['case']}]"
            lines.append(f"{record['status'].upper()} {name}: {record['reason']}")
    for goal in results["summary"]["goals"]:
        met = {True: "met", False: "NOT MET", None: "not measured"}[goal["met"]]
        found = "" if goal["measured"] is None else f"{goal['measured']:.3g}, "
        lines.append(f"goal {goal['goal']} >= {goal['at_least']:g}: {found}{met}")
    return "\n".join(lines)


def _format_comparisons(results: Results) -> list[str]:
    """A line for each size and pair of forms: how many times faster than the peer ours is, by pass."""
    groups: dict[str, list[str]] = {}
    names = {record["size_name"]: short(record["size"]) for record in results["speed"]}
    for row in results["summary"]["comparisons"]:
        if row["than"] in plan.OWN[row["operation"]]:
            continue
        title = f"{row['operation']} {row['dtype']} {names[row['size_name']]}: {row['form']} / {row['than']}"
        mark = "" if row["verdict"] == "faster" else " (SLOWER)"
        groups.setdefault(title, []).append(f"{row['pass']} {row['times_faster']:.2f}x{mark}")
    return [f"{title}: {', '.join(parts)}" for title, parts in groups.items()]


def short(size: dict[str, int]) -> str:
    """A size as in the papers: P places, N words, B batch, d width, Tq queries, Tk keys, C channels."""
    letters = {
        "places": "P",
        "words": "N",
        "batch": "B",
        "queries": "Tq",
        "keys": "Tk",
        "channels": "C",
        "visual": "Cv",
        "language": "Cl",
    }
    return " ".join(f"{letters.get(name, 'd')} {value}" for name, value in size.items())
