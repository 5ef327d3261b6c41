"""`dino-perception view`: the live node in a browser, nothing to install."""

from __future__ import annotations

import argparse
import secrets
import sys

HELP = "serve one page that shows the live node: pictures, cloud from above, rates, latencies, diagnostics"


class ViewError(ValueError):
    """The page cannot be served; the message says why and what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve on (default: 127.0.0.1, this machine only)"
    )
    parser.add_argument("--port", type=int, default=8080, help="(default: 8080; 0 takes a free one)")
    parser.add_argument(
        "--token", default="", help="what the address must carry; drawn at random where others can reach the page"
    )
    parser.add_argument("--most-hz", type=float, default=10.0, metavar="HZ", help="pictures a second (default: 10)")


def run(args: argparse.Namespace) -> int:
    if not 0 <= args.port <= 65535:
        raise ViewError(f"--port {args.port} is none; give 1 to 65535, or 0 for a free one")
    if not 0.1 <= args.most_hz <= 60:
        raise ViewError(f"--most-hz {args.most_hz} cannot be had; give 0.1 to 60")
    try:
        import aiohttp  # noqa: F401
        import rclpy  # noqa: F401
    except ImportError as error:
        how = "pip install aiohttp" if error.name == "aiohttp" else "source a ROS 2 installation"
        raise ViewError(f"the viewer needs {error.name}, which is not here; {how}") from None
    import asyncio

    return asyncio.run(_serve(args))


async def _serve(args: argparse.Namespace) -> int:
    import asyncio
    import signal

    from aiohttp import web

    from dino_perception.ros.viewer.listener import Listener
    from dino_perception.ros.viewer.server import LOCAL, application

    token = args.token or ("" if args.host in LOCAL else secrets.token_urlsafe(12))
    listener = Listener(args.most_hz)
    runner = web.AppRunner(application(listener, token))
    await runner.setup()
    try:
        site = web.TCPSite(runner, args.host, args.port)
        try:
            await site.start()
        except OSError as error:
            raise ViewError(
                f"port {args.port} of {args.host} cannot be served: {error.strerror}; try --port 0"
            ) from None
        port = runner.addresses[0][1]
        shown = f"[{args.host}]" if ":" in args.host else args.host
        print(f"http://{shown}:{port}/{'?token=' + token if token else ''}", file=sys.stdout, flush=True)
        ended = asyncio.Event()
        for name in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(name, ended.set)
        await ended.wait()
    finally:
        await runner.cleanup()
        listener.close()
    return 0
