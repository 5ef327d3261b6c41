"""The live front door: a lifecycle node that wires cameras, worker, parameters, services and diagnostics together."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import rclpy
from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.qos import qos_profile_sensor_data as SENSOR
from std_srvs.srv import SetBool, Trigger

from dino_perception.messages.intake import Intake
from dino_perception.messages.printable import printable
from dino_perception.messages.topics import offered
from dino_perception.messages.types import RclpyTypes
from dino_perception.missing_packages import missing
from dino_perception.perception.settings import Settings
from dino_perception.ros.camera import Camera, prefixes
from dino_perception.ros.camera_height import StaticFrames
from dino_perception.ros.complaints import CallbackErrors, Complaints
from dino_perception.ros.diagnostics import Diagnostics, Finding
from dino_perception.ros.findings import camera_finding, node_finding
from dino_perception.ros.frame_statistics import Account
from dino_perception.ros.inputs import CameraInput
from dino_perception.ros.lasting_executor import LastingExecutor, answer_always
from dino_perception.ros.mailbox import Mailbox
from dino_perception.ros.outputs import CameraOutputs
from dino_perception.ros.parameter_files import ParameterFileError, check_parameter_file, given_parameter_files
from dino_perception.ros.parameters import Parameters
from dino_perception.ros.startup import Startup
from dino_perception.ros.teaching import Lesson, Refusal, offer_teaching, taught
from dino_perception.ros.transitions import PatientLifecycleNode

if TYPE_CHECKING:  # torch takes seconds to import; it is loaded while configuring, when the node answers already
    from dino_perception.perception.perceiver import Perceiver
    from dino_perception.ros.worker import Worker

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
TRANSFORMS = "tf2_msgs/msg/TFMessage"
BAD_ARGUMENTS, DEVICE_LOST = 2, 3
"""Exit codes of a node whose arguments cannot be used, and of one that has lost its GPU."""
GOODBYE_S = 2.0
"""How long a stop waits for a configure that is under way."""


class PerceptionNode(PatientLifecycleNode):
    """See INTERFACES: configure loads and checks, activate starts, deactivate stops and drops frames, cleanup frees."""

    def __init__(self, **options: Any):
        super().__init__("dino_perception", **options)
        self._types = RclpyTypes()
        self._perceiver: Perceiver | None = None
        self._intake: Intake | None = None
        self._worker: Worker | None = None
        self._cameras: dict[str, Camera] = {}
        self._account = Account(())
        self._wheels: Any = None
        self._settings = Settings()
        self._enabled = True
        self._doing, self._begun = "", 0.0
        self._problem = ""
        self._warnings: list[str] = []
        self._complain = Complaints(lambda text: self.get_logger().error(text))
        self.callback_errors = CallbackErrors(self._complain)
        self._declared = Parameters(self, self._change, self._mended)
        self._startup = Startup(self, self._declared, lambda: self._problem)
        self._diagnostics = Diagnostics(self)
        self._diagnostics.add("perception", self._find)
        self.create_service(SetBool, "~/enable", self._on_enable)
        self.create_service(Trigger, "~/reset_tracks", self._on_reset_tracks)
        offer_teaching(self, self._types, self._teach)
        answer_always(self, self.callback_errors)
        known = self._types.type(TRANSFORMS) if self._types.available(TRANSFORMS) else None
        self._frames = StaticFrames(self, known)
        self._jumps = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True),
            post_callback=self._on_jump,
        )
        for name in self._declared.unknown():
            self.get_logger().warn(
                f"'{printable(name)}' was given but is no parameter of this node; is it spelled right?"
            )

    # Lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._problem, self._warnings = "", []
        try:
            self._settings = self._declared.lock()
            self._load(self._settings)
        except Exception as error:
            # Sentences of our own (settings, checkpoints, heads, engines) stand alone; anything else is named.
            known = type(error).__module__.startswith("dino_perception.")
            self._problem = printable(missing(error) or (error if known else f"{type(error).__name__}: {error}"))
            self.get_logger().error(f"not configured: {self._problem}. {self._startup.next_step()}")
            self._unload()
            return FAILURE
        finally:
            self._doing = ""
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        if self._enabled:
            self._open()
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._close()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._unload()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._unload()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._unload()
        return super().on_error(state)

    def destroy_node(self) -> None:
        self._unload()
        self._jumps.unregister()
        super().destroy_node()

    @property
    def exit_code(self) -> int:
        """What the process shall end with."""
        return self._startup.exit_code

    # What the transitions do

    def _load(self, settings: Settings) -> None:
        """Slow, in a thread of its own. Raises errors with sentences."""
        self._begun = time.monotonic()
        names = prefixes(settings.cameras)
        self._report("loading")
        from dino_perception.perception.perceiver import Perceiver

        self._perceiver = Perceiver(settings, report=self._report)
        self._intake = Intake(self._perceiver, settings, self._types, self._frames.height)
        self._account = Account(settings.cameras)
        self._intake.odometry.frames = self._frames.tree
        self._wheels = self._listen_to_wheels(settings)
        topics = self._topics(settings)
        transforms = settings.odometry.tf and self._types.available(TRANSFORMS)
        if settings.odometry.tf and not transforms:
            self._warn("odometry.tf is true, but nothing goes to /tf: the package tf2_msgs is not installed")
        self._intake.transforms_of = next(iter(names))  # one camera's odometry is the robot's
        for camera, prefix in names.items():
            own = transforms and camera == self._intake.transforms_of
            outputs = CameraOutputs(self, prefix, topics, self._types, self._warn, own)
            inputs = CameraInput(self, camera, prefix, settings.image_transport, self._account.cameras[camera])
            inputs.max_megapixels, inputs.image_bits = settings.max_megapixels, settings.image_bits
            self._cameras[camera] = Camera(inputs, outputs)
            outputs.publish(self._intake.once(camera, topics))
            self._diagnostics.add(f"camera {camera}", lambda camera=camera: self._find_camera(camera))
        about = self._perceiver.describe()
        if not self._perceiver.trained:
            self._warn("the weights are untrained: outputs mean nothing")
        self.get_logger().info(
            f"configured in {time.monotonic() - self._begun:.1f} s: {settings.backbone} on "
            f"{about['engine']} {about['precision']} ({about['device']}); {about['reason']}"
        )

    def _listen_to_wheels(self, settings: Settings) -> Any:
        """Subscribe to the robot's own odometry, where it is named."""
        topic, kind = settings.odometry.wheels, "nav_msgs/msg/Odometry"
        if not topic:
            return None
        if not self._types.available(kind):
            self._warn(f"odometry.wheels is {topic}, but nothing is heard there: the package nav_msgs is not installed")
            return None
        hear = self._intake.odometry.wheels.hear

        def heard(message: Any) -> None:
            at, stamp = message.pose.pose.position, message.header.stamp
            hear(stamp.sec * 1_000_000_000 + stamp.nanosec, (at.x, at.y, at.z))

        return self.create_subscription(self._types.type(kind), topic, heard, SENSOR)

    def _topics(self, settings: Settings) -> list[str]:
        """The output topics that the loaded heads can fill and whose message types are installed."""
        topics = []
        for name, topic in offered(settings.heads).items():
            if not topic.filled(self._perceiver.outputs):
                continue
            if not self._types.available(topic.type):
                self._warn(f"{name} is not published: the package {topic.type.split('/')[0]} is not installed")
                continue
            topics.append(name)
        return topics

    def _open(self) -> None:
        """Look at frames from now on."""
        from dino_perception.ros.overlapped_worker import OverlappedWorker
        from dino_perception.ros.worker import Worker

        self._intake.change(self._settings)
        mailbox = Mailbox()
        worker = Worker if self._perceiver.device.type == "cpu" else OverlappedWorker
        self._worker = worker(
            mailbox,
            self._perceiver,
            self._intake,
            self._cameras,
            self._account,
            now_ns=lambda: self.get_clock().now().nanoseconds,
            complain=self._complain,
            lost=self._leave,
        )
        self._worker.restart()
        self._worker.start()
        for camera in self._cameras.values():
            camera.inputs.open(mailbox)

    def _close(self) -> None:
        """Look at no more frames, and drop what waits."""
        for camera in self._cameras.values():
            camera.inputs.close()
        if self._worker is not None and not self._worker.stop():
            self.get_logger().error("the batch under way does not end")
        self._worker = None

    def _unload(self) -> None:
        """Free everything that configuring took."""
        self._close()
        for name, camera in self._cameras.items():
            self._diagnostics.remove(f"camera {name}")
            camera.outputs.close()
        self._cameras = {}
        if self._wheels is not None:
            self.destroy_subscription(self._wheels)
            self._wheels = None
        perceiver, self._perceiver, self._intake = self._perceiver, None, None
        if perceiver is not None:
            perceiver.close()
            del perceiver
            gc.collect()
        self._declared.unlock()

    # Services, parameters and time

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        changed = request.data != self._enabled
        self._enabled = request.data
        active = self._state_machine.current_state[1] == "active"
        if changed and active:
            self._open() if self._enabled else self._close()
        response.success = True
        response.message = "enabled" if self._enabled else "disabled"
        if not active:
            response.message += "; it takes effect when the node is activated"
        return response

    def _on_reset_tracks(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._worker is not None
        response.message = "the node is not active"
        if self._worker is not None:
            self._worker.reset_tracks()
            response.message = "the next frame of every camera starts new tracks"
        return response

    def _teach(self, lesson: Lesson) -> tuple[str, int]:
        if self._worker is None:
            raise Refusal("the node is not active")
        return taught(lesson, self._perceiver, self._worker, self._tell_classes, self._complain)

    def _tell_classes(self) -> None:
        """Publish the latched messages once more: the classes have changed."""
        self._intake.told.clear()
        for name, camera in self._cameras.items():
            camera.outputs.publish(self._intake.once(name, camera.outputs.topics))

    def _mended(self) -> None:
        self._startup.mended()

    def _change(self, settings: Settings) -> None:
        self._settings = settings
        for camera in self._cameras.values():
            camera.inputs.max_megapixels = settings.max_megapixels
            camera.inputs.image_bits = settings.image_bits
        if self._worker is not None:
            self._worker.change(settings)

    def _on_jump(self, jump: Any) -> None:
        if self._worker is not None:
            self._worker.restart()

    # Telling people

    def _report(self, line: str) -> None:
        self._doing = line
        self.get_logger().info(line)

    def _warn(self, text: str) -> None:
        self._warnings.append(text)
        self.get_logger().warn(text)

    def _leave(self, reason: str) -> None:
        """End the process: without its device it can do nothing, and launch (`respawn:=true`) or systemd start it anew."""
        self.get_logger().fatal(f"the device does not answer any more, leaving: {reason}")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(DEVICE_LOST)  # cleaning up would ask the device, and may wait for ever

    def _find(self) -> Finding:
        doing = self._doing and f"{time.monotonic() - self._begun:.0f} s: {self._doing}"
        return node_finding(
            self._state_machine.current_state[1],
            self._enabled,
            doing,
            self._problem,
            self._warnings,
            self._account,
            self._perceiver,
            self.callback_errors,
        )

    def _find_camera(self, camera: str) -> Finding:
        finding = camera_finding(
            self,
            self._cameras[camera].inputs,
            self._account.cameras[camera],
            self._settings.max_age,
            self._worker is not None,
            self._mast(camera),
        )
        ground = self._intake.ground(camera) if self._intake is not None else {}
        odometry = self._intake.odometry.health(camera) if self._intake is not None else {}
        finding = finding._replace(values={**finding.values, **odometry, **ground})
        depth = self._settings.head.get("depth")
        if depth is None or not depth.camera_height_scaling:
            return finding
        scale = self._intake.depth_scale
        by_height = {"depth scale by height": scale.scale(camera), "depth scale health": scale.health(camera)}
        return finding._replace(values={**finding.values, **by_height})

    def _mast(self, camera: str) -> tuple[float | None, str]:
        """How high the camera stands, and what says so."""
        if self._settings.camera_height > 0:
            return self._settings.camera_height, "the parameter camera_height"
        ground = self._settings.ground_frame
        return self._frames.height(self._account.cameras[camera].heights.frame_id, ground), f"TF from {ground}"


def main(args: list[str] | None = None) -> int:
    """Run the node until it is asked to stop. Returns the exit code."""
    try:
        rclpy.init(args=args)
    except Exception as error:  # a parameter file that is not there, an argument that ROS does not know
        print(f"perception_node: {error}", file=sys.stderr)
        return BAD_ARGUMENTS
    node, code = None, 0
    try:
        node = PerceptionNode()
        for path in given_parameter_files(sys.argv if args is None else args):
            check_parameter_file(path, node.get_fully_qualified_name())
        executor = LastingExecutor(node.callback_errors)
        executor.add_node(node)
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except ParameterFileError as error:
        print(f"perception_node: {error}", file=sys.stderr)
        code = BAD_ARGUMENTS
    except Exception:
        if rclpy.ok():
            raise
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient second Ctrl-C shall not tear the clean-up apart
        if node is not None and not node.leave(GOODBYE_S):
            # An engine build cannot be interrupted, and the interpreter must not be taken down under it. Built engines
            # are moved into the cache in one step, so that leaving here harms nothing.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    return code or (node.exit_code if node is not None else 0)
