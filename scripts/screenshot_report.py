"""Screenshots of a page in headless Chromium, on a desktop and on a phone, light and dark, and as a PDF.

    python scripts/screenshot_report.py RUN/report.html FOLDER

Ends with 1 if the page asks for anything but itself, or logs anything.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# Name -> width in CSS pixels, pixels for each, colour scheme.
SCREENS = {"desktop": (1100, 1.0, "light"), "phone": (390, 2.0, "light"), "dark": (1100, 1.0, "dark")}
LONGEST = 16_000  # CSS pixels of a page


class Browser:
    """Chromium over the pipe of its developer protocol: JSON that ends with a zero byte. ``events``: what it said."""

    def __init__(self, profile: str) -> None:
        program = next(path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name)))
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
        # Chromium reads from 3 and writes to 4.
        script = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        command = ["sh", "-c", script, program, *flags, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(command, pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(to_write)
        self._ids, self._rest = itertools.count(1), b""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def wait_for(self, event: str) -> None:
        while not any(one.get("method") == event for one in self.events):
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            self._rest += os.read(self._read, 1 << 20)
        line, self._rest = self._rest.split(b"\0", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer


def main(page: Path, folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    url = page.resolve().as_uri()
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(profile)
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        tab = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            browser.call(f"{domain}.enable", tab)
        complaints = []
        for name, (width, density, scheme) in SCREENS.items():
            browser.events.clear()
            media = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.call("Emulation.setEmulatedMedia", tab, features=media)
            view = {"width": width, "height": 900, "deviceScaleFactor": density, "mobile": name == "phone"}
            browser.call("Emulation.setDeviceMetricsOverride", tab, **view)
            browser.call("Page.navigate", tab, url=url)
            browser.wait_for("Page.loadEventFired")
            size = browser.call("Page.getLayoutMetrics", tab)["cssContentSize"]
            if size["width"] > width:
                complaints.append(f"{name}: {size['width']} pixels wide on a screen of {width}")
            clip = {"x": 0, "y": 0, "width": width, "height": min(size["height"], LONGEST), "scale": 1}
            shot = browser.call("Page.captureScreenshot", tab, captureBeyondViewport=True, clip=clip)
            (folder / f"report-{name}.png").write_bytes(base64.b64decode(shot["data"]))
            complaints += [f"{name}: {words}" for event in browser.events for words in _complaints(event, url)]
        paper = browser.call("Page.printToPDF", tab, printBackground=True, preferCSSPageSize=True)
        (folder / "report.pdf").write_bytes(base64.b64decode(paper["data"]))
        browser.call("Browser.close")
        browser.process.wait()
    print("\n".join(complaints) or f"{len(SCREENS)} screenshots in {folder}: no request, no message")
    return 1 if complaints else 0


def _complaints(event: dict[str, Any], url: str) -> list[str]:
    found = event.get("params", {})
    match event.get("method"):
        case "Network.requestWillBeSent":
            asked = found["request"]["url"]
            return [] if asked == url or asked.startswith("data:") else [f"asks for {asked}"]
        case "Log.entryAdded":
            return [found["entry"]["text"]]
        case "Runtime.exceptionThrown" | "Runtime.consoleAPICalled":
            return [json.dumps(found)]
    return []


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
