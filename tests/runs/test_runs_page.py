"""The page of all runs, still and served: what it shows, what it may ask for, and what it never sends."""

import http.client
import json
import threading
from contextlib import contextmanager
from dataclasses import replace
from html import unescape

import pytest
from chromium import BINARY, open_page
from run_samples import change, data, file_of, packed, record, scored, sha_of, write

from quantlab.cli.main import run
from quantlab.errors import ConfigError
from quantlab.runs.live import MOST_POINTS, live_runs
from quantlab.runs.origin import this_process
from quantlab.runs.recording import PROGRESS_NAME, Recorder
from quantlab.runs.run_record import FileRef
from quantlab.runs.runs_page import runs_page
from quantlab.runs.server import RunsServer
from quantlab.runs.store import read_store

HOSTILE = "</script><img src=x onerror='window.hacked = 1'>"


@pytest.fixture
def folder(tmp_path):
    """Return a folder of packings with scores, one with copies of a report, a failed one with a hostile name, one at work."""
    place = tmp_path / "runs"
    copies = tuple(FileRef(path=name, bytes=2, sha256=sha_of("x"), copy=name) for name in ("m.report.json", "report.html"))
    names = write(
        place,
        packed(1, "a", files=(*copies, FileRef(path="x", bytes=1, sha256=sha_of("x"), copy="../run.json"))),
        packed(2, "b", size=950),
        scored(3, "a", 1.5),
        scored(4, "b", 1.4),
        packed(5, "c", status="failed", error=HOSTILE, packing=None, artifact=replace(file_of("c"), path=HOSTILE)),
        scored(6, "a", 1.1, data(2000, mode=HOSTILE)),
        record(7, "train", status="running", process=this_process(), options={"out": "model"}, directory="../.."),
    )
    for name in ("m.report.json", "report.html"):
        (place / names[0] / name).write_text("{}")
    (place / names[0] / "secret.txt").write_text("secret")
    (tmp_path / "model").mkdir()
    return place


def metrics(folder, count):
    lines = [{"kind": "train", "step": step, "loss": 5 - step / count, "seconds": 1.0} for step in range(1, count + 1)]
    lines.append({"kind": "validation", "step": count, "loss": 4.5, "bpb": 2.0, "seconds": 1.0})
    text = "\n".join(map(json.dumps, lines)) + '\n{"kind": "train", "step'
    (folder.parent / "model" / "metrics.jsonl").write_text(text)


def test_the_page_links_to_copies_and_shows_every_run(folder, tmp_path, capsys):
    output = tmp_path / "runs.html"
    assert run(["runs", "page", "-o", str(output), "--runs", str(folder)]) == 0
    assert capsys.readouterr().err == f"wrote {output}: 7 runs\n"
    text = output.read_text()
    name = next(path.name for path in folder.iterdir() if path.name.endswith("00000001"))
    assert f'href="runs/{name}/m.report.json"' in text and f'href="runs/{name}/report.html"' in text
    assert "run.json" not in text.split('<script type="application/json"')[0] and "<img" not in text
    assert "7 runs, " in text and text.count("<tr data-text=") == 5  # the scores of a and b are in their rows
    assert len(text.encode()) < 2_000_000 and "connect-src" not in text
    assert run(["runs", "page", "-o", str(output), "--runs", str(folder)]) == 2
    assert run(["runs", "page", "-o", str(tmp_path / "runs.png"), "--runs", str(folder)]) == 2


def test_an_empty_folder_has_a_page(tmp_path):
    assert "0 runs, 0 of them valid" in runs_page(read_store(tmp_path), beside=tmp_path)


