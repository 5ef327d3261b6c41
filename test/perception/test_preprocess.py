"""Letterboxed batches: against OpenCV, closed forms, and between the two implementations."""

import cv2
import numpy as np
import pytest
import torch

from dino_perception.perception.geometry import letterbox
from dino_perception.perception.preprocess import Preprocessor, resize_into, resize_tensor

GREY = (123.7, 116.3, 103.5)
SIZES = [(480, 640), (720, 1280), (1080, 1920), (240, 320), (97, 131), (640, 480), (2160, 3840)]


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth and sharp structures at once."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.integers(0, 256, (9, 12, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    coarse[height // 3 : height // 2, width // 4 : width // 2] = (250, 20, 90)
    return coarse


def boxes(*images):
    return [letterbox(*image.shape[:2], 480, 640, 240, 320) for image in images]


@pytest.mark.parametrize("size", SIZES)
def test_content_is_the_resized_image_and_the_rest_the_mean_colour(size):
    image = photo(*size)
    (box,) = boxes(image)
    batch = Preprocessor(480, 640, GREY)([image], [box])
    assert batch.shape == (1, 480, 640, 3) and batch.dtype == torch.uint8
    pixels = batch[0].numpy()
    wanted = cv2.resize(image, (box.content_width, box.content_height), interpolation=cv2.INTER_AREA)
    if size[0] < 480:  # enlarged
        wanted = cv2.resize(image, (box.content_width, box.content_height), interpolation=cv2.INTER_LINEAR)
    content = pixels[: box.content_height, : box.content_width].astype(int)
    assert np.abs(content - wanted).mean() < 1.0
    assert (pixels[box.content_height :] == [124, 116, 104]).all()
    assert (pixels[:, box.content_width :] == [124, 116, 104]).all()


def test_an_image_of_the_inputs_size_is_untouched():
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    assert np.array_equal(Preprocessor(480, 640, GREY)([image], boxes(image))[0].numpy(), image)


@pytest.mark.parametrize("size", SIZES)
def test_resizing_on_a_gpu_is_that_of_the_cpu_to_a_grey_level(size):
    image = photo(*size)
    (box,) = boxes(image)
    target = np.empty((box.content_height, box.content_width, 3), np.uint8)
    resize_into(image, target)
    other = resize_tensor(torch.from_numpy(image), target.shape[:2]).numpy()
    assert np.abs(other.astype(int) - target).max() <= 2


def test_shrinking_does_not_alias():
    """Stripes finer than a pixel of the small image become their mean, not stripes of another width."""
    stripes = np.zeros((1440, 1920, 3), np.uint8)
    stripes[:, ::2] = 200
    target = np.empty((480, 640, 3), np.uint8)
    resize_into(stripes, target)
    assert target.min() >= 98 and target.max() <= 102


def test_a_smaller_image_after_a_larger_one_leaves_nothing_of_it():
    preprocess = Preprocessor(480, 640, GREY)
    first, second = photo(480, 640, 1), photo(720, 1280, 2)
    preprocess([first], boxes(first))
    reused = preprocess([second], boxes(second)).clone()
    fresh = Preprocessor(480, 640, GREY)([second], boxes(second))
    assert torch.equal(reused, fresh)


def test_a_batch_holds_images_of_different_sizes_in_order():
    images = [photo(480, 640, 1), photo(720, 1280, 2), photo(640, 480, 3)]
    preprocess = Preprocessor(480, 640, GREY)
    batch = preprocess(images, boxes(*images)).clone()
    for place, image in enumerate(images):
        assert torch.equal(batch[place], Preprocessor(480, 640, GREY)([image], boxes(image))[0])
    assert preprocess(images[:2], boxes(*images[:2]), size=3).shape[0] == 3


def test_views_with_odd_strides_are_read_right():
    image = photo(480, 640)
    flipped = image[::-1, :, ::-1]
    assert np.array_equal(
        Preprocessor(480, 640, GREY)([flipped], boxes(flipped))[0].numpy(), np.ascontiguousarray(flipped)
    )
