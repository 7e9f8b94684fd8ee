"""`cmsa-fast serve demo` in a headless browser: from starting the command to a marked mask on the screen."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from PIL import Image
from support.page_client import Server, served
from torch.nn import functional
from torchvision.transforms.functional import pil_to_tensor

from cmsa_fast.data.scenes.dataset import ScenesDataset
from cmsa_fast.evaluation.drawing import PALETTE

pytestmark = pytest.mark.slow

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1500",
)
SECONDS = 120
SCREENSHOT = "CMSA_FAST_SCREENSHOT"  # names a file for the screenshot of the documentation
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served("demo", "--max-megabytes", "1", log=tmp_path_factory.mktemp("log") / "log.txt") as running:
        yield running


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium with chromedriver; Debian's packages are chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield opened
    finally:
        opened.quit()


def wait(browser: Any, condition: Any) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, SECONDS).until(lambda _: condition())


def find(browser: Any, selector: str) -> list[Any]:
    return list(browser.find_elements("css selector", selector))


def text(browser: Any, selector: str) -> str:
    return " ".join(element.text for element in find(browser, selector))


def choose(browser: Any, path: Path) -> None:
    wait(browser, lambda: find(browser, "#image input[type=file]"))[0].send_keys(str(path))


def segment(browser: Any, expressions: str) -> None:
    (box,) = find(browser, "#expressions textarea")
    box.clear()
    box.send_keys(expressions)
    find(browser, "#segment")[0].click()


def shown(element: Any) -> torch.Tensor:
    """An element's pixels on the screen, uint8 [3, H, W]."""
    return pil_to_tensor(Image.open(BytesIO(element.screenshot_as_png)).convert("RGB"))


def requested(browser: Any) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    return [one["request"]["url"] for one in sent if one["documentURL"].startswith("http")]


def resized(mask: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A square mask as it lies in an element that shows it in its middle, as high as possible."""
    height, width = shape[1:]
    side = min(height, width)
    square = functional.interpolate(mask[None, None].float(), (side, side))[0, 0] > 0.5
    result = torch.zeros(height, width, dtype=torch.bool)
    top, left = (height - side) // 2, (width - side) // 2
    result[top : top + side, left : left + side] = square
    return result


def box(mask: torch.Tensor) -> tuple[int, int, int, int]:
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1


def boxes_iou(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    def area(top: int, left: int, bottom: int, right: int) -> int:
        return max(0, bottom - top) * max(0, right - left)

    start = (max(one[0], other[0]), max(one[1], other[1]))
    inside = area(*start, min(one[2], other[2]), min(one[3], other[3]))
    return inside / (area(*one) + area(*other) - inside)


def save_screenshot(browser: Any) -> None:
    """Save the page for the documentation, if a file is named."""
    if SCREENSHOT in os.environ:
        browser.set_window_size(1280, browser.execute_script("return document.body.scrollHeight") + 160)
        screen = Image.open(BytesIO(browser.get_screenshot_as_png())).convert("RGB")
        screen.thumbnail((1000, 2000))
        screen.save(REPOSITORY / os.environ[SCREENSHOT], optimize=True)


def test_an_image_and_expressions_become_masks_on_the_screen(browser: Any, server: Server, tmp_path: Path) -> None:
    scene = ScenesDataset(1, split="test", size=384, expressions_per_scene=3)
    samples = [scene[index] for index in range(2)]
    path = tmp_path / "scene.png"
    Image.fromarray(samples[0].image.permute(1, 2, 0).numpy()).save(path)
    browser.get(server.address)
    choose(browser, path)
    wait(browser, lambda: "384 × 384 pixels, encoded in" in text(browser, "#message"))
    segment(browser, "\n".join(sample.expression for sample in samples))
    wait(browser, lambda: len(find(browser, "#legend section")) == 2)
    assert "2 expressions in" in text(browser, "#message")
    (image,) = wait(browser, lambda: find(browser, "#marked img"))
    wait(browser, lambda: image.get_property("naturalWidth") == 512)
    screen = shown(image).float()
    for sample, color in zip(samples, PALETTE, strict=False):
        # Outlines have the colour of the palette; they lie around the object that the expression names.
        outline = ((screen - torch.tensor(color)[:, None, None]).abs() < 12).all(0)
        assert outline.sum() > 200
        assert boxes_iou(box(outline), box(resized(sample.mask, screen.shape))) > 0.8
    for sample, entry in zip(samples, find(browser, "#legend section"), strict=True):
        assert sample.expression in entry.text
        assert [level in entry.text for level in ("Res3", "Res4", "Res5")] == [True] * 3
    assert len(find(browser, "#heat-maps img")) >= 2
    assert [url for url in requested(browser) if not url.startswith((server.address, "data:", "blob:"))] == []
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []
    save_screenshot(browser)


def test_a_broken_file_gets_a_sentence_and_the_page_lives_on(browser: Any, server: Server, tmp_path: Path) -> None:
    broken, large, good = (tmp_path / f"{name}.png" for name in ("broken", "large", "good"))
    broken.write_text("no image")
    large.write_bytes(bytes(2**20 + 1))
    Image.new("RGB", (60, 40), "red").save(good)
    browser.get(server.address)
    choose(browser, broken)
    wait(browser, lambda: "broken.png cannot be read as an image" in text(browser, "#message .wrong"))
    browser.refresh()
    choose(browser, large)
    wait(browser, lambda: "maximum allowed size" in text(browser, "body"))
    browser.refresh()
    choose(browser, good)
    wait(browser, lambda: "60 × 40 pixels" in text(browser, "#message"))
    segment(browser, "")
    wait(browser, lambda: "Type what the image shows" in text(browser, "#message .wrong"))
    segment(browser, '<img src="x" onerror="document.title=\'changed\'"> ${document.title="changed"} {{x}}')
    wait(browser, lambda: len(find(browser, "#legend section")) == 1)
    assert '<img src="x"' in text(browser, "#legend")
    assert "changed" not in browser.title


def test_an_example_is_chosen_with_its_expressions(browser: Any, server: Server) -> None:
    browser.get(server.address)
    example = wait(browser, lambda: find(browser, ".gallery-item"))[1]
    example.click()
    wait(browser, lambda: "384 × 384 pixels" in text(browser, "#message"))
    (typed,) = find(browser, "#expressions textarea")
    assert len(typed.get_property("value").splitlines()) == 3
    find(browser, "#segment")[0].click()
    wait(browser, lambda: len(find(browser, "#legend section")) == 3)


def test_masks_of_a_previous_image_do_not_arrive_beside_a_new_one(
    browser: Any, server: Server, tmp_path: Path
) -> None:
    Image.new("RGB", (5000, 4000), "white").save(tmp_path / "slow.png")
    browser.get(server.address)
    choose(browser, tmp_path / "slow.png")
    wait(browser, lambda: "5000 × 4000 pixels" in text(browser, "#message"))
    segment(browser, "\n".join(["red circle"] * 8))
    find(browser, ".gallery-item")[0].click()
    wait(browser, lambda: "384 × 384 pixels" in text(browser, "#message"))
    for _ in range(30):
        time.sleep(0.5)
        assert find(browser, "#legend section") == []