@contextmanager
def serving(folder):
    with RunsServer(folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def get(server, path, host=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read().decode()


def test_the_server_sends_the_page_the_state_and_copies_alone(folder):
    metrics(folder, 10)
    names = sorted(path.name for path in folder.iterdir())
    with serving(folder) as server:
        assert server.server_address[0] == "127.0.0.1"
        status, headers, text = get(server, "/")
        assert status == 200 and "connect-src 'self'" in unescape(text) and headers["X-Content-Type-Options"] == "nosniff"
        state = json.loads(get(server, "/state.json")[2])
        assert state["version"] in text and [one["run"] for one in state["live"]] == ["00000007"]
        status, headers, text = get(server, f"/runs/{names[0]}/report.html")
        assert (status, text) == (200, "{}") and headers["Content-Security-Policy"].startswith("sandbox")
        assert get(server, f"/runs/{names[0]}/m.report.json")[1]["Content-Type"] == "text/plain; charset=utf-8"
        for path in (
            f"/runs/{names[0]}/secret.txt",
            f"/runs/{names[0]}/run.json",
            f"/runs/{names[0]}/..%2Frun.json",
            f"/runs/{names[0]}/%2e%2e/run.json",
            "/runs/none/x",
            "/../../etc/passwd",
            "/favicon.ico",
        ):
            assert get(server, path)[0] == 404, path
        assert get(server, "/", host="evil.example")[0] == 403
        write(folder, packed(9, "z"))
        assert json.loads(get(server, "/state.json")[2])["version"] != state["version"]


def test_what_cannot_be_served_is_one_clear_error(folder, tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        RunsServer(tmp_path / "absent")
    with serving(folder) as server, pytest.raises(ConfigError, match="cannot serve at"):
        RunsServer(folder, port=server.server_address[1])


def test_curves_are_numbers_alone_and_few(folder):
    metrics(folder, 5000)
    (one,) = live_runs(read_store(folder).runs)
    assert len(one.train) <= MOST_POINTS and one.train[-1] == (5000, 4.0) and one.val == ((5000, 4.5),)
    (folder.parent / "model" / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": NaN}\n[1]\n\n{"kind": {}}\n')
    assert live_runs(read_store(folder).runs)[0].train == ()
    change(folder, next(p.name for p in folder.iterdir() if p.name.endswith("07")), options={"out": "/dev/zero\0"})
    assert live_runs(read_store(folder).runs)[0].train == ()


def test_a_run_at_work_says_how_far_it_is_and_leaves_nothing(tmp_path, monkeypatch):
    shown = []
    with Recorder(folder=tmp_path).run("pack", {"output": "m.qlab"}) as writer:
        progress = writer.watched(lambda *state: shown.append(state))
        progress("round", 0, 1000)
        progress("round", 10, 1000, "x")  # within a second of the last: shown, not written
        (state,) = tmp_path.glob(f"*/{PROGRESS_NAME}")
        assert json.loads(state.read_text())["done"] == 0 and len(shown) == 2
        monkeypatch.setattr("quantlab.runs.recording.WATCH_SECONDS", 0.0)
        progress("round", 500, 1000, "half")
        found = json.loads(state.read_text())
        state.write_text(json.dumps(found | {"began": found["now"] - 100}))
        (one,) = live_runs(read_store(tmp_path).runs)
        assert (one.stage, one.done, one.total, one.unit, one.note) == ("round", 500, 1000, "weights", "half")
        assert one.left in ("1 min 40 s", "1 min 39 s") and one.what == "m.qlab"
        state.write_text('{"stage": 1')
        assert live_runs(read_store(tmp_path).runs)[0].stage == ""
    assert not state.exists() and live_runs(read_store(tmp_path).runs) == []


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if BINARY is None:
        pytest.skip("no Chromium found: chromium, chromium-browser and google-chrome are not in PATH")
    with open_page(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
def test_a_browser_shows_sorts_and_filters_the_runs(browser, folder, tmp_path, width, dark):
    path = tmp_path / "runs.html"
    path.write_text(runs_page(read_store(folder), beside=tmp_path))
    browser.open(path, width=width, dark=dark, mobile=width < 500)
    assert browser.errors() == [] and browser.requests() == []
    assert browser.run("document.documentElement.scrollWidth") <= width and browser.run("window.hacked === undefined")
    assert browser.run("[...document.querySelectorAll('.plot')].every(plot => plot.querySelector('.main-svg'))")
    assert browser.run("document.querySelectorAll('.plot').length") == 6  # three pictures for each of two data
    column = "[...document.querySelectorAll('#runs thead th')].findIndex(th => th.textContent.trim() === 'BPB') + 1"
    browser.click(f"#runs thead th:nth-child({browser.run(column)}) button")
    shown = "[...document.querySelectorAll('#runs tbody tr:not([hidden]) th')].map(th => th.textContent)"
    assert browser.run(shown)[:2] == ["00000003", "00000002"]  # 1.5, which is not the newest score of a, and 1.4
    browser.click("#filter")
    browser.call("Input.insertText", text="valid b.qlab")
    assert browser.run(shown) == ["00000002"]
    assert browser.errors() == []


def test_a_browser_follows_runs_at_work(browser, folder, tmp_path):
    metrics(folder, 50)
    with serving(folder) as server:
        browser.resize(800, 900)
        browser.events.clear()
        browser.call("Page.navigate", url=server.address)
        there = "document.querySelector('#live-00000007 .main-svg')"
        wait = f"new Promise(done => {{ const look = () => {there} ? done(true) : setTimeout(look, 50); look() }})"
        for _ in range(50):  # the old page may still be there
            if browser.run("location.href") == server.address and browser.run("document.readyState") == "complete":
                break
        assert browser.run(wait)
        assert browser.run("document.getElementById('live-00000007').data[0].y.length") == 50
        assert {url.rsplit("/", 1)[0] + "/" for url in browser.requests()} == {server.address}
        assert browser.run("document.getElementById('live-state').textContent") == "1 at work"
    browser.call("Page.navigate", url="about:blank")
