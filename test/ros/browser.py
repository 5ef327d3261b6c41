"""A headless Chromium driven over its debugging protocol, with nothing but aiohttp."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
from pathlib import Path

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str | None:
    """The path of a Chromium on this machine."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """`async with Browser(folder) as browser`: one page; `evaluate` runs JavaScript in it."""

    def __init__(self, folder: Path, width: int = 1400, height: int = 1300):
        self._folder = folder
        self._command = [
            chromium(),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--remote-debugging-port=0",
            f"--window-size={width},{height}",
            f"--user-data-dir={folder}",
            "about:blank",
        ]
        self._number = 0

    async def __aenter__(self) -> Browser:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        file = self._folder / "DevToolsActivePort"
        for _ in range(600):
            if file.exists() and file.read_text().strip():
                break
            await asyncio.sleep(0.1)
        port = file.read_text().split()[0]
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            pages = [page for page in await answer.json() if page["type"] == "page"]
        self._socket = await self._session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)
        return self

    async def __aexit__(self, *_) -> None:
        await self._session.close()
        self._process.kill()
        self._process.wait()

    async def call(self, method: str, **parameters):
        self._number += 1
        await self._socket.send_str(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads((await self._socket.receive()).data)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    async def open(self, address: str) -> None:
        await self.call("Page.navigate", url=address)

    async def evaluate(self, code: str):
        answer = await self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        return answer["result"].get("value")

    async def until(self, code: str, seconds: float = 60.0):
        """The first true value of an expression."""
        for _ in range(int(seconds / 0.2)):
            if value := await self.evaluate(code):
                return value
            await asyncio.sleep(0.2)
        raise AssertionError(
            f"{code} did not come true within {seconds:.0f} s: {await self.evaluate('document.body.innerText')}"
        )

    async def screenshot(self, path: Path) -> None:
        answer = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(answer["data"]))
