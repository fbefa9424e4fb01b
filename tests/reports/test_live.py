"""A running sweep: rows come into the charts as they come into the file; the server speaks to this machine alone."""

import asyncio
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from queue import Queue
from threading import Thread
from types import SimpleNamespace
from urllib.request import urlopen

import pytest
from chromium import Opened, browser, needs_chromium
from report_examples import EVIL, sweep_rows

from pytorch_quantizer import InputError
from pytorch_quantizer.reports.live import LiveView, results_of, serve, start
from pytorch_quantizer.reports.palette import styles


def write(folder, rows):
    rows.to_csv(folder / "part", index=False)
    (folder / "part").replace(folder / "results.csv")  # whole or not at all, as a sweep does


class TestTheView:
    def test_begins_without_a_file_and_follows_it(self, tmp_path):
        view = LiveView(tmp_path / "results.csv")
        assert view.source.data["key"] == []
        for count in (1, 5, 12):
            write(tmp_path, sweep_rows().head(count))
            view.update()
            assert len(view.source.data["key"]) == count
        assert view.settings.factors == ["W2A4", "W4A4", "W2A8", "W4A8", "W8A4", "W8A8"]
        assert "12 rows, 0 failed" in view.said.text
        first, second = view.source.data["kind"][0], view.source.data["kind"][2]
        looks = styles(str(i) for i in range(8))
        assert f'style="color:{looks[first].colour}">●</span> activations int8' in view.said.text
        assert f'style="color:{looks[second].colour}">■</span> activations int4' in view.said.text
        assert "<td>91.00 %</td>" in view.table.text

    def test_reads_a_file_that_stayed_the_same_once(self, tmp_path, monkeypatch):
        write(tmp_path, sweep_rows())
        view = LiveView(tmp_path / "results.csv")
        monkeypatch.setattr("pytorch_quantizer.reports.live.read_sweep", lambda path: pytest.fail("read again"))
        view.update()

    def test_failures_are_counted_and_told_as_text(self, tmp_path):
        write(tmp_path, sweep_rows())
        view = LiveView(tmp_path / "results.csv")
        assert "1 failed" in view.said.text
        assert EVIL not in view.table.text
        assert "&lt;script&gt;" in view.table.text

    def test_can_be_laid_out_again_for_another_visitor(self, tmp_path):
        write(tmp_path, sweep_rows())
        view = LiveView(tmp_path / "results.csv")
        assert view.layout() is not view.layout()


class TestMistakes:
    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(InputError, match="nowhere isn't there"):
            results_of(tmp_path / "nowhere")

    def test_a_table_of_something_else(self, tmp_path):
        (tmp_path / "results.csv").write_text("a\n1\n")
        with pytest.raises(InputError, match="lacks dataset"):
            start(tmp_path, 0)

    def test_a_port_that_is_taken(self, tmp_path):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(InputError, match=f"port {port} can't be used"):
                start(tmp_path, port)


@pytest.fixture
def served(tmp_path):
    """The URL of a server in a thread of its own."""
    write(tmp_path, sweep_rows().head(2))
    found = Queue()

    def run():
        asyncio.set_event_loop(asyncio.new_event_loop())
        server = start(tmp_path, 0)
        server.start()
        found.put(server)
        server.io_loop.start()

    thread = Thread(target=run, daemon=True)
    thread.start()
    server = found.get(timeout=60)
    yield f"http://127.0.0.1:{server.port}/"
    server.io_loop.add_callback(server.io_loop.stop)
    thread.join(timeout=10)


def test_the_address_is_told_until_it_ends(tmp_path, monkeypatch, capsys):
    ran = []
    server = SimpleNamespace(port=5006, run_until_shutdown=lambda: ran.append(True))
    monkeypatch.setattr("pytorch_quantizer.reports.live.start", lambda source, port: server)
    serve(tmp_path)
    assert capsys.readouterr().out.startswith("http://127.0.0.1:5006/ shows ")
    assert ran == [True]


def test_ctrl_c_ends_it_without_a_traceback(tmp_path):
    write(tmp_path, sweep_rows())
    code = (  # a shell tells what runs in its background to ignore Ctrl-C, and so these tests' children perhaps
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from pathlib import Path; "
        f"from pytorch_quantizer.reports.live import serve; serve(Path({str(tmp_path)!r}), 0)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().split()[0]
        assert urlopen(url, timeout=60).status == 200  # now it listens, also to signals
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in process.communicate(timeout=30)[1]
        assert process.returncode == 0
    finally:
        process.kill()


@needs_chromium
def test_in_the_browser(served, tmp_path):
    assert served.startswith("http://127.0.0.1:")
    with browser() as chromium:
        page = Opened(chromium, served, wait=False)
        points = "() => window.Bokeh?.documents[0]?.get_model_by_name('points')?.data.key.length"
        page.page.wait_for_function(f"({points})() === 2")
        write(tmp_path, sweep_rows().head(9))
        page.page.wait_for_function(f"({points})() === 9", timeout=60_000)
        assert all(url.startswith((served, served.replace("http", "ws"), "data:")) for url in page.requests)
        assert page.complaints == []
        assert page.run("window.ran") is None
        page.close()


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's /proc")
def test_only_this_machine_is_served(tmp_path):
    server = start(tmp_path, 0)
    try:
        wanted = f"{server.port:04X}"
        deadline = time.monotonic() + 5
        found = []
        while not found and time.monotonic() < deadline:
            lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
            found = [line[1].split(":")[0] for line in lines if line[1].endswith(f":{wanted}") and line[3] == "0A"]
        assert found == ["0100007F"]  # 127.0.0.1, in the kernel's order
    finally:
        server.stop()
        server.unlisten()
