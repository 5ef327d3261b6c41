"""The viewer's page: who may look, what is shown, and that nobody looking costs nothing."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

aiohttp = pytest.importorskip("aiohttp")
pytest.importorskip("rclpy", reason="no ROS 2 here")

from browser import Browser, chromium  # noqa: E402
from live_node import SMALL, image, wait_for  # noqa: E402

from dino_perception.cli.__main__ import main  # noqa: E402
from dino_perception.messages.types import RclpyTypes  # noqa: E402
from dino_perception.ros.viewer.birdseye import AHEAD_M, ASIDE_M, PIXELS_PER_M, birdseye  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
OVERLAY = "/viewed/segmentation/overlay"


def cloud(points, big_endian=False):
    """A PointCloud2 with x, y, z and packed rgb."""
    order = ">" if big_endian else "<"
    rows = np.zeros(len(points), [("x", f"{order}f4"), ("y", f"{order}f4"), ("z", f"{order}f4"), ("rgb", f"{order}u4")])
    for row, (x, z, (r, g, b)) in zip(rows, points):
        row["x"], row["z"], row["rgb"] = x, z, r << 16 | g << 8 | b
    types = RclpyTypes()
    field = lambda name, offset, kind: types.make(
        "sensor_msgs/msg/PointField", name=name, offset=offset, datatype=kind, count=1
    )
    return types.make(
        "sensor_msgs/msg/PointCloud2",
        header=types.header(0, "camera"),
        height=1,
        width=len(points),
        fields=[field("x", 0, 7), field("y", 4, 7), field("z", 8, 7), field("rgb", 12, 7)],
        is_bigendian=big_endian,
        point_step=16,
        row_step=16 * len(points),
        data=np.frombuffer(rows.tobytes(), np.uint8),
        is_dense=False,
    )


@pytest.mark.parametrize("big_endian", [False, True])
def test_a_point_lies_where_it_is_seen_from_above(big_endian):
    red, nowhere = (255, 10, 20), float("nan")
    picture = birdseye(cloud([(1.5, 4.0, red), (nowhere, nowhere, red), (0.0, 99.0, red)], big_endian))
    assert picture.shape == (AHEAD_M * PIXELS_PER_M, 2 * ASIDE_M * PIXELS_PER_M, 3)
    rows, columns = np.nonzero((picture == red).all(axis=2))
    assert (AHEAD_M * PIXELS_PER_M - rows.mean()) / PIXELS_PER_M == pytest.approx(4.0, abs=0.05)
    assert columns.mean() / PIXELS_PER_M - ASIDE_M == pytest.approx(1.5, abs=0.05)


def test_a_cloud_without_positions_is_refused():
    with pytest.raises(ValueError, match="no field z"):
        message = cloud([(0.0, 1.0, (1, 2, 3))])
        message.fields = [f for f in message.fields if f.name != "z"]
        birdseye(message)


class Viewer:
    """`dino-perception view` as a process; `address` is what it printed."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dino_perception.cli", "view", "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address = self.process.stdout.readline().strip()

    def __enter__(self):
        assert re.match(r"http://[\d.]+:\d+/", self.address)
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(20) == 0


def status(address, **headers):
    async def ask():
        async with aiohttp.ClientSession() as session, session.get(address, headers=headers) as answer:
            return answer.status

    return asyncio.run(ask())


def test_only_this_machine_may_look_and_others_need_the_token():
    with Viewer() as viewer:
        assert status(viewer.address) == 200
        assert status(viewer.address, Host="evil.example") == 403  # led here by a name of another site's
        assert status(viewer.address + "look", Origin="http://evil.example") == 403
    with Viewer("--host", "0.0.0.0") as viewer:
        address = viewer.address.replace("0.0.0.0", "127.0.0.1")
        assert "?token=" in address and status(address) == 200
        assert status(address.partition("?")[0]) == 403
        assert status(address[:-1]) == 403


def test_a_port_that_is_taken_is_a_sentence(capfd):
    with Viewer() as viewer:
        port = viewer.address.rpartition(":")[2].strip("/")
        assert main(["view", "--port", port]) == 1
    assert f"port {port} of 127.0.0.1 cannot be served" in capfd.readouterr().err


@pytest.fixture(scope="module")
def live(start):
    """A node that looks, and a camera that sends to it all the time."""
    parameters = {**SMALL, "heads": ["segmentation", "depth"]}
    _, client = start(parameters, "-r", "image:=/camera/image_raw", name="viewed")
    client.wait_for_state("active")
    ended = threading.Event()

    def send():
        while not ended.wait(0.2):
            client.send(image(client.now_ns()), topic="/camera/image_raw")

    thread = threading.Thread(target=send)
    thread.start()
    yield client
    ended.set()
    thread.join()


def test_a_looker_gets_every_picture_and_nobody_looking_costs_nothing(live):
    watchers = lambda: live.node.count_subscribers(OVERLAY)

    async def look(address):
        seen, words = set(), {}
        async with aiohttp.ClientSession() as session, session.ws_connect(address + "look") as socket:
            async for message in socket:
                if message.type == aiohttp.WSMsgType.TEXT:
                    words = json.loads(message.data)
                else:
                    end = 1 + message.data[0]
                    assert message.data[end : end + 2] == b"\xff\xd8"
                    seen.add(message.data[1:end].decode())
                if (
                    {"/camera/image_raw", OVERLAY, "/viewed/depth/overlay"} <= seen
                    and words["status"]
                    and len(words["channels"]) >= 3
                ):
                    assert watchers() == 1
                    return words

    with Viewer() as viewer:
        time.sleep(2)
        assert watchers() == 0
        words = asyncio.run(asyncio.wait_for(look(viewer.address), 60))
        wait_for(lambda: watchers() == 0, "the viewer stopped listening", 20)
    assert any(one["name"].startswith("viewed") and one["values"] for one in words["status"])
    assert "/camera/image_raw" in [channel["topic"] for channel in words["channels"]]


def test_foxgloves_status_panel_chooses_a_status_that_the_node_sends(live):
    layout = json.loads((ROOT / "config" / "foxglove" / "rover.json").read_text())
    panel = layout["configById"]["DiagnosticStatusPanel!node"]
    name = panel["selectedName"].replace("dino_perception:", "viewed:")
    status = wait_for(lambda: live.diagnostics.get(name), "the panel's status")
    assert status.hardware_id == panel["selectedHardwareId"]


@pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
def test_a_real_browser_shows_the_pictures_and_the_diagnostics(live, tmp_path):
    async def browse(address):
        async with Browser(tmp_path / "profile") as browser:
            await browser.open(address)
            await browser.until("[...document.images].filter(i => i.naturalWidth > 0).length >= 3")
            shown = await browser.evaluate("[...document.images].map(i => i.alt)")
            assert {"/camera/image_raw", OVERLAY} <= set(shown)
            await browser.until("document.getElementById('status').innerText.includes('viewed')")
            assert await browser.evaluate("document.getElementById('link').textContent") == "live"
            await browser.screenshot(tmp_path / "page.png")

    with Viewer() as viewer:
        asyncio.run(browse(viewer.address))
    assert os.path.getsize(tmp_path / "page.png") > 5000
