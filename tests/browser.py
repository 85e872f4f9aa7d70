"""A real browser that opens pages of the library, asked over the DevTools protocol; no driver is needed."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
REQUIRED = "INRFAST_BROWSER"
"""With the value ``required`` in the environment, a missing browser is a failure; otherwise its tests are skipped."""

OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
WIDTHS = (375, 1200)
SECONDS = 60.0

LOOK = """JSON.stringify({
  images: [...document.images].map(image => [image.complete, image.naturalWidth, image.alt]),
  content: document.documentElement.scrollWidth,
  window: document.documentElement.clientWidth,
  height: document.documentElement.scrollHeight,
  text: document.body.innerText,
  background: getComputedStyle(document.body).backgroundColor,
  low: LOW
})"""
LOW = """(() => {
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (!colour.endsWith(", 0)") && colour !== "transparent") return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const low = [];
  for (const element of document.querySelectorAll("body *")) {
    if (![...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))];
    if ((Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5) low.push(element.outerHTML.slice(0, 80));
  }
  return low;
})()"""
"""Elements whose text has less contrast than WCAG 2 (AA) asks for."""


def found() -> str:
    """Return the browser; skip the test where there is none."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        reason = f"there is no browser to open the page with: none of {', '.join(NAMES)} is on the path"
        if os.environ.get(REQUIRED) == "required":
            pytest.fail(f"{reason}, and {REQUIRED}=required asks for one")
        pytest.skip(reason)
    return path


class Browser:
    """A running browser with one tab."""

    def __init__(self, process: subprocess.Popen[bytes], into: int, out: int) -> None:
        self.process, self._into, self._out = process, into, out
        self._number, self._buffer = 0, b""
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **given: Any) -> dict[str, Any]:
        """Return what the browser answers."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": given}
        session = getattr(self, "_session", None)
        os.write(self._into, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self.events.append(answer)

    def _read(self) -> dict[str, Any]:
        end = time.monotonic() + SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._out], [], [], max(end - time.monotonic(), 0))
            assert ready, "the browser does not answer"
            part = os.read(self._out, 1 << 20)
            assert part, "the browser has ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path, width: int, dark: bool = False, picture: Path | None = None) -> dict[str, Any]:
        """Return what a page of this width shows, with ``requests`` and ``errors``; ``picture``: a screenshot of it."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.ask("Page.navigate", url=page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())
        look = LOOK.replace("LOW", LOW)
        seen = json.loads(self.ask("Runtime.evaluate", expression=look)["result"]["value"])
        sent = [event["params"]["request"]["url"] for event in self._of("Network.requestWillBeSent")]
        seen["requests"] = [url for url in sent if not url.startswith("data:") and url != page.resolve().as_uri()]
        seen["errors"] = [*self._of("Runtime.exceptionThrown"), *self._of("Runtime.consoleAPICalled")]
        seen["errors"] += self._of("Log.entryAdded")
        if picture is not None:
            size = {"x": 0, "y": 0, "width": width, "height": min(seen["height"], 16_000), "scale": 1}
            shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=size)
            picture.write_bytes(base64.b64decode(shot["data"]))
        return seen

    def _of(self, method: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event.get("method") == method]


@contextmanager
def browser() -> Iterator[Browser]:
    """Run a browser for the block, with a new profile."""
    path = found()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        given_read, into = os.pipe()
        out, given_write = os.pipe()
        command = [path, *OPTIONS, f"--user-data-dir={profile}"]
        # The protocol is spoken on descriptors 3 and 4.
        script = f'exec "$@" 3<&{given_read} 4>&{given_write}'
        process = subprocess.Popen(
            ["bash", "-c", script, "browser", *command],
            pass_fds=(given_read, given_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(given_read)
        os.close(given_write)
        try:
            yield Browser(process, into, out)
        finally:
            os.close(into)
            os.close(out)
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def check(opened: Browser, page: Path) -> str:
    """Check that a page looks as it should at all widths, and return its text."""
    grounds = []
    for width in WIDTHS:
        for dark in (False, True):
            seen = opened.open(page, width, dark)
            assert seen["requests"] == []
            assert seen["errors"] == []
            assert all(done and wide > 0 and alt.strip() for done, wide, alt in seen["images"]), seen["images"]
            assert seen["content"] <= seen["window"] == width, f"{page} is {seen['content']} wide at {width}"
            assert seen["low"] == [], f"text of little contrast, dark {dark}"
            grounds.append(seen["background"])
    assert grounds[0] == grounds[2] != grounds[1] == grounds[3]
    return seen["text"]
