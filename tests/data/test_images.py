"""Image files of every mode as uint8 RGB, damaged files, and the cache."""

from __future__ import annotations

import errno
import io
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from torch import Tensor

from cmsa_fast.data.images import ImageCache, ImageFile, read_image

HEIGHT, WIDTH = 13, 19
ORIENTATION = 0x0112


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)


def stored(image: Image.Image, kind: str = "PNG", **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def channels_last(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


def test_rgb_is_read_unchanged(tmp_path: Path) -> None:
    pixels = noise(HEIGHT, WIDTH, 3)
    Image.fromarray(pixels).save(tmp_path / "rgb.png")
    for source in (tmp_path / "rgb.png", str(tmp_path / "rgb.png")):
        image = read_image(source)
        assert image.dtype == torch.uint8
        assert image.shape == (3, HEIGHT, WIDTH)
        assert image.is_contiguous()
        np.testing.assert_array_equal(channels_last(image), pixels)
    image += 1  # the caller owns the memory


def test_grey_has_three_equal_channels() -> None:
    grey = noise(HEIGHT, WIDTH)
    for kind in ("PNG", "BMP", "TIFF", "PPM"):
        image = read_image(stored(Image.fromarray(grey), kind))
        assert image.shape == (3, HEIGHT, WIDTH)
        for channel in image:
            np.testing.assert_array_equal(channel.numpy(), grey)


def test_one_bit_pixels_are_black_and_white() -> None:
    bits = noise(HEIGHT, WIDTH) > 127
    image = read_image(stored(Image.fromarray(bits)))
    np.testing.assert_array_equal(image[0].numpy(), bits * np.uint8(255))


def test_palette_colours() -> None:
    palette = noise(256, 3)
    indices = noise(HEIGHT, WIDTH)
    photo = Image.fromarray(indices)
    photo.putpalette(palette.tobytes())
    assert photo.mode == "P"
    for kind in ("PNG", "GIF", "BMP"):
        image = read_image(stored(photo, kind))
        np.testing.assert_array_equal(channels_last(image), palette[indices])


def test_cmyk_jpeg() -> None:
    cmyk = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    cmyk[..., 0] = 255  # cyan
    image = read_image(stored(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=100))
    assert image.shape == (3, HEIGHT, WIDTH)
    assert image[0].max() <= 3
    assert image[1:].min() >= 252


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    wide = np.array([[0, 1, 128, 129, 255, 256], [257, 5000, 32767, 40000, 65534, 65535]], np.uint16)
    image = read_image(stored(Image.fromarray(wide), kind))
    np.testing.assert_array_equal(image[0].numpy(), np.rint(wide / 257).astype(np.uint8))
    assert torch.equal(image[0], image[1])
    assert torch.equal(image[0], image[2])


def test_transparent_pixels_are_composed_over_white() -> None:
    rgba = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    rgba[..., 0] = 200  # the colour under a clear pixel must not show
    rgba[:, 5:, 3] = 255
    rgba[:, 10:, 3] = 51  # a fifth
    image = read_image(stored(Image.fromarray(rgba, "RGBA")))
    assert image[:, 0, 0].tolist() == [255, 255, 255]
    assert image[:, 0, 7].tolist() == [200, 0, 0]
    assert image[:, 0, 12].tolist() == [244, 204, 204]


def test_transparency_of_grey_and_palette() -> None:
    two = np.array([[10, 200, 10]], np.uint8)
    grey_alpha = np.stack([two, np.array([[0, 255, 255]], np.uint8)], axis=2)
    image = read_image(stored(Image.fromarray(grey_alpha, "LA")))
    assert image[0].tolist() == [[255, 200, 10]]
    image = read_image(stored(Image.fromarray(two), transparency=10))
    assert image[0].tolist() == [[255, 200, 255]]
    image = read_image(stored(Image.fromarray(two.astype(np.uint16) * 257), transparency=10 * 257))
    assert image[0].tolist() == [[255, 200, 255]]
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    palette.putpalette(bytes([9, 9, 9, 80, 80, 80, 160, 160, 160]))
    image = read_image(stored(palette, transparency=bytes([0, 255, 0])))
    assert image[0].tolist() == [[255, 80, 255]]


@pytest.mark.parametrize("orientation", [3, 6])
def test_exif_orientation(orientation: int) -> None:
    pixels = noise(HEIGHT, WIDTH, 3)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = stored(Image.fromarray(pixels), "PNG", exif=exif)
    as_stored = read_image(file, apply_orientation=False)
    np.testing.assert_array_equal(channels_last(as_stored), pixels)
    file.seek(0)
    upright = np.rot90(pixels, {3: 2, 6: -1}[orientation])
    np.testing.assert_array_equal(channels_last(read_image(file)), upright)


@pytest.mark.parametrize("apply_orientation", [False, True])
def test_tiff_is_turned_upright_once(apply_orientation: bool) -> None:
    pixels = noise(HEIGHT, WIDTH, 3)
    file = stored(Image.fromarray(pixels), "TIFF", tiffinfo={ORIENTATION: 6})
    image = read_image(file, apply_orientation=apply_orientation)
    np.testing.assert_array_equal(channels_last(image), np.rot90(pixels, -1))


def test_first_frame_is_read() -> None:
    frames = [Image.fromarray(np.full((HEIGHT, WIDTH), value, np.uint8)) for value in (7, 99)]
    file = stored(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read_image(file).unique().tolist() == [7]


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_a_defined_white_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match=f"mode '{mode}'"):
        read_image(stored(Image.new(mode, (WIDTH, HEIGHT)), "TIFF"))


def test_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent.jpg"):
        read_image(tmp_path / "absent.jpg")


def test_source_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="ndarray"):
        read_image(noise(HEIGHT, WIDTH, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_truncated_images_are_named(tmp_path: Path, kind: str) -> None:
    whole = stored(Image.fromarray(noise(97, 101, 3)), kind).getvalue()
    file = tmp_path / f"short.{kind.lower()}"
    for share in (0.0, 0.01, 0.3, 0.8):
        file.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match="short"):
            read_image(file)


def test_errors_of_the_disk_are_passed_on() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        read_image(Failing())


def test_postscript_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *program, **_: started.append(program))
    file = tmp_path / "program.jpg"
    Image.fromarray(noise(HEIGHT, WIDTH, 3)).save(file, "EPS")
    with pytest.raises(ValueError, match=r"program\.jpg"):
        read_image(file)
    assert not started


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [HEIGHT * WIDTH - 1, HEIGHT * WIDTH // 3])
def test_too_many_pixels_are_an_error(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    file = stored(Image.fromarray(noise(HEIGHT, WIDTH, 3)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH)
    assert read_image(file).shape == (3, HEIGHT, WIDTH)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    file.seek(0)
    with pytest.raises(ValueError, match="refused"):
        read_image(file)


def test_too_many_pixels_where_warnings_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    file = stored(Image.fromarray(noise(HEIGHT, WIDTH, 3)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH - 1)
    with pytest.raises(ValueError, match="refused"):
        read_image(file)


def test_cache_decodes_an_image_once(tmp_path: Path) -> None:
    files = [ImageFile((tmp_path,), f"{number}.png") for number in range(3)]
    for number, file in enumerate(files):
        Image.fromarray(noise(HEIGHT, WIDTH + number, 3)).save(tmp_path / file.file_name)
    cache = ImageCache(capacity=2)
    first = cache.read(files[0], apply_orientation=False)
    assert cache.read(files[0], apply_orientation=False) is first
    second = cache.read(files[1], apply_orientation=False)
    assert cache.read(files[0], apply_orientation=False) is first
    # The next image evicts the least recently used, which is the second.
    cache.read(files[2], apply_orientation=False)
    assert cache.read(files[0], apply_orientation=False) is first
    assert cache.read(files[1], apply_orientation=False) is not second


def test_cache_keeps_orientations_apart(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(noise(HEIGHT, WIDTH, 3)).save(tmp_path / "a.png", exif=exif)
    cache = ImageCache()
    file = ImageFile((tmp_path,), "a.png")
    assert cache.read(file, apply_orientation=True).shape == (3, WIDTH, HEIGHT)
    assert cache.read(file, apply_orientation=False).shape == (3, HEIGHT, WIDTH)


def test_pickled_cache_is_empty(tmp_path: Path) -> None:
    Image.fromarray(noise(499, 503, 3)).save(tmp_path / "a.png")
    cache = ImageCache(capacity=3)
    file = ImageFile((tmp_path,), "a.png")
    image = cache.read(file, apply_orientation=False)
    data = pickle.dumps(cache)
    assert len(data) < 1000
    copy = pickle.loads(data)
    assert copy.capacity == 3
    assert torch.equal(copy.read(file, apply_orientation=False), image)


def test_threads_share_a_cache(tmp_path: Path) -> None:
    files = [ImageFile((tmp_path,), f"{number}.png") for number in range(5)]
    for number, file in enumerate(files):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), number, np.uint8)).save(tmp_path / file.file_name)
    cache = ImageCache(capacity=2)
    wrong: list[int] = []

    def read(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, 5, 200).tolist():
            if cache.read(files[number], apply_orientation=False).unique().tolist() != [number]:
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_real_photographs(real: Path) -> None:
    with Image.open(next((real / "panoptic" / "input_images").glob("*.jpg"))) as photo:
        expected = np.asarray(photo.convert("RGB"))
        image = read_image(photo.filename)
    np.testing.assert_array_equal(channels_last(image), expected)
