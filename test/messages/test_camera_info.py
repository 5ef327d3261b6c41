"""CameraInfo to CameraModel and back, with what drivers really send."""

import numpy as np
import pytest

from dino_perception.messages.camera_info import CameraInfoError, camera_info, camera_model
from dino_perception.messages.types import RclpyTypes, RosbagsTypes
from dino_perception.perception.geometry import project

K = np.array([[400.0, 0, 319.5], [0, 410.0, 239.5], [0, 0, 1]])
P = np.hstack([K * [[0.9], [0.9], [1]], [[-40.0], [0], [0]]])


@pytest.fixture(params=["rclpy", "rosbags"])
def types(request):
    made = RosbagsTypes() if request.param == "rosbags" else RclpyTypes()
    if not made.available("sensor_msgs/msg/CameraInfo"):
        pytest.skip("sensor_msgs for rclpy is not installed")
    return made


def info(types, **change):
    fields = dict(
        height=480,
        width=640,
        distortion_model="plumb_bob",
        d=np.array([-0.2, 0.05, 0.001, 0.002, 0.0]),
        k=K.reshape(-1),
        r=np.eye(3).reshape(-1),
        p=P.reshape(-1),
    )
    roi = change.pop("roi", None)
    if roi is not None:
        fields["roi"] = types.make("sensor_msgs/msg/RegionOfInterest", **roi)
    return types.make("sensor_msgs/msg/CameraInfo", header=types.header(5, "cam"), **{**fields, **change})


@pytest.mark.parametrize("model, count", [("plumb_bob", 5), ("rational_polynomial", 8), ("equidistant", 4)])
def test_a_round_trip_changes_nothing(types, model, count):
    d = np.linspace(-0.1, 0.1, count)
    camera = camera_model(info(types, distortion_model=model, d=d))
    assert (camera.width, camera.height, camera.model) == (640, 480, model)
    again = camera_info(types, camera, types.header(5, "cam"))
    assert again.distortion_model == model and (again.width, again.height) == (640, 480)
    for name, expected in (("k", K), ("d", d), ("p", P), ("r", np.eye(3))):
        np.testing.assert_array_equal(np.asarray(getattr(again, name)), expected.reshape(-1))


def test_no_calibration_is_no_model_and_no_error(types):
    assert camera_model(info(types, k=np.zeros(9), p=np.zeros(12), d=np.zeros(0), distortion_model="")) is None
    assert camera_model(types.make("sensor_msgs/msg/CameraInfo")) is None


def test_an_uncalibrated_info_says_so_by_zeros(types):
    message = camera_info(types, None, types.header(5, "cam"), width=32, height=24)
    assert not np.any(message.k) and (message.width, message.height) == (32, 24)
    assert camera_model(message) is None


def test_without_p_the_projection_is_k(types):
    camera = camera_model(info(types, p=np.zeros(12)))
    assert camera.p is None
    message = camera_info(types, camera, types.header(5, "cam"))
    np.testing.assert_array_equal(np.asarray(message.p).reshape(3, 4), np.hstack([K, np.zeros((3, 1))]))


def test_no_distortion_is_no_distortion_under_any_name(types):
    for model in ("", "none", "pinhole", "plumb_bob"):
        camera = camera_model(info(types, distortion_model=model, d=np.zeros(5)))
        assert camera.model == "plumb_bob" and camera.d.size == 0


