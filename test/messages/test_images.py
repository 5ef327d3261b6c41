"""Camera images of every encoding become the RGB pixels that a closed form, or OpenCV on tidy rows, says they are."""

import types

import cv2
import numpy as np
import pytest

from dino_perception.messages.images import ENCODINGS, ImageError, decode_compressed, decode_image
from dino_perception.messages.types import RclpyTypes, RosbagsTypes

RNG = np.random.default_rng(7)
HEIGHT, WIDTH = 12, 16
CHANNELS = {
    "rgb8": [0, 1, 2],
    "bgr8": [2, 1, 0],
    "rgba8": [0, 1, 2],
    "bgra8": [2, 1, 0],
    "rgb16": [0, 1, 2],
    "bgr16": [2, 1, 0],
    "rgba16": [0, 1, 2],
    "bgra16": [2, 1, 0],
}


def library(name):
    if name == "rosbags":
        return RosbagsTypes()
    made = RclpyTypes()
    if not made.available("sensor_msgs/msg/Image"):
        pytest.skip("sensor_msgs for rclpy is not installed")
    return made


@pytest.fixture(params=["rclpy", "rosbags"], scope="module")
def messages(request):
    return library(request.param)


def message(messages, encoding, rows, *, height=HEIGHT, width=WIDTH, padding=0, big=False, cut=0):
    """An Image whose rows are `rows` (R, bytes), each followed by `padding` bytes of rubbish, `cut` bytes short."""
    padded = np.full((rows.shape[0], rows.shape[1] + padding), 0xA5, np.uint8)
    padded[:, : rows.shape[1]] = rows
    data = padded.reshape(-1)[: padded.size - cut]
    return messages.make(
        "sensor_msgs/msg/Image",
        header=messages.header(0, "camera"),
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=int(big),
        step=padded.shape[1],
        data=data,
    )


def rows_of(samples, big=False):
    """Bytes (H, ...) of samples, 16-bit ones in the asked byte order."""
    if samples.dtype == np.uint16:
        samples = samples.astype(">u2" if big else "<u2")
    return np.ascontiguousarray(samples).view(np.uint8).reshape(samples.shape[0], -1)


