"""The notebook: as a MkDocs hook, makes a page of docs/notebook.ipynb; as a script, runs it and keeps its outputs.

python docs/tools/notebook.py
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.structure.files import File, Files
from PIL import Image

from cmsa_fast.system.processes import configure_openmp

NOTEBOOK = Path(__file__).parents[1] / "notebook.ipynb"


def on_files(files: Files, config: Any) -> Files:
    """Add the page to the site, beside the notebook itself."""
    files.append(File.generated(config, "notebook.md", content=page(nbformat.read(NOTEBOOK, as_version=4))))
    return files


def page(notebook: Any) -> str:
    """The cells and their outputs, in Markdown."""
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        else:
            parts.append(f"```python\n{cell.source}\n```")
            parts += [shown for output in cell.outputs for shown in _show(output)]
    return "\n\n".join(parts) + "\n"


def _show(output: Any) -> Iterator[str]:
    if output.output_type == "stream":
        yield f"```text\n{output.text.rstrip()}\n```"
    elif "image/png" in output.data:
        image = output.data["image/png"].replace("\n", "")
        yield f'<img alt="Output of the cell above" src="data:image/png;base64,{image}">'
    else:
        yield f"```text\n{output.data['text/plain']}\n```"


def execute(notebook: Any) -> None:
    """Run the cells in order, in a kernel of this Python.

    Raises:
        CellExecutionError: A cell failed.
    """
    from nbclient import NotebookClient

    configure_openmp()  # for the kernel, as the commands do
    NotebookClient(notebook, timeout=None, kernel_name="python3").execute()


def _tidy(notebook: Any) -> None:
    """Drop progress bars and what differs between machines, and shrink the images."""
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = _shrink(output.data["image/png"])


def _shrink(image: str) -> str:
    """A PNG in base64 with a palette of 256 colours."""
    pixels = Image.open(BytesIO(b64decode(image))).convert("RGB")
    small = BytesIO()
    pixels.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3).save(small, "PNG", optimize=True)
    return b64encode(small.getvalue()).decode()


if __name__ == "__main__":
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    execute(notebook)
    _tidy(notebook)
    nbformat.write(notebook, NOTEBOOK)
