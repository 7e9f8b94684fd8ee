"""MkDocs hook: writes commands.md, the options of every command, from the output of `cmsa-fast ... --help`."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any, NamedTuple
from unittest.mock import patch

from mkdocs.structure.files import File, Files

from cmsa_fast.cli import main

_INTRODUCTION = """# Commands

`cmsa-fast COMMAND --help` prints the same in a terminal. `python train.py` is `cmsa-fast train`, and
`python -m cmsa_fast` is `cmsa-fast`.
"""
# Wide enough that an option and its description are on one line.
_COLUMNS = 5000
_BORDER = "│╭╮╰╯─ "


class CommandHelp(NamedTuple):
    """What --help says of a command.

    Attributes:
        usage: The first line, without "usage: ".
        description: Paragraphs.
        boxes: Title of a box -> its entries, (what is typed, description).
        table: What is printed below the boxes; empty for most commands.
    """

    usage: str
    description: list[str]
    boxes: dict[str, list[tuple[str, str]]]
    table: str


def on_files(files: Files, config: Any) -> Files:
    """Add the page to the site."""
    files.append(File.generated(config, "commands.md", content=commands_page()))
    return files


def commands_page() -> str:
    """The page, in Markdown."""
    return _INTRODUCTION + "".join(_section(command, read_help(command)) for command in all_commands())


def all_commands(prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command that has options of its own: ("train",), ("data", "check"), ..."""
    shown = read_help(prefix)
    if "subcommands" not in shown.boxes:
        yield prefix
        return
    names = shown.usage.rpartition("{")[2].removesuffix("}")
    for name in names.split(","):
        yield from all_commands((*prefix, name))


def help_text(command: tuple[str, ...], columns: int) -> str:
    """What a command prints with --help on a terminal of that width."""
    shown = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # tyro draws boxes if the output is in UTF-8
    with patch.dict(os.environ, COLUMNS=str(columns)), redirect_stdout(shown):
        try:
            main([*command, "--help"])
        except SystemExit as stop:
            if stop.code:
                raise
    shown.seek(0)
    return shown.read()


def read_help(command: tuple[str, ...]) -> CommandHelp:
    """Parse what a command prints with --help.

    Raises:
        ValueError: The text does not have the expected form.
    """
    usage, *lines = help_text(command, _COLUMNS).splitlines()
    frame = [number for number, line in enumerate(lines) if line.startswith(("╭", "╰"))]
    if not usage.startswith("usage: ") or not frame:
        raise ValueError(f"cmsa-fast {' '.join(command)} --help is not as expected: {usage!r}")
    boxes: dict[str, list[tuple[str, str]]] = {}
    entries: list[tuple[str, str]] = []
    for line in lines[frame[0] : frame[-1]]:
        inner = line.strip(_BORDER)
        if line.startswith("╭"):
            entries = boxes.setdefault(inner, [])
        elif line.startswith("│") and not line.startswith("│   "):
            typed, _, text = inner.partition("  ")
            entries.append((typed, text.strip()))
        elif entries:
            typed, text = entries[-1]
            entries[-1] = (typed, f"{text} {inner}".strip())
    return CommandHelp(
        usage.removeprefix("usage: "),
        [line for line in lines[: frame[0]] if line],
        boxes,
        "\n".join(lines[frame[-1] + 1 :]).strip(),
    )


def _section(command: tuple[str, ...], shown: CommandHelp) -> str:
    name = " ".join(command)
    lines = [f"\n## {name}\n", f"    {shown.usage}\n"]
    for paragraph in shown.description:
        is_example = re.match(r"(cmsa-fast|python|torchrun) ", paragraph)
        lines.append(f"    {paragraph}\n" if is_example else f"{_text(paragraph)}\n")
    for title, entries in shown.boxes.items():
        listed = [entry for entry in entries if not entry[0].startswith("-h, --help")]
        if not listed:
            continue
        heading = {"positional arguments": "argument", "options": "option"}.get(title, title)
        lines.append(f"| {heading} | meaning | default |\n|---|---|---|")
        lines += [_row(*entry) for entry in listed]
        lines.append("")
    if shown.table:
        lines.append("```text\n" + shown.table + "\n```\n")
    return "\n".join(lines)


def _row(typed: str, text: str) -> str:
    """A row of the table; the default stands in brackets at the end of the text."""
    body, _, note = text.rpartition(" (")
    if not body:
        body, note = text, ""
    default = note.removesuffix(")").removeprefix("default: ")
    typed = re.sub(r",(?=[a-z])", ", ", typed)  # where a line may break
    return f"| `{typed}` | {_text(body)} | {_text(default)} |"


def _text(text: str) -> str:
    """Text of the terminal as Markdown: options and what is in backticks as code, nothing else as markup."""
    pieces = re.split(r"(`[^`]*`|--[a-z][a-z-]+)", text)
    pieces[0::2] = [re.sub(r"([*_<>\[\]|#~^$\\])", r"\\\1", piece) for piece in pieces[0::2]]
    pieces[1::2] = [f"`{piece.strip('`')}`".replace("|", "\\|") for piece in pieces[1::2]]
    return "".join(pieces)
