"""Pictures are judged by their bytes: sizes from the header before anything is decoded, and nothing cut off passes."""

import struct
import time
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from dino_perception.messages import strict_jpeg
from dino_perception.messages.images import ImageError, decode_compressed, decode_image
from dino_perception.messages.picture_files import picture_kind, picture_size

SCENE = cv2.resize(np.random.default_rng(4).integers(0, 255, (24, 32, 3), np.uint8), (325, 243))
KINDS = {
    "baseline": (".jpg", []),
    "progressive": (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
    "restarts": (".jpg", [cv2.IMWRITE_JPEG_RST_INTERVAL, 7]),
    "png": (".png", []),
}
if hasattr(cv2, "IMWRITE_JPEG_SAMPLING_FACTOR"):  # from OpenCV 4.6 on
    KINDS["4:4:4"] = (".jpg", [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444])


@pytest.fixture(params=["with simplejpeg", "without"], autouse=True)
def decoder(request, monkeypatch):
    """Both ways of looking at a JPEG: libjpeg's warnings where simplejpeg is installed, our own checks elsewhere."""
    if request.param == "without":
        monkeypatch.setattr(strict_jpeg, "decoder", lambda: None)
    elif strict_jpeg.decoder() is None:
        pytest.skip("simplejpeg is not installed")
    return request.param


def encoded(kind, picture=SCENE):
    suffix, options = KINDS[kind]
    return cv2.imencode(suffix, picture, options)[1].tobytes()


def decode(data, **options):
    return decode_compressed(SimpleNamespace(data=data, format=""), **options)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tiff", ".webp"])
@pytest.mark.parametrize("size", [(325, 243), (1, 1), (17, 3000)])
def test_the_size_in_the_header_is_the_size_that_is_decoded(suffix, size):
    if (suffix, size) == (".tiff", (1, 1)) and cv2.__version__ < "4.6":
        pytest.skip("OpenCV 4.5 cannot write a TIFF of one pixel")
    data = cv2.imencode(suffix, np.full((size[1], size[0], 3), 77, np.uint8))[1].tobytes()
    assert picture_kind(data) and picture_size(data) == size
    for end in range(0, 40):
        picture_size(data[:end])  # says nothing, or the size; raises nothing


def test_a_lossless_webp_states_its_size():
    data = cv2.imencode(".webp", SCENE, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes()
    assert b"VP8L" in data[:16] and picture_size(data) == (325, 243)


def bomb(width, height):
    """A PNG of a few bytes for each thousand of its pixels: one colour, compressed."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    squeeze = zlib.compressobj(9)
    rows = b"".join(squeeze.compress(b"\0" * (1 + 3 * width)) for _ in range(height)) + squeeze.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_picture_that_would_be_gigabytes_is_refused_at_once():
    data = bytearray(bomb(64, 64))
    data[16:24] = struct.pack(">II", 30000, 30000)
    begun = time.perf_counter()
    with pytest.raises(ImageError, match="30000 x 30000 pixels, 900.0 megapixels; max_megapixels is 64"):
        decode(bytes(data))
    assert time.perf_counter() - begun < 0.1
    assert decode(bomb(1200, 1000), max_megapixels=1.2).shape == (1000, 1200, 3)
    with pytest.raises(ImageError, match="max_megapixels is 1.19"):
        decode(bomb(1200, 1000), max_megapixels=1.19)
    raw = SimpleNamespace(height=1000, width=1000, step=3000, encoding="rgb8", data=bytes(3_000_000), is_bigendian=0)
    with pytest.raises(ImageError, match="max_megapixels"):
        decode_image(raw, 0.5)


def test_a_png_whose_chunk_is_longer_than_the_file_is_refused_before_memory_is_taken_for_it():
    data = bytearray(encoded("png"))
    data[33:37] = struct.pack(">I", 0xFF7D0000)  # the length of the first IDAT: OpenCV took 4 GB for it
    with pytest.raises(ImageError, match="no end"):
        decode(bytes(data))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_cut_off_is_an_error_wherever_the_cut_is_and_also_with_an_end_put_behind_it(kind):
    data = encoded(kind)
    end = b"\xff\xd9" if kind != "png" else data[-12:]
    cuts = np.linspace(1, len(data) - len(end) - 1, 80).astype(int)
    passed = [(int(cut), len(tail)) for cut in cuts for tail in (b"", end) if passes(data[:cut] + tail)]
    # One cut may fall within the fill bits of the very last block: then nothing is missing.
    assert all(cut > 0.99 * len(data) for cut, _ in passed), passed


def passes(data):
    try:
        decode(data)
        return True
    except ImageError:
        return False


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("picture", ["scene", "grey", "black"])
def test_whole_pictures_pass_also_grey_ones_and_with_padding(kind, picture):
    pixels = {"scene": SCENE, "grey": np.full((96, 131, 3), 128, np.uint8), "black": np.zeros((9, 9, 3), np.uint8)}
    data = encoded(kind, pixels[picture])
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    for padding in (b"", b"\0" * 5000, b"\xff" * 64):
        np.testing.assert_array_equal(decode(data + padding), expected)


def test_mutated_pictures_raise_nothing_but_image_errors():
    random = np.random.default_rng(9)
    for kind in KINDS:
        whole = encoded(kind)
        for turn in range(60):
            data = bytearray(whole)
            for _ in range(random.integers(1, 12)):
                data[random.integers(len(data) if turn % 2 else 120)] = random.integers(256)
            try:
                assert decode(bytes(data)).shape[2] == 3
            except ImageError:
                pass


def damaged(data, random):
    """A JPEG that keeps its end and has lost 60 bytes within a scan, or has others in their place."""
    at = int(random.integers(len(data) // 3, len(data) - 100))
    yield data[:at] + data[at + 60 :]
    yield data[:at] + bytes(random.integers(0, 255, 60, np.uint8)) + data[at + 60 :]


@pytest.mark.parametrize("kind", ["baseline", "restarts", "progressive"])
def test_most_damage_within_a_scan_is_seen_by_libjpeg(kind, decoder):
    if decoder == "without":
        pytest.skip("our own checks see only what is cut off")
    random = np.random.default_rng(2)
    data = encoded(kind)
    broken = [one for _ in range(40) for one in damaged(data, random)]
    passed = [one for one in broken if passes(one)]
    # JPEG has no checksum: what happens to be valid code of the right length passes.
    assert len(passed) < 0.45 * len(broken), f"{len(passed)} of {len(broken)} pass"
    with pytest.raises(ImageError, match="damaged or cut off: .*(premature end|bad Huffman|extraneous bytes|marker)"):
        for one in broken:
            decode(one)


def test_bytes_that_some_cameras_leave_before_the_end_are_no_damage():
    data = encoded("baseline")
    np.testing.assert_array_equal(decode(data[:-2] + bytes(12) + data[-2:]), decode(data))


def test_four_inks_and_grey_are_left_to_opencv(decoder):
    from io import BytesIO

    from PIL import Image

    for mode in ("CMYK", "L"):
        file = BytesIO()
        Image.fromarray(SCENE).convert(mode).save(file, "JPEG")
        expected = cv2.imdecode(np.frombuffer(file.getvalue(), np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
        np.testing.assert_array_equal(decode(file.getvalue()), expected)