def to8(samples):
    """round(v * 255 / 65535) in whole numbers."""
    return ((samples.astype(np.int64) * 2 + 257) // 514).astype(np.uint8) if samples.dtype == np.uint16 else samples


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("encoding", CHANNELS)
def test_colour_encodings_are_exact(messages, encoding, big, padding):
    kind = np.uint16 if encoding.endswith("16") else np.uint8
    samples = RNG.integers(0, np.iinfo(kind).max + 1, (HEIGHT, WIDTH, 4 if "a" in encoding else 3), kind)
    image = decode_image(message(messages, encoding, rows_of(samples, big), padding=padding, big=big))
    assert image.dtype == np.uint8 and image.flags.c_contiguous and image.flags.writeable
    np.testing.assert_array_equal(image, to8(samples[..., CHANNELS[encoding]]))


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("encoding", ["mono8", "mono16"])
def test_grey_becomes_three_equal_channels(messages, encoding, big):
    kind = np.uint16 if encoding == "mono16" else np.uint8
    samples = RNG.integers(0, np.iinfo(kind).max + 1, (HEIGHT, WIDTH), kind)
    image = decode_image(message(messages, encoding, rows_of(samples, big), padding=3, big=big))
    np.testing.assert_array_equal(image, np.repeat(to8(samples)[..., None], 3, axis=2))


def test_every_16_bit_value_rounds_to_the_nearest_8_bit_value():
    samples = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    image = decode_image(message(RosbagsTypes(), "mono16", rows_of(samples), height=256, width=256))
    np.testing.assert_array_equal(image[..., 0], np.rint(samples * (255 / 65535)).astype(np.uint8))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_a_bayer_mosaic_of_one_colour_gives_that_colour(messages, pattern, bits):
    """The mosaic of a plain picture is known without any demosaicing: it must come back, channel for channel."""
    colour = np.array([200, 120, 40])
    kind, scale = (np.uint16, 257) if bits == 16 else (np.uint8, 1)
    cells = np.array([colour["rgb".index(letter)] for letter in pattern]).reshape(2, 2) * scale
    mosaic = np.tile(cells, (HEIGHT // 2, WIDTH // 2)).astype(kind)
    image = decode_image(message(messages, f"bayer_{pattern}{bits}", rows_of(mosaic), padding=2))
    np.testing.assert_array_equal(image, np.broadcast_to(colour, (HEIGHT, WIDTH, 3)))


def bt601(y, u, v):
    """ITU-R BT.601 studio range to RGB, in floating point."""
    y, u, v = (1.164383562 * (y - 16.0), u - 128.0, v - 128.0)
    return np.stack([y + 1.596026786 * v, y - 0.391762290 * u - 0.812967647 * v, y + 2.017232143 * u], axis=-1).clip(
        0, 255
    )


@pytest.mark.parametrize("encoding", ["yuv422", "uyvy", "yuv422_yuy2", "yuyv", "nv12", "nv21"])
def test_yuv_follows_bt601_to_one_grey_level(messages, encoding):
    y = RNG.integers(16, 236, (HEIGHT, WIDTH), np.uint8)
    low = HEIGHT // 2 if encoding.startswith("nv") else HEIGHT
    u, v = RNG.integers(16, 241, (2, low, WIDTH // 2), np.uint8)
    if encoding.startswith("nv"):
        pair = np.stack([u, v] if encoding == "nv12" else [v, u], axis=-1).reshape(low, WIDTH)
        rows = np.concatenate([y, pair])
    else:
        chroma = np.stack([u, v], axis=-1).reshape(HEIGHT, WIDTH)
        rows = np.stack([y, chroma] if "yuy" in encoding else [chroma, y], axis=-1).reshape(HEIGHT, -1)
    image = decode_image(message(messages, encoding, rows, padding=4))
    up = HEIGHT // low
    expected = bt601(y, *(c.repeat(up, axis=0).repeat(2, axis=1) for c in (u, v)))
    assert np.abs(image - expected).max() <= 1.0


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_row_padding_never_changes_a_picture(encoding):
    bytes_a_pixel = {
        "rgb8": 3,
        "bgr8": 3,
        "8UC3": 3,
        "rgba8": 4,
        "bgra8": 4,
        "8UC4": 4,
        "rgb16": 6,
        "bgr16": 6,
        "rgba16": 8,
        "bgra16": 8,
        "mono16": 2,
    }.get(encoding, 2 if encoding.endswith("16") or "yu" in encoding or "uy" in encoding else 1)
    height = HEIGHT * 3 // 2 if encoding.startswith("nv") else HEIGHT
    rows = RNG.integers(0, 256, (height, WIDTH * bytes_a_pixel), np.uint8)
    plain, padded = (decode_image(message(RosbagsTypes(), encoding, rows, padding=padding)) for padding in (0, 7))
    assert plain.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(plain, padded)


def test_a_last_row_without_its_padding_is_enough(messages):
    rows = RNG.integers(0, 256, (HEIGHT, WIDTH * 3), np.uint8)
    image = decode_image(message(messages, "rgb8", rows, padding=6, cut=6))
    np.testing.assert_array_equal(image.reshape(HEIGHT, -1), rows)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (dict(cut=1), "holds 575 bytes, but 16 x 12 rgb8 with step 48 takes 576"),
        (dict(width=17), "step is 48 bytes, but a row of 17 rgb8 pixels takes 51"),
        (dict(height=0), "16 x 0 pixels"),
        (dict(width=0), "0 x 12 pixels"),
        (dict(encoding="32FC1"), "encoding is '32FC1'; accepted are rgb8, bgr8"),
        (dict(encoding="yuv422", width=15), "15 pixels wide, but yuv422 stores pixels in pairs"),
        (dict(encoding="nv12", height=11), "16 x 11 pixels, but nv12 stores blocks of 2 x 2"),
        (dict(encoding="bayer_rggb8", height=3), "16 x 3 pixels; a bayer_rggb8 mosaic needs at least 4 x 4"),
    ],
)
def test_a_bad_image_is_refused_with_a_sentence(messages, change, sentence):
    change = {"encoding": "rgb8", **change}
    rows = RNG.integers(0, 256, (HEIGHT, WIDTH * 3), np.uint8)
    with pytest.raises(ImageError, match=sentence):
        decode_image(message(messages, change.pop("encoding"), rows, **change))


def compressed(messages, form, data):
    return messages.make(
        "sensor_msgs/msg/CompressedImage",
        header=messages.header(0, "camera"),
        format=form,
        data=np.frombuffer(bytes(data), np.uint8),
    )


def picture():
    """A smooth colour picture (JPEG keeps it), different in every channel."""
    y, x = np.mgrid[0:48, 0:64]
    return np.stack([4 * x, 5 * y, 255 - 2 * x], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("form", ["png", "rgb8; png compressed bgr8", "bgr8; png compressed bgr8"])
def test_png_is_exact_and_in_rgb(messages, form):
    data = cv2.imencode(".png", picture()[..., ::-1])[1]
    np.testing.assert_array_equal(decode_compressed(compressed(messages, form, data)), picture())


@pytest.mark.parametrize("form", ["jpeg", "rgb8; jpeg compressed bgr8", "bgr8; jpeg compressed bgr8", "jpg"])
def test_jpeg_is_close_and_in_rgb(messages, form):
    data = cv2.imencode(".jpg", picture()[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
    image = decode_compressed(compressed(messages, form, data))
    assert np.abs(image.astype(int) - picture()).mean() < 4


def test_a_sender_that_did_not_swap_channels_is_undone(messages):
    data = cv2.imencode(".png", picture())[1]  # RGB handed to an encoder that takes BGR
    image = decode_compressed(compressed(messages, "rgb8; png compressed rgb8", data))
    np.testing.assert_array_equal(image, picture())


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_compressed_mosaic_is_demosaiced(messages, kind):
    cells = np.array([[200, 120], [120, 40]]) * (257 if kind == np.uint16 else 1)
    data = cv2.imencode(".png", np.tile(cells, (8, 8)).astype(kind))[1]
    form = f"bayer_rggb{8 * np.dtype(kind).itemsize}; png compressed "
    image = decode_compressed(compressed(messages, form, data))
    np.testing.assert_array_equal(image, np.broadcast_to([200, 120, 40], (16, 16, 3)))


def test_grey_and_16_bit_png_become_rgb(messages):
    grey = RNG.integers(0, 65536, (20, 30), np.uint16)
    image = decode_compressed(compressed(messages, "mono16; png compressed ", cv2.imencode(".png", grey)[1]))
    np.testing.assert_array_equal(image, np.repeat(to8(grey)[..., None], 3, axis=2))


def test_bad_compressed_images_are_refused_with_a_sentence(messages):
    jpeg = cv2.imencode(".jpg", picture())[1].tobytes()
    png = cv2.imencode(".png", picture())[1].tobytes()
    for form, data, sentence in [
        ("jpeg", jpeg[: len(jpeg) // 2], "damaged or cut off"),
        ("png", png[: len(png) // 2], "damaged or cut off"),
        ("jpeg", b"", "neither JPEG nor PNG"),
        ("jpeg", b"\xff\xd8\xff" + bytes(40) + b"\xff\xd9", "JPEG of 45 bytes"),
        ("webp", b"RIFF0000WEBP", "format 'webp', 12 bytes"),
        ("16UC1; png compressed ", png, "a depth image, not a camera picture"),
        ("32FC1; compressedDepth png", png, "a depth image, not a camera picture"),
    ]:
        with pytest.raises(ImageError, match=sentence):
            decode_compressed(compressed(messages, form, data))


def test_an_orientation_tag_does_not_turn_the_picture(messages):
    """Intrinsics belong to the stored pixels; a viewer's tag must not rotate them."""
    jpeg = cv2.imencode(".jpg", picture())[1].tobytes()
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    tagged = jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]
    assert cv2.imdecode(np.frombuffer(tagged, np.uint8), cv2.IMREAD_COLOR).shape == (64, 48, 3)  # the tag is real
    assert decode_compressed(compressed(messages, "jpeg", tagged)).shape == (48, 64, 3)


def test_an_installed_cv_bridge_is_asked_for_other_encodings(monkeypatch):
    bridge = types.SimpleNamespace(
        CvBridge=lambda: types.SimpleNamespace(
            imgmsg_to_cv2=lambda msg, wanted: np.full((msg.height, msg.width, 3), 9, np.uint8)
        )
    )
    monkeypatch.setitem(__import__("sys").modules, "cv_bridge", bridge)
    rows = np.zeros((HEIGHT, WIDTH), np.uint8)
    assert (decode_image(message(RosbagsTypes(), "nv24", rows)) == 9).all()
