"""Chromium without a window, spoken to through a pipe (the DevTools protocol), for tests of pages.

Needs the program alone, `apt-get install chromium`; no package of Python, and no port.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SECONDS = 300.0  # until an answer that does not come is a failure


def program() -> str | None:
    """Where Chromium is; None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page in one Chromium.

    Attributes:
      complaints: what the page threw or wrote to the console, and what its policy refused.
      requests: addresses that were asked for.
    """

    def __init__(self) -> None:
        found = program()
        assert found is not None
        self._home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()

        flags = ["--headless", "--remote-debugging-pipe", f"--user-data-dir={self._home.name}"]
        flags += ["--no-sandbox", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage"]
        flags += ["--disable-extensions", "--disable-background-networking", "--disable-sync"]
        # The protocol reads descriptor 3 and writes 4; a shell gives ours these numbers.
        line = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", line, "bash", found, *flags],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._number, self._rest, self._session = 0, b"", ""
        self._loaded = False
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._write)  # Chromium ends with its pipe
        os.close(self._read)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._home.cleanup()

    # ------------------------------------------------------------------------------ protocol
    def _call(self, method: str, **values: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": values}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _message(self) -> dict[str, Any]:
        late = time.monotonic() + SECONDS
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, late - time.monotonic()))
            assert ready, "Chromium does not answer"
            part = os.read(self._read, 1 << 20)
            assert part, "Chromium has ended"
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(text)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, values: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            details = values["exceptionDetails"]
            thrown = details.get("exception", {}).get("description", "")
            self.complaints.append(f"{details.get('text', '')} {thrown}")
        elif event == "Runtime.consoleAPICalled":
            said = (str(one.get("value", one.get("description"))) for one in values["args"])
            self.complaints.append(f"console.{values['type']}: {' '.join(said)}")
        elif event == "Log.entryAdded":
            self.complaints.append(f"{values['entry']['source']}: {values['entry']['text']}")
        elif event == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif event == "Page.loadEventFired":
            self._loaded = True

    # ------------------------------------------------------------------------------ the page
    def look(
        self, width: int, height: int = 900, *, dark: bool = False, phone: bool = False
    ) -> None:
        """Sets the window and the theme that the system prefers."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, path: Path) -> None:
        """Opens a file and waits until it is loaded and drawn."""
        self._loaded = False
        self._call("Page.navigate", url=path.resolve().as_uri())
        while not self._loaded:
            self._message()
        self.drawn()

    def drawn(self) -> None:
        """Waits for the next picture but one, by which all that was asked for is drawn."""
        frames = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        self.ask(f"{frames}.then(() => true)")

    def ask(self, script: str) -> Any:
        """The value of an expression in the page; promises are waited for."""
        answer = self._call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, f"{script}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def point(self, x: float, y: float, kind: str = "mouseMoved") -> None:
        """Moves the pointer; or "mousePressed", "mouseReleased" of its left button."""
        button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
        self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)
        self.drawn()

    def key(self, name: str) -> None:
        """Presses a key, such as "ArrowRight"."""
        codes = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, "Escape": 27, "Tab": 9}
        for kind in ("keyDown", "keyUp"):
            self._call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=name,
                code=name,
                windowsVirtualKeyCode=codes[name],
            )
        self.drawn()

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """Writes the page as PNG: all of it, or what the window shows."""
        data = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(data["data"]))
