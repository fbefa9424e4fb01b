"""A real headless Chromium, driven by playwright; tests that need it are skipped by name where either is missing."""

import shutil
from contextlib import contextmanager
from importlib.util import find_spec

import pytest

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PATH = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(
    PATH is None or find_spec("playwright") is None, reason="needs Chromium and playwright"
)


@contextmanager
def browser():
    """A Chromium of one's own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=PATH, args=list(FLAGS))
        try:
            yield found
        finally:
            found.close()


class Opened:
    """A page that is drawn, with all that it asked the network for and complained of."""

    def __init__(self, browser, url, *, width=1280, height=900, wait=True):
        self.context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        self.page = self.context.new_page()
        self.requests, self.complaints = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._listen)
        self.page.goto(url)
        if wait:
            self.page.wait_for_function("document.documentElement.dataset.drawn")

    def _listen(self, message):
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def run(self, script, argument=None):
        return self.page.evaluate(script, argument)

    def source(self, name, field):
        """A column of a source, or "selected" for what is."""
        got = "s.selected.indices" if field == "selected" else f"Array.from(s.data[{field!r}])"
        return self.run(f"name => {{ const s = Bokeh.documents[0].get_model_by_name(name); return {got}; }}", name)

    def place(self, chart, x, y):
        """Where a point of the chart-th chart is on the page, which is scrolled there."""
        script = """([chart, x, y]) => {
            const root = Bokeh.documents[0].roots()[chart];
            const view = Array.from(Bokeh.index).find((one) => one.model === root);
            view.el.scrollIntoView({block: "center"});
            const box = view.el.getBoundingClientRect();
            return [box.left + view.frame.x_scale.compute(x), box.top + view.frame.y_scale.compute(y)];
        }"""
        return self.run(script, [chart, x, y])

    def unselect(self):
        """As it was when it was opened, but for the tensor that was picked."""
        self.page.mouse.move(0, 0)
        for row in self.page.locator("tr.selected").all()[:1]:
            row.click()

    def close(self):
        self.context.close()
