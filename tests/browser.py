"""A real browser for tests: headless Chromium, driven over two pipes (--remote-debugging-pipe), no package needed."""

import base64
import json
import os
import shutil
import subprocess

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-pipe"]


class Browser:
    """One tab. `errors` gathers exceptions, console errors and warnings, and failed requests."""

    def __init__(self, profile):
        (its_input, self.output), (self.input, its_output) = os.pipe(), os.pipe()

        def wire():  # Chromium reads from 3 and writes to 4; either may be one of these pipes, so first out of the way
            os.dup2(its_input, 100)
            os.dup2(its_output, 101)
            os.dup2(100, 3)
            os.dup2(101, 4)

        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, preexec_fn=wire, close_fds=False, **quiet)
        os.close(its_input)
        os.close(its_output)
        self.buffer, self.sent, self.errors, self.session = b"", 0, [], {}
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            self.send(domain + ".enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.session = {}
        self.send("Browser.close")
        self.process.wait(20)
        os.close(self.output)
        os.close(self.input)

    def receive(self) -> dict:
        """The next message; each is JSON that ends in a zero byte."""
        while b"\0" not in self.buffer:
            data = os.read(self.input, 1 << 20)
            if not data:
                raise RuntimeError("the browser is gone")
            self.buffer += data
        text, self.buffer = self.buffer.split(b"\0", 1)
        message = json.loads(text)
        method, params = message.get("method"), message.get("params", {})
        complaint = method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning")
        if complaint or method in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.errors.append(params)
        return message

    def send(self, method: str, **params) -> dict:
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": params, **self.session}
        os.write(self.output, json.dumps(message).encode() + b"\0")
        while (message := self.receive()).get("id") != self.sent:
            pass
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']}")
        return message["result"]

    def open(self, url: str, width: int = 1280, height: int = 800, dark: bool = False) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url="about:blank")  # an address that differs after the # alone would not load anew
        self.send("Page.navigate", url=url)
        while self.receive().get("method") != "Page.loadEventFired":
            pass
        if self.js("location.href") == "about:blank":
            while self.receive().get("method") != "Page.loadEventFired":
                pass
        self.settle()

    def settle(self) -> None:
        """Until pictures are decoded and drawn."""
        self.js("new Promise(done => setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(done)), 150))")

    def js(self, expression: str):
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"])
        return result["result"].get("value")

    def key(self, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)
        self.settle()

    def drag(self, x0: float, y0: float, x1: float, y1: float) -> None:
        for kind, x, y in (("mousePressed", x0, y0), ("mouseMoved", x1, y1), ("mouseReleased", x1, y1)):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
        self.settle()

    def screenshot(self, path) -> None:
        with open(path, "wb") as file:
            file.write(base64.b64decode(self.send("Page.captureScreenshot")["data"]))