@pytest.mark.parametrize(
    "change, sentence",
    [
        (dict(distortion_model="fov"), "distortion model 'fov' is not known; accepted are plumb_bob"),
        (dict(d=np.ones(3)), "plumb_bob has 3 distortion coefficients"),
        (dict(width=0), "0 x 480 pixels"),
        (dict(k=np.array([np.nan, 0, 1, 0, 400, 1, 0, 0, 1])), "not usable"),
        (dict(k=np.array([-400.0, 0, 1, 0, 400, 1, 0, 0, 1])), "not usable"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_sentence(types, change, sentence):
    with pytest.raises(CameraInfoError, match=sentence):
        camera_model(info(types, **change))


def test_region_of_interest_and_binning_describe_the_pixels_as_they_arrive(types):
    """A scene point falls onto the full sensor's pixel; cutting and averaging 2x2 blocks says where it is
    afterwards."""
    roi = dict(x_offset=100, y_offset=40, width=400, height=300)
    whole = camera_model(info(types, d=np.zeros(0)))
    part = camera_model(info(types, d=np.zeros(0), roi=roi, binning_x=2, binning_y=2))
    assert (part.width, part.height) == (200, 150)
    points = np.array([[0.1, 0.05, 1.0], [-0.2, 0.1, 2.0]])
    expected = (project(whole, points) - [100, 40] + 0.5) / 2 - 0.5
    np.testing.assert_allclose(project(part, points), expected, atol=1e-9)
    # P is cut and binned alike: x = (fx X + cx Z + Tx) / Z
    projected = (part.p @ np.append(points[0], 1))[:2] / points[0][2]
    full = (whole.p @ np.append(points[0], 1))[:2] / points[0][2]
    np.testing.assert_allclose(projected, (full - [100, 40] + 0.5) / 2 - 0.5, atol=1e-9)


def test_ros_1_field_names_are_read():
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS1_NOETIC)
    zeros = RosbagsTypes(get_typestore(Stores.ROS2_FOXY))
    stamp = store.types["builtin_interfaces/msg/Time"](sec=0, nanosec=0)
    header = store.types["std_msgs/msg/Header"](seq=0, stamp=stamp, frame_id="cam")
    roi = store.types["sensor_msgs/msg/RegionOfInterest"](x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    message = store.types["sensor_msgs/msg/CameraInfo"](
        header=header,
        height=480,
        width=640,
        distortion_model="plumb_bob",
        D=np.zeros(5),
        K=K.reshape(-1),
        R=np.eye(3).reshape(-1),
        P=P.reshape(-1),
        binning_x=0,
        binning_y=0,
        roi=roi,
    )
    np.testing.assert_array_equal(camera_model(message).k, K)
    assert zeros.available("sensor_msgs/msg/CameraInfo")


BAD = {
    "D is huge": dict(d=np.full(5, 1e300)),
    "D is huge, rational": dict(d=np.full(8, -1e200), distortion_model="rational_polynomial"),
    "D is huge, equidistant": dict(d=np.array([1e308, -1e308, 1e308, 1e308]), distortion_model="equidistant"),
    "D is NaN": dict(d=np.array([0.1, np.nan, 0, 0, 0])),
    "f is infinite": dict(k=np.array([np.inf, 0, 320, 0, 400, 240, 0, 0, 1])),
    "f is denormal": dict(k=np.array([1e-310, 0, 320, 0, 400, 240, 0, 0, 1])),
    "f is beyond reason": dict(k=np.array([1e300, 0, 320, 0, 400, 240, 0, 0, 1])),
    "f is negative": dict(k=np.array([-400.0, 0, 320, 0, 400, 240, 0, 0, 1])),
    "the centre is far away": dict(k=np.array([400, 0, 1e30, 0, 400, 240, 0, 0, 1])),
    "K has a skew": dict(k=np.array([400, 50, 320, 0, 400, 240, 0, 0, 1.0])),
    "K's last row": dict(k=np.array([400, 0, 320, 0, 400, 240, 0, 0, 0.0])),
    "P is NaN": dict(p=np.full(12, np.nan)),
    "P is huge": dict(p=np.full(12, 1e308)),
    "R is no rotation": dict(r=np.full(9, 7.0)),
    "R is NaN": dict(r=np.full(9, np.nan)),
}


@pytest.mark.parametrize("name", BAD)
def test_what_no_camera_can_be_is_refused_with_what_it_is(types, name):
    with pytest.raises(CameraInfoError, match=f"{name[0]} .*is|is not known"):
        camera_model(info(types, **BAD[name]))


def test_whatever_numbers_it_holds_there_are_rays_or_a_sentence(types):
    """Eight hundred calibrations of extreme numbers: each gives rays, finite or NaN, or a CameraInfoError."""
    from dino_perception.perception.geometry import rays, rectified

    random = np.random.default_rng(3)
    extremes = np.array([0, -0.0, 1e-320, 1e-30, 1e-3, 1, -1, 10, 1e3, 1e9, 1e150, 1e308, -1e308, np.inf, np.nan])
    usable = 0
    for turn in range(800):
        change = {}
        for name, good in (("k", K.reshape(-1)), ("p", P.reshape(-1)), ("r", np.eye(3).reshape(-1))):
            change[name] = np.where(random.random(good.size) < 0.08, random.choice(extremes, good.size), good)
        model = random.choice(["plumb_bob", "rational_polynomial", "equidistant"])
        d = random.normal(0, 0.1, {"plumb_bob": 5, "rational_polynomial": 14, "equidistant": 4}[model])
        change["d"] = np.where(random.random(d.size) < 0.2, random.choice(extremes, d.size), d)
        try:
            camera = camera_model(info(types, distortion_model=str(model), height=6, width=8, **change))
        except CameraInfoError:
            continue
        for each in (camera, rectified(camera)) if camera is not None else ():
            assert rays(each).shape == (6, 8, 3) and not np.isinf(rays(each)).any()
            usable += 1
    assert usable > 20
