"""What the benchmarks that measure everything at once have in common: a command with one option."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def run_command(
    description: str | None,
    collect: Callable[[], dict[str, Any]],
    format_table: Callable[[dict[str, Any]], str],
) -> None:
    """Measure, print a table, and write the figures where --json asks for it.

    Args:
        description: of the benchmark, for --help.
        collect: measures, and gives the figures as JSON takes them.
        format_table: makes a table for people of them.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    figures = collect()
    print(format_table(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
