"""The page about a run needs nothing from anywhere and tells what happened; its charts are at the places they should
be."""

import base64
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
import recorded
from recorded import drive, record, replay

from dino_perception.bags.report.charts import Chart, Curve
from dino_perception.bags.report.frame_log import PICTURES, FrameLog
from dino_perception.bags.report.page import live
from dino_perception.perception.frame import Frame


class Page(HTMLParser):
    """Checks that tags close, and collects what a browser would load."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "path", "!doctype"):
            self.open.append(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]

    def handle_endtag(self, tag):
        if tag not in ("path",):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + "\n"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    source = record(folder / "in", drive(9))
    result = replay(
        source, folder / "out.mcap", report=folder / "report", pictures=folder / "pictures", video=folder / "v.mp4"
    )
    return folder, result, (folder / "report" / "index.html").read_text()


def test_it_is_one_page_that_loads_nothing(page):
    parsed = Page(page[2])
    assert not parsed.open and parsed.loads and all(load.startswith("data:image/jpeg;base64,") for load in parsed.loads)
    assert not re.search(r"https?://|@import|url\(|<script|<link", page[2])
    assert [p.name for p in (page[0] / "report").iterdir()] == ["index.html"]
    above = page[2][: page[2].index("<svg")]
    assert (
        above.count('class="row"') == 9 and "The other 4 pictures" in above
    )  # pictures first, and then charts at once
    assert above.partition("<details>")[0].count('class="row"') == 5


def test_it_says_what_happened(page):
    text = Page(page[2]).text
    for words in (
        "in → out.mcap",
        "images",
        "percepts a second",
        "torch float32",
        "Time a frame, ms",
        "What the ground is, %",
        "Depth below the sky: median",
        "Matches with the reference frame",
        "camera period",
        "Messages written",
        page[1].figures["output_sha256"],
    ):
        assert words in text, words


def test_the_sky_has_no_say_in_the_depth_and_pictures_come_first(page):
    log = FrameLog(recorded.SETTINGS, recorded.perceiver().labels, pictures=False)
    percept = recorded.perceiver().perceive([Frame("camera", 7, "f", recorded.picture(0))])[0]
    sky = next(label.id for label in percept.segmentation.labels if label.name == "sky")
    ground = next(label.id for label in percept.segmentation.labels if label.name != "sky")
    percept.segmentation.mask[:] = ground
    percept.segmentation.mask[:20], percept.depth.metres[:20] = sky, np.nan
    percept.depth.metres[20:] = 3.0
    log(percept, 9, 12.5)
    assert log.rows[0].known == 1.0 and log.rows[0].depth == (3.0, 3.0, 3.0)
    assert page[2].index("<img") < page[2].index("<svg")


def test_its_pictures_are_pictures(page):
    loads = Page(page[2]).loads
    assert len(loads) == 9 * 4
    for load in loads[:4]:
        image = cv2.imdecode(np.frombuffer(base64.b64decode(load.split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
        assert image.shape[1] == 300


def test_pictures_and_video_have_every_frame(page):
    folder = page[0]
    names = sorted(p.name for p in (folder / "pictures").iterdir())
    assert len(names) == 9 and names[0] == f"camera_{recorded.START:020d}.jpg"
    sheet = cv2.imread(str(folder / "pictures" / names[4]))
    assert sheet.shape == (2 * recorded.HEIGHT, 2 * recorded.WIDTH, 3)
    corner = sheet[: recorded.HEIGHT, : recorded.WIDTH, ::-1].astype(int)
    assert np.abs(corner - recorded.picture(4)).mean() < 15  # the image itself, in the right colours
    video = cv2.VideoCapture(str(folder / "v.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 9 and video.get(cv2.CAP_PROP_FPS) == pytest.approx(10, rel=0.05)


def test_pictures_stay_few_and_evenly_spaced_however_long_the_bag():
    log = FrameLog(recorded.SETTINGS, recorded.perceiver().labels)
    percept = recorded.perceiver().perceive([Frame("camera", 1, "f", recorded.picture(0))])[0]
    for number in range(200):
        log(percept, number, 1.0)
    kept = [picture.number for picture in log.pictures]
    assert len(log.rows) == 200 and PICTURES // 2 <= len(kept) <= PICTURES
    assert len(set(np.diff(kept))) == 1 and kept[0] == 0


def test_a_row_measures_the_percept():
    log = FrameLog(recorded.SETTINGS, recorded.perceiver().labels, pictures=False)
    percept = recorded.perceiver().perceive([Frame("camera", 7, "f", recorded.picture(0))])[0]
    log(percept, 9, 12.5)
    (row,) = log.rows
    mask = percept.segmentation.mask
    assert (row.time_ns, row.stamp_ns, row.camera, row.ms) == (9, 7, "camera", 12.5)
    assert row.classes == {label.id: pytest.approx((mask == label.id).mean()) for label in percept.segmentation.labels}
    assert row.confidence == pytest.approx(percept.segmentation.confidence.mean() / 255)
    sky = [label.id for label in percept.segmentation.labels if label.name == "sky"]
    metres = percept.depth.metres[~np.isin(mask, sky)]
    assert 0 < metres.size and row.known == pytest.approx(np.isfinite(metres).mean())
    assert row.depth[1] == pytest.approx(np.median(metres[np.isfinite(metres)]), rel=0.1)
    assert row.matches == len(percept.correspondences.x) and row.rss_mb > 50


def test_a_live_node_of_this_speed_drops_what_a_mailbox_of_one_would():
    """Frames every 100 ms that take 250: it looks at 0, then at the newest of those that came meanwhile."""
    times = np.arange(8) * 0.1
    latency, dropped = live(times, np.full(8, 250.0))
    assert np.flatnonzero(~dropped).tolist() == [0, 2, 5, 7]
    np.testing.assert_allclose(latency[~dropped], [250, 300, 250, 300])
    latency, dropped = live(times, np.full(8, 60.0))
    assert not dropped.any() and np.allclose(latency, 60)


def test_a_curve_goes_through_its_values():
    chart = Chart(
        "x", "m", np.array([0.0, 1.0, 2.0, 3.0]), [Curve("a", np.array([0.0, 50.0, np.nan, 100.0]), "#000")], top=100.0
    )
    path = re.findall(r'<path d="(M[^"]*)" fill="none" stroke="#000"', chart.svg())[0]
    points = [tuple(map(float, p.split())) for p in re.split("[ML]", path)[1:]]
    (x0, y0), (x1, y1), (x3, y3) = points
    assert (
        y0 > y1 > y3
        and y1 == pytest.approx((y0 + y3) / 2, abs=0.1)
        and x1 - x0 == pytest.approx((x3 - x0) / 3, abs=0.1)
    )
    assert path.count("M") == 2  # the gap


def test_stacked_areas_reach_their_sum():
    chart = Chart(
        "x",
        "%",
        np.arange(3.0),
        [Curve("a", np.full(3, 30.0), "#111"), Curve("b", np.full(3, 70.0), "#222")],
        stacked=True,
        top=100.0,
    )
    heights = [
        sorted({float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", d)})
        for d in re.findall(r'<path d="(M[^"]*Z)"', chart.svg())
    ]
    (a_top, a_low), (b_top, b_low) = heights
    assert a_top == b_low and (a_low - a_top) / (b_low - b_top) == pytest.approx(30 / 70, rel=0.01)


def test_a_long_curve_is_thinned_by_means():
    values = np.sin(np.arange(50_000) / 3000) * 10 + 20
    chart = Chart("x", "", np.arange(50_000) / 10, [Curve("a", values, "#000")], top=40.0)
    path = re.findall(r'<path d="(M[^"]*)" fill="none" stroke="#000"', chart.svg())[0]
    assert 800 < path.count("L") < 1000 and len(chart.svg()) < 60_000


def test_names_from_a_bag_cannot_become_markup(tmp_path):
    source = record(tmp_path / "<b>in", drive(2))
    replay(source, tmp_path / "out.mcap", report=tmp_path / "report")
    text = (tmp_path / "report" / "index.html").read_text()
    assert "<b>in" not in text and "&lt;b&gt;in" in text
