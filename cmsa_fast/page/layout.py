"""The page's layout in Gradio: an image and expressions on the left, masks, words and heat maps on the right."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ..data.vocabulary import Vocabulary
from .answers import MOST_EXPRESSIONS, Answers

_AT_ONCE = 2  # requests in the model at a time; further ones wait in the queue
_WAITING = 64
_UPLOADS_KEPT = 600, 3600  # looked for every 600 s, removed after an hour
_WORDS_LISTED = 100
_HOW_TO_READ = """
Every expression has a colour. **Res3**, **Res4** and **Res5** are the levels of the network: the stronger the
background of a word, the more attention it received there (Fig. 4 of the paper); the tooltip is its share. A word
in *italics* is not in the model's vocabulary.

A **heat map** is the strongest channel of the last feature map (Fig. 5 of the paper), from blue to red.
"""
# Fonts of the system: nothing is loaded from another host.
THEME = gr.themes.Soft(
    primary_hue="rose", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)
CSS = """
.gradio-container { max-width: 1200px !important; margin: auto !important; }
#message p { margin: 0; padding: 0.4rem 0.8rem; border-radius: 0.5rem; min-height: 1.5rem; }
.wrong { background: #b3261e; color: white; padding: 0.2rem 0.6rem; border-radius: 0.4rem; }
#legend section { display: flex; gap: 0.7rem; margin-bottom: 1rem; }
#legend section > div { min-width: 0; flex: 1; }
#legend h4 { margin: 0; font-size: 1.05rem; overflow-wrap: anywhere; max-height: 6rem; overflow-y: auto; }
#legend p { margin: 0.1rem 0 0.3rem; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
#legend p.wrong { color: white; }
#legend .swatch { flex: none; width: 1.1rem; height: 1.1rem; margin-top: 0.2rem; border-radius: 0.3rem; }
#legend .words { display: flex; flex-wrap: wrap; gap: 0.2rem; margin-bottom: 0.25rem; }
#legend .level { width: 3rem; color: var(--body-text-color-subdued); font-size: 0.85rem; }
#legend .word { padding: 0 0.4rem; border-radius: 0.3rem; color: #1a1a1a; overflow-wrap: anywhere;
  background: color-mix(in srgb, rgb(255 176 0) calc(100% * var(--share)), white);
  border: 1px solid #e3dccb; }
#legend .unknown { font-style: italic; border: 1px dashed #6b6558; }
#heat-maps .grid-wrap { height: auto !important; min-height: 0 !important; max-height: none !important;
  overflow: visible; }
"""


def build_page(answers: Answers, examples: Sequence[tuple[Path, str]] = ()) -> gr.Blocks:
    """The page, to be started by `launch(theme=THEME, css=CSS)`.

    Args:
        answers: The model behind the page.
        examples: Image files with expressions, one a line, to choose from.
    """
    with gr.Blocks(
        title="CMSA: referring image segmentation",
        analytics_enabled=False,
        delete_cache=_UPLOADS_KEPT,
        fill_width=True,
    ) as page:
        gr.Markdown(
            "# Referring image segmentation\n"
            "Drop an image, type what it shows, and see it marked. The image is encoded once, for all expressions."
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                image = gr.Image(
                    label="Image",
                    sources=["upload", "clipboard"],
                    buttons=["fullscreen"],
                    height=340,
                    elem_id="image",
                )
                _refuse_addresses(image)
                text = gr.Textbox(
                    label="Expressions",
                    info=f"One a line, at most {MOST_EXPRESSIONS}. Shift+Enter segments.",
                    placeholder="the man in the yellow shirt\nleft cup",
                    lines=3,
                    max_lines=8,
                    elem_id="expressions",
                )
                button = gr.Button("Segment", variant="primary", elem_id="segment")
                message = gr.HTML(elem_id="message")
                if examples:
                    gr.Examples(
                        [[str(path), lines] for path, lines in examples],
                        [image, text],
                        label="Examples: this model knows drawn scenes only",
                        visible_columns=[0],
                    )
                with gr.Accordion("How to read the results", open=False):
                    gr.Markdown(_HOW_TO_READ)
                with gr.Accordion("The model", open=False):
                    gr.HTML(_about(answers))
            with gr.Column(scale=3, min_width=320):
                marked = gr.Image(
                    label="Masks",
                    alt_text="The image with the mask of each expression in its colour",
                    format="png",
                    buttons=["download", "fullscreen"],
                    height=480,
                    elem_id="marked",
                    interactive=False,
                )
                legend = gr.HTML(elem_id="legend")
                heat_maps = gr.Gallery(
                    label="Heat maps",
                    format="png",
                    buttons=["download", "fullscreen"],
                    columns=2,
                    object_fit="contain",
                    elem_id="heat-maps",
                    interactive=False,
                )
        results = [message, marked, legend, heat_maps]

        def receive(file: dict[str, Any] | None) -> tuple[Any, ...]:
            return answers.receive(_path(file)), None, "", []

        def segment(file: dict[str, Any] | None, lines: str | None) -> tuple[Any, ...]:
            answer = answers.segment(_path(file), lines or "")
            return answer.message, answer.marked, answer.legend, list(answer.heat_maps)

        # Gradio's preprocessing would decode images of any size. That a file was uploaded is checked without it.
        shared: dict[str, Any] = {
            "preprocess": False,
            "concurrency_id": "model",
            "concurrency_limit": _AT_ONCE,
            "show_progress_on": marked,
        }
        asked = gr.on([button.click, text.submit], segment, [image, text], results, api_name="segment", **shared)
        # Cancelled, so that masks of the previous image do not arrive beside the new one.
        image.change(receive, image, results, api_name="receive", cancels=asked, **shared)
    page.queue(max_size=_WAITING)
    return page


def _path(file: dict[str, Any] | None) -> str | None:
    return file["path"] if file else None


def _refuse_addresses(image: gr.Image) -> None:
    """Refuse images that a client names by their address, which the server would download."""
    keep = image.async_move_resource_to_block_cache

    async def keep_upload(source: str | Path | None) -> str | None:
        if "://" in str(source):
            raise gr.Error("The image must be uploaded; its address is not enough.", print_exception=False)
        return await keep(source)

    image.async_move_resource_to_block_cache = keep_upload  # type: ignore[assignment, method-assign]


def _about(answers: Answers) -> str:
    config = answers.predictor.config
    words = [token for token in config.tokens if token not in Vocabulary.SPECIAL]
    facts = f"Model {config.name}, input {config.size} × {config.size} pixels, {len(words)} words"
    known = f": {', '.join(sorted(words))}" if len(words) <= _WORDS_LISTED else ""
    return f"<p>{escape(facts + known)}.</p>"
