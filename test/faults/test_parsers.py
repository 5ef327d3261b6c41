"""Whatever a file holds, its parser takes it or raises its one error with one sentence, and does not think about it long."""

import random
import time

import pytest
from parsers import folder_of, parsers

COUNT = 120
SECONDS = 10.0
ALL = parsers()


@pytest.mark.parametrize("name", ALL)
def test_a_damaged_file_is_one_error_with_one_sentence(name, tmp_path):
    parser, random_ = ALL[name], random.Random(name)
    refused, count = 0, round(COUNT * parser.share)
    for turn in range(count):
        path = folder_of(parser, tmp_path, parser.bad(random_))
        begun = time.monotonic()
        try:
            parser.read(path)
        except parser.error as error:
            assert str(error).strip() and "Traceback" not in str(error)
            refused += 1
        assert time.monotonic() - begun < SECONDS, f"turn {turn} took {time.monotonic() - begun:.1f} s"
    assert refused > count // 10
