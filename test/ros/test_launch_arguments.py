"""Arguments of the launch files: what is misspelt is named, and names come out as ROS has them."""

from __future__ import annotations

import pytest

from dino_perception.ros.launch_arguments import full_name, logger_name, misspelt, names_given, on_command_line, truth

KNOWN = ("image", "camera_info", "params_file", "log_level")


def test_a_misspelt_argument_is_named_with_the_one_that_was_meant():
    words = ["imgae:=/front/image_raw", "log_level:=debug", "--debug"]
    assert misspelt(names_given(words), KNOWN, certain=True) == [
        "there is no launch argument 'imgae'; did you mean 'image'?"
    ]
    (sentence,) = misspelt(["volume"], KNOWN, certain=True)
    assert all(name in sentence for name in ("volume", *KNOWN))


def test_what_another_launch_file_hands_on_may_be_its_own():
    assert misspelt(["world", "image", "map"], KNOWN, certain=False) == []
    assert misspelt(["parms_file"], KNOWN, certain=False) == [
        "there is no launch argument 'parms_file'; did you mean 'params_file'?"
    ]


@pytest.mark.parametrize(
    "command, whole",
    [
        (["ros2", "launch", "dino_perception", "rover.launch.py", "image:=/a"], True),
        (["ros2", "launch", "install/share/dino_perception/launch/rover.launch.py"], True),
        (["ros2", "launch", "my_robot", "bringup.launch.py"], False),
    ],
)
def test_a_launch_file_knows_whether_it_is_the_whole_launch(command, whole):
    assert on_command_line("rover.launch.py", command=command) is whole


@pytest.mark.parametrize(
    "pushed, namespace, name",
    [
        ("", "", "/dino"),
        ("", "rover", "/rover/dino"),
        ("/fleet", "", "/fleet/dino"),
        ("/fleet", "rover", "/fleet/rover/dino"),
        ("/fleet", "/rover", "/rover/dino"),
    ],
)
def test_names_follow_the_namespace(pushed, namespace, name):
    assert full_name(pushed, namespace, "dino") == name
    assert logger_name(name) == name[1:].replace("/", ".")


def test_yes_and_no_are_true_and_false():
    assert truth("respawn", {"respawn": "True"}) and not truth("respawn", {"respawn": "0"})
    with pytest.raises(ValueError, match="'respawn' is 'yes'; accepted are true and false"):
        truth("respawn", {"respawn": "yes"})
