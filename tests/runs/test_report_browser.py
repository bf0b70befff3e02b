"""The report in a browser: no error, no request to anywhere, no line too wide."""

import contextlib
import http.server
import json
import re
import shutil
import subprocess
import threading

import pytest

from tests.helpers import tinyrun

pytestmark = pytest.mark.slow
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
# What the browser asks for itself, whatever page it shows.
OWN = re.compile(r"(http://)?(clients2|accounts|www|update)\.google(apis)?\.com\b")
SCHEMES = {"dark": 0, "light": 1}
# Told by the page itself, once it is laid out.
ASK = """<script>
addEventListener("load", () => {
  const box = document.documentElement;
  document.title = JSON.stringify({
    asked: performance.getEntriesByType("resource").map((each) => each.name),
    wide: box.scrollWidth - box.clientWidth,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    ground: getComputedStyle(document.body).backgroundColor,
    pictures: document.querySelectorAll("svg").length,
  });
});
</script>"""


@contextlib.contextmanager
def proxy():
    """Yield a proxy's address and what was asked of it."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_CONNECT = do_POST = do_GET  # noqa: N815

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()


def opened(page, folder, width=1280, scheme="light"):
    """Open a page; return what it says of itself, its console and its requests."""
    asking = folder / f"{page.stem}-{width}-{scheme}.html"
    asking.write_text(page.read_text("utf-8").replace("</body>", f"{ASK}</body>"))
    with proxy() as (address, asked):
        options = [
            *("headless", "no-sandbox", "disable-gpu", "no-first-run", "dump-dom"),
            *("disable-background-networking", "disable-component-update"),
            *("disable-sync", "disable-default-apps", "disable-extensions"),
            "enable-logging=stderr",
            f"user-data-dir={folder / 'profile'}",
            f"proxy-server={address}",
            f"window-size={width},900",
            f"blink-settings=preferredColorScheme={SCHEMES[scheme]}",
        ]
        done = subprocess.run(
            [BROWSER, *(f"--{option}" for option in options), asking.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
        )
    title = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert title, done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    asked = [each for each in asked if not OWN.match(each)]
    return json.loads(title[1]), console, asked


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    if BROWSER is None:
        pytest.skip("no Chromium")
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def page(folder):
    """The report of a run from its teacher to its packed file."""
    task, teacher = (
        tinyrun.write_task(folder),
        tinyrun.write_teacher(folder / "teacher"),
    )
    recipe, out = tinyrun.write_recipe(folder), folder / "run"
    tinyrun.run(recipe, out, f"task={task}", f"teacher={teacher}", "epochs=2")
    return out / "report.html"


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [1280, 400])
def test_the_report_opens_without_a_fault(page, folder, width, scheme):
    said, console, asked = opened(page, folder, width, scheme)
    assert (console, asked, said["asked"]) == ([], [], [])
    assert said["wide"] <= 0
    assert said["dark"] == (scheme == "dark")
    light = [int(n) for n in re.findall(r"\d+", said["ground"])[:3]]
    assert (sum(light) < 3 * 128) == (scheme == "dark")
    assert said["pictures"] >= 8


def test_faults_are_seen(folder):
    page = folder / "bad.html"
    picture = '<img src="http://nowhere.invalid/a.png" style="width: 3000px">'
    page.write_text(
        f"<title>x</title><body>{picture}<script>console.error('no'); f()</script></body>"
    )
    said, console, asked = opened(page, folder)
    assert asked == ["http://nowhere.invalid/a.png"]
    assert said["asked"] == asked
    assert said["wide"] > 0
    assert len(console) >= 2
