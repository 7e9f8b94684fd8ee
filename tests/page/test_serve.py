"""`cmsa-fast serve` from the command to its answers over HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from unittest.mock import patch
from urllib.error import HTTPError

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image
from support.commands import failed
from support.page_client import Answered, Server, file_data, served

from cmsa_fast.data.scenes.dataset import ScenesDataset
from cmsa_fast.page.answers import Answers
from cmsa_fast.predictor import Predictor

MODEL = "demo"
CLIENTS = 8
ROUNDS = 2
SCENES = ScenesDataset(CLIENTS, split="test", size=96, expressions_per_scene=2 * ROUNDS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "log.txt"
    with served(MODEL, "--max-megabytes", "1", "--max-megapixels", "2", log=log) as running:
        yield running


def png(height: int, width: int, seed: int = 0) -> bytes:
    stream = BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def still_answers(server: Server) -> None:
    answer = server.segment(server.upload("good.png", png(60, 90)), "left dog")
    assert answer.marked is not None
    assert "left dog" in answer.legend


def test_eight_clients_get_their_own_answers(server: Server, tmp_path: Path) -> None:
    answers = Answers(Predictor.from_pretrained(MODEL), 10**6)

    def client(number: int) -> list[Answered]:
        path = server.upload("image.png", scene(number))  # all of one name
        return [server.segment(path, expressions(number, turn)) for turn in range(ROUNDS)]

    with ThreadPoolExecutor(CLIENTS) as pool:
        received = list(pool.map(client, range(CLIENTS)))
    drawn = set()
    for number, turns in enumerate(received):
        path = tmp_path / f"{number}.png"
        path.write_bytes(scene(number))
        for turn, answer in enumerate(turns):
            expected = answers.segment(str(path), expressions(number, turn))
            assert answer.marked is not None
            assert np.array_equal(answer.marked.permute(1, 2, 0), np.asarray(expected.marked))
            assert len(answer.heat_maps) == len(expected.heat_maps) == 2
            for one, (other, _) in zip(answer.heat_maps, expected.heat_maps, strict=True):
                assert np.array_equal(one.permute(1, 2, 0), np.asarray(other))
            titles = [f">{line}</h4>" in answer.legend for line in expressions(number, turn).splitlines()]
            assert titles == [True, True]
            drawn.add(answer.marked.numpy().tobytes())
    assert len(drawn) > CLIENTS  # the test would notice an answer to another image or expression


def scene(number: int) -> bytes:
    stream = BytesIO()
    pixels = SCENES[number * SCENES.expressions_per_scene].image.permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(stream, "PNG")
    return stream.getvalue()


def expressions(number: int, turn: int) -> str:
    first = number * SCENES.expressions_per_scene + 2 * turn
    return "\n".join(SCENES[index].expression for index in (first, first + 1))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("half.png", png(90, 90)[:3000], "half.png cannot be read as an image"),
        ("notes.jpg", b"no image", "notes.jpg cannot be read as an image"),
        ("huge.png", b"", "huge.png is refused as an image: its 10000 x 10000 pixels are more than the 2000000"),
    ],
)
def test_an_unusable_image_gets_a_sentence(name: str, content: bytes, expected: str, server: Server) -> None:
    if name == "huge.png":
        stream = BytesIO()
        Image.new("1", (10_000, 10_000)).save(stream, "PNG")
        content = stream.getvalue()
    answer = server.segment(server.upload(name, content), "left dog")
    assert expected in answer.message
    assert answer.marked is None
    still_answers(server)


def test_no_image_gets_a_sentence(server: Server) -> None:
    assert "Choose an image first." in server.segment(None, "left dog").message
    still_answers(server)


@pytest.mark.parametrize(
    "text", ["", "dog " * 1000, "🐕 dog", "הכלב משמאל", "\ud83d", "a\0b", "${alert(1)} {{x}}"]
)
def test_unusual_expressions_are_answered(text: str, server: Server) -> None:
    answer = server.segment(server.upload("good.png", png(60, 90)), text)
    assert ("Type what the image shows" in answer.message) == (text == "")
    assert (answer.marked is None) == (text == "")


def test_a_large_file_is_refused(server: Server) -> None:
    with pytest.raises(HTTPError) as refused:
        server.upload("large.png", bytes(2**20 + 1))
    assert refused.value.code == 413
    refused.value.close()
    still_answers(server)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (str(REPOSITORY / "docs" / "demo.png"), "was not uploaded by a user"),
        ("http://localhost:1/image.png", "The image must be uploaded; its address is not enough."),
    ],
)
def test_only_uploads_are_read(path: str, expected: str, server: Server) -> None:
    event, data = server.call("segment", file_data(path), "left dog")
    assert event == "error"
    assert expected in str(data) + server.log.read_text()
    still_answers(server)


def test_the_page_reports_nothing_to_others(server: Server) -> None:
    config = json.loads(server.get("config"))
    assert config["analytics_enabled"] is False
    assert config["stylesheets"] == []  # fonts of other hosts would be here
    assert "share" not in json.dumps([part["props"].get("buttons") for part in config["components"]])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_and_removes_the_uploads(number: signal.Signals, tmp_path: Path) -> None:
    with served(MODEL, log=tmp_path / "log.txt") as server:
        upload = Path(server.upload("image.png", png(9, 9)))
        assert upload.is_file()
        server.process.send_signal(number)
        assert server.process.wait(120) == 130
    assert not upload.exists()
    assert "Traceback" not in server.log.read_text()


def test_a_port_in_use_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = failed(capsys, "serve", MODEL, "--port", port)
    assert message == f"--host 127.0.0.1 --port {port} cannot be listened on: Address already in use."


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--port", "70000"), "--port must be at most 65535; got 70000."),
        (("--port", "-1"), "--port must be at least 0; got -1."),
        (("--host", "192.0.2.1"), "--host 192.0.2.1 --port 7860 cannot be listened on"),
        (("--max-megabytes", "0"), "--max-megabytes must be at least 1"),
        (("--max-megapixels", "0"), "--max-megapixels must be at least 1"),
    ],
)
def test_wrong_options_are_named(
    options: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in failed(capsys, "serve", MODEL, *options)


def test_missing_gradio_names_the_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with patch.dict(os.environ):
        message = failed(capsys, "serve", MODEL, "--port", 0)
    assert message.startswith("`cmsa-fast serve` needs Gradio: pip install 'cmsa_fast[page]'")
