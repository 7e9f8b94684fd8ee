"""`cmsa-fast serve`: a web page on which a trained model can be tried."""

from __future__ import annotations

import logging
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import TYPE_CHECKING, Annotated

import tyro

from .data_options import check_least

if TYPE_CHECKING:
    from ..predictor import Predictor

_logger = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
_LAST_PORT = 65535
_EXAMPLES = 4
_EXPRESSIONS = 3
_EXAMPLE_SIZE = 384


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Which model to serve, where, and the limits of uploads."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Folder of a training run, model folder or .safetensors file; demo: the model that is part of the package;
    OWNER/NAME: a model on the Hugging Face Hub."""

    host: str = _LOOPBACK
    """Address to listen on. The default is reachable from this machine only; 0.0.0.0 from every machine of the
    network, without a password."""

    port: int = 7860
    """Port to listen on; 0: any free one."""

    max_megabytes: int = 20
    """Largest file that can be uploaded, in MiB."""

    max_megapixels: int = 25
    """Largest image, in millions of pixels."""

    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1, ...; auto: CUDA if available."""


def run_serve(options: ServeOptions) -> None:
    """Serve the page until SIGINT or SIGTERM, both of which raise KeyboardInterrupt.

    Raises:
        ImportError: Gradio is not installed.
        OSError: The address cannot be used.
    """
    check_least(options, port=0, max_megabytes=1, max_megapixels=1)
    if options.port > _LAST_PORT:
        raise ValueError(f"--port must be at most {_LAST_PORT}; got {options.port}.")
    host = options.host.strip("[]")
    port = _free_port(host, options.port)
    with TemporaryDirectory(prefix="cmsa-fast-serve-") as folder:
        _configure_gradio(host, folder)
        try:
            import gradio  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f"`cmsa-fast serve` needs Gradio: pip install 'cmsa_fast[page]' ({error})."
            ) from error
        import torch

        from ..page.answers import Answers
        from ..page.layout import CSS, THEME, build_page
        from ..predictor import Predictor
        from ..system.processes import select_device

        predictor = Predictor.from_pretrained(options.run, select_device(options.device))
        predictor.encode(torch.zeros(3, 1, 1, dtype=torch.uint8))  # the first call prepares the libraries
        answers = Answers(predictor, options.max_megapixels * 10**6)
        page = build_page(answers, _examples(predictor, Path(folder)))
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            _, address, _ = page.launch(
                server_name=f"[{host}]" if ":" in host else host,
                server_port=port,
                share=False,
                max_file_size=options.max_megabytes * 2**20,
                ssr_mode=False,
                run_history=False,
                footer_links=[],
                theme=THEME,
                css=CSS,
                quiet=True,
                prevent_thread_lock=True,
            )
            _logger.info("The page is at %s; Ctrl-C ends it.", address)
            Event().wait()
        finally:
            page.close(verbose=False)


def _free_port(host: str, port: int) -> int:
    """The port, after binding to it once: Gradio's own message does not say why it cannot be used."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            return int(trial.getsockname()[1])
    except OSError as error:
        raise OSError(f"--host {host} --port {port} cannot be listened on: {error.strerror}.") from error


def _configure_gradio(host: str, folder: str) -> None:
    """Settings that Gradio reads from the environment when it is imported."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    logging.getLogger("httpx").setLevel(logging.WARNING)
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = folder  # uploads; removed at the end
    # Gradio requests its own page once, which a proxy could not answer.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), _LOOPBACK, "localhost", host]))


def _examples(predictor: Predictor, folder: Path) -> list[tuple[Path, str]]:
    """Drawn scenes with expressions, for a model whose vocabulary is that of the scenes; else none."""
    from PIL import Image

    from ..data.scenes.dataset import WORDS, ScenesDataset
    from ..data.vocabulary import Vocabulary

    if predictor.config.tokens != Vocabulary.from_expressions(WORDS).tokens:
        return []
    scenes = ScenesDataset(_EXAMPLES, split="test", size=_EXAMPLE_SIZE, expressions_per_scene=_EXPRESSIONS)
    examples = []
    for number in range(_EXAMPLES):
        samples = [scenes[number * _EXPRESSIONS + row] for row in range(_EXPRESSIONS)]
        path = folder / f"scene-{number + 1}.png"
        Image.fromarray(samples[0].image.permute(1, 2, 0).numpy()).save(path)
        examples.append((path, "\n".join(sample.expression for sample in samples)))
    return examples
