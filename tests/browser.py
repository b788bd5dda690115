"""A page in headless Chromium, driven by the DevTools protocol over pipes, without a network."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time

EXECUTABLE = shutil.which("chromium") or shutil.which("google-chrome")


class Browser:
    """Opens one page by file://. ``complaints`` are the console's errors and warnings, ``requests`` the requested URLs.

    Args:
        page: path of the page.
        profile: an empty folder for the browser.
        width: width of the window in pixels.
        height: height of the window in pixels.
        dark: whether the browser prefers dark colours.
        webgl: whether the browser has WebGL.
    """

    def __init__(self, page, profile, *, width=1180, height=1000, dark=False, webgl=True):
        to_browser, self.commands = os.pipe()
        self.answers, from_browser = os.pipe()
        graphics = ["--enable-unsafe-swiftshader", "--use-gl=angle", "--use-angle=swiftshader"]
        options = ["--headless=new", "--no-sandbox", "--hide-scrollbars", "--disable-dev-shm-usage", "--no-first-run"]
        options += ["--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND"]
        options += [f"--user-data-dir={profile}", f"--window-size={width},{height}", "--remote-debugging-pipe"]
        options += graphics if webgl else ["--disable-gpu", "--disable-3d-apis"]
        options.append("about:blank")
        with contextlib.ExitStack() as held:  # the browser reads from 3 and writes to 4
            held.callback(os.close, to_browser)
            held.callback(os.close, from_browser)
            self.process = subprocess.Popen(
                ["bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "_", EXECUTABLE, *options],
                pass_fds=(to_browser, from_browser),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self.number, self.unread, self.session = 0, b"", None
        self.complaints, self.requests = [], []
        target = next(one for one in self.send("Target.getTargets")["targetInfos"] if one["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.send(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        colors = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[colors])
        self.send("Page.navigate", url=page.resolve().as_uri())
        self.wait_for("location.protocol == 'file:' && document.readyState == 'complete'")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.commands)
        os.close(self.answers)

    def send(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (answer := self.read()).get("id") != self.number:
            self.note(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def read(self):
        while b"\0" not in self.unread:
            assert select.select([self.answers], [], [], 60)[0], "the browser does not answer"
            received = os.read(self.answers, 1 << 20)
            assert received, "the browser has exited"
            self.unread += received
        message, _, self.unread = self.unread.partition(b"\0")
        return json.loads(message)

    def note(self, event):
        kind, what = event.get("method"), event.get("params", {})
        if kind == "Runtime.consoleAPICalled" and what["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(what["args"]))
        elif kind == "Runtime.exceptionThrown":
            self.complaints.append(str(what["exceptionDetails"]))
        elif kind == "Log.entryAdded" and what["entry"]["level"] in ("error", "warning"):
            self.complaints.append(what["entry"]["text"])
        elif kind == "Network.requestWillBeSent":
            self.requests.append(what["request"]["url"])

    def run(self, script):
        """The value of a line of JavaScript."""
        given = {"expression": script, "returnByValue": True, "awaitPromise": True}
        answer = self.send("Runtime.evaluate", **given)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, condition, seconds=60):
        """Waits until a line of JavaScript is true."""
        end = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < end, (condition, self.complaints)
            time.sleep(0.05)

    def press(self, key):
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def click(self, selector):
        """Clicks the middle of an element."""
        x, y, width, height = self.box(selector)
        for kind in ("mousePressed", "mouseReleased"):
            at = {"x": x + width / 2, "y": y + height / 2}
            self.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)

    def box(self, selector):
        """Scrolls to an element and returns its left, top, width and height in the window."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{element}.scrollIntoView({{block: 'center'}})")
        return self.run(f"(b => [b.x, b.y, b.width, b.height])({element}.getBoundingClientRect())")

    def picture(self, selector=None):
        """A PNG of an element, or of the window."""
        clip = {}
        if selector:
            x, y, width, height = self.box(selector)
            left, top = self.run("[scrollX, scrollY]")
            clip = {"clip": {"x": x + left, "y": y + top, "width": width, "height": height, "scale": 1}}
        return base64.b64decode(self.send("Page.captureScreenshot", format="png", **clip)["data"])
