# `make demo` and `make test` set up all they need in this folder (see tools/setup.py); `make setup` does only that.
# PYTHON: the interpreter of the virtual environment, 3.11 or newer. ARGS: further arguments of the demo or of pytest.

PYTHON ?= python3
ARGS ?=

# A ROS 2 installation or workspace sourced in this shell is another world than .venv: keep them apart.
unexport PYTHONPATH AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH LD_LIBRARY_PATH _ROS_WHEELS_BOOTSTRAP_COMPLETE

.PHONY: demo test test-tensorrt test-distros setup tensorrt-rtx torchvision clean

demo: setup
	@.venv/bin/dino-perception demo $(ARGS)

test: setup tensorrt-rtx torchvision
	@.venv/bin/python -m pytest test $(ARGS)

# Every graph that ships through a real TensorRT builder, by both ways; minutes. ARGS="--only rover-tiny" for some.
test-tensorrt: setup tensorrt-rtx
	@.venv/bin/python test/engines/build_with_tensorrt.py --all $(ARGS)

# The versions that ROS distributions bring, each in an environment of its own under .distros (gigabytes; minutes).
test-distros:
	@$(PYTHON) -B tools/distros.py $(ARGS)

setup:
	@command -v $(PYTHON) >/dev/null || { echo "This machine lacks $(PYTHON); install with: sudo apt install python3 python3-venv python3-dev cmake g++" >&2; exit 1; }
	@$(PYTHON) -B tools/setup.py

tensorrt-rtx: setup
	@.venv/bin/python -B tools/tensorrt_rtx.py

torchvision: setup
	@.venv/bin/python -B tools/torchvision_apart.py

clean:
	rm -rf .venv .cache .distros build install log out
