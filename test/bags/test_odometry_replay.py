"""Odometry in a replay: its topic, its transforms beside those of the recording, and a stop in between."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import recorded
import yaml
from recorded import decoded, drive, record, replay

from dino_perception.bags.job import Job, run
from dino_perception.bags.storage.problems import BagError
from dino_perception.bags.storage.reader import BagReader
from dino_perception.cli.__main__ import main
from dino_perception.perception.settings import Settings

TOPIC = "/dino_perception/odometry"


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odometry")
    source = record(folder / "in", drive(5))
    assert replay(source, folder / "out.mcap").code == 0
    return folder


def test_there_is_a_pose_for_each_image_with_its_stamp(replayed):
    poses = decoded(replayed / "out.mcap", TOPIC)
    assert len(poses) == 5
    stamps = [p.header.stamp.sec * 10**9 + p.header.stamp.nanosec for p in poses]
    matches = decoded(replayed / "out.mcap", "/dino_perception/correspondences")
    assert stamps == [m.header.stamp.sec * 10**9 + m.header.stamp.nanosec for m in matches]
    for message in poses:
        assert message.header.frame_id == "odom"
        assert (np.linalg.eigvalsh(np.reshape(message.pose.covariance, (6, 6))) > -1e-9).all()


def test_transforms_go_to_tf_only_when_asked_for(replayed, tmp_path):
    with BagReader(replayed / "out.mcap") as bag:
        assert "/tf" not in bag.topics
    settings = Settings.from_flat({**recorded.SMALL, "odometry.tf": True})
    job = Job(replayed / "in", tmp_path / "out.mcap", settings)
    assert run(job, recorded.perceiver).code == 0
    turned, poses = decoded(tmp_path / "out.mcap", "/tf"), decoded(tmp_path / "out.mcap", TOPIC)
    assert turned[0].transforms[0].header.stamp == poses[0].header.stamp
    assert turned[0].transforms[0].transform.translation.z == poses[0].pose.pose.position.z


def test_the_command_writes_the_way_that_the_replay_has_and_evo_reads_it(replayed, tmp_path):
    file_interface = pytest.importorskip("evo.tools.file_interface", reason="evo is not installed")
    config = tmp_path / "config.yaml"
    values = {**recorded.SMALL, "correspondences.reference": "previous"}
    config.write_text(yaml.safe_dump({"/**": {"ros__parameters": values}}))
    out, picture, figures = (tmp_path / name for name in ("way.tum", "way.png", "way.json"))
    arguments = ["odometry", str(replayed / "in"), "--config", str(config), "--out", str(out)]
    assert main([*arguments, "--picture", str(picture), "--json", str(figures)]) == 0
    way = file_interface.read_tum_trajectory_file(out)
    poses = decoded(replayed / "out.mcap", TOPIC)
    assert way.num_poses == len(poses) == json.loads(figures.read_text())["camera"]["frames"]
    for read, message in zip(way.positions_xyz, poses):
        at = message.pose.pose.position
        assert read == pytest.approx([at.x, at.y, at.z], abs=1e-8)
    assert way.timestamps[0] == pytest.approx(recorded.START / 1e9)
    assert cv2.imread(str(picture)).shape[2] == 3


def test_a_topic_that_is_no_odometry_is_named(replayed, tmp_path):
    settings = Settings.from_flat({**recorded.SMALL, "odometry.wheels": "/notes"})
    with pytest.raises(BagError, match="'odometry.wheels' is /notes, which is of type std_msgs/msg/String"):
        run(Job(replayed / "in", tmp_path / "out.mcap", settings), recorded.perceiver)
