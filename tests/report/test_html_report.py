"""The HTML report: well formed, self-contained, safe against what files may hold, and usable in a browser."""

import json
import re
from html.parser import HTMLParser

import pytest
from chromium import BINARY, open_page
from report_samples import OTHER_CODES, entry, tensor, without

from quantlab.artifact.reader import MOST_COUNTED_CODE
from quantlab.errors import ConfigError, QuantlabError, ReportError
from quantlab.report import assets
from quantlab.report.comparison import compare_entries
from quantlab.report.estimate_page import estimate_page, estimate_picture
from quantlab.report.estimates import Estimates, SizeEstimate, TensorEstimate, read_estimates
from quantlab.report.figures import code_shares, heat_maps, predictions, rate_distortion, slopes, waterfalls
from quantlab.report.page import render_page
from quantlab.report.plot import log_axis, short_count, short_nats

HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    '<a href="javascript:window.hacked = 1">blocks</a>.1.weight',
    "{{ 7 * 7 }}{% raw %}",
    "%{x}<extra>x</extra>",
    "__proto__",
    "constructor",
    "line\nbreak\u2028\x1b[31m",
    "]]>--><!--",
    "long" * 100,
]
VOID = {"meta", "link", "br", "img", "input", "wbr", "hr"}


class Reader(HTMLParser):
    """Checks that elements nest, and keeps what a test asks about."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.scripts, self.names = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)


def codes(names):
    """Return counts of a few codes, none beyond the limit."""
    tally = [0] * (2 * MOST_COUNTED_CODE + 1)
    tally[MOST_COUNTED_CODE - 2 : MOST_COUNTED_CODE + 3] = [1, 5, 10, 5, 1]
    return dict.fromkeys(names, tally)


def page_of(*entries):
    counts = [codes(t.name for t in e.tensors) for e in entries]
    return render_page(compare_entries(entries), entries, counts, estimates())


def estimates(sizes=(3000, 6000, 12000)):
    """Return an estimate of the tensors of `pair` whose KL falls with the square of the size."""

    def tensors(size):
        share = size / 6000
        return tuple(
            TensorEstimate(
                name=t.name, shape=t.shape, bytes=round(share * t.bytes), predicted_kl=1e-4 / share**2, kl_per_kilobyte=1e-6
            )
            for t in TENSORS
        )

    points = tuple(
        SizeEstimate(
            total_bytes=size,
            bpw=8 * size / 16384,
            predicted_kl=0.0019 * (6000 / size) ** 2,
            kl=0.002 * (6000 / size) ** 2,
            low=0.0016 * (6000 / size) ** 2,
            high=0.0025 * (6000 / size) ** 2,
            tensors=tensors(size),
        )
        for size in sizes
    )
    about = {"method": "trellis", "smallest_bytes": 1000, "n_params": 16384, "pack_seconds": 200.0, "peak_memory_bytes": 10**9}
    return Estimates(checkpoint="<u>model.pt</u>", points=points, **about)


def read(page):
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


TENSORS = tuple(
    tensor(f"blocks.{layer}.{role}.weight", size, kl, points=((size - 200, 2 * kl), (size + 200, kl / 2)))
    for layer in range(3)
    for role, size, kl in (("attn.q", 900 + layer, 2e-4), ("mlp.fc", 1500 - layer, 4e-4))
)


@pytest.fixture(scope="module")
def pair():
    hostile = tuple(tensor(name, 1000 + n, 1e-4 * (n + 1)) for n, name in enumerate(HOSTILE))
    first = entry("out/<b>a.qlab", tensors=TENSORS + hostile, checkpoint="<u>model.pt</u>")
    return first, entry("out/b.qlab", kl=0.03, tensors=TENSORS[:-1], method="gptq")


def test_a_page_is_well_formed_and_asks_for_nothing(pair):
    for entries in (pair, pair[:1], [without(pair[0], report=None, evaluation=None)], [without(pair[0], file=None)]):
        reader = read(page_of(*entries))
        addresses = [a[key] for _, a in reader.tags for key in ("src", "href", "data", "action") if key in a]
        assert addresses == [] and not any(tag in ("link", "iframe", "img", "object", "base", "form") for tag, _ in reader.tags)
        policy = next(a["content"] for tag, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
        assert policy.startswith("default-src 'none'; ")
        ids = [a["id"] for _, a in reader.tags if "id" in a]
        assert len(ids) == len(set(ids))


def test_what_files_hold_is_text_and_never_markup(pair):
    page = page_of(*pair)
    reader = read(page)
    assert [a.get("type") for tag, a in reader.tags if tag == "script"] == ["application/json"] + 5 * [None]
    assert not any("onerror" in a for _, a in reader.tags) and not any(tag in ("b", "u") and a for tag, a in reader.tags)
    assert page.count("<u>") == 0 and "&lt;u&gt;model.pt&lt;/u&gt;" in page
    assert "49" not in re.findall(r"<th scope=\"row\" data-value=\"(.*?)\"", page) and "{{ 7 * 7 }}" in page
    data = json.loads(reader.scripts[0])
    assert list(data["codes"][0])[len(TENSORS)] == HOSTILE[0]
    labels = json.dumps([figure["layout"] for figure in data["figures"].values()])
    assert "<a href" not in labels and "<img" not in labels and "</script" not in labels


def test_the_page_names_the_glossary_and_uses_its_words(pair):
    page = page_of(*pair)
    assert "Terms: see the glossary (docs/glossary.md)." in page.split("<footer>")[1].split("</footer>")[0]
    written = page.split('<script type="application/json"')[0]
    assert "predicted KL" in written and "entropy model" in written and "predicted cost" not in written


def test_a_missing_package_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(assets, "PACKAGES", ("jinja2", "no_such_package"))
    with pytest.raises(QuantlabError, match="an HTML page needs the package no_such_package") as caught:
        assets.check_packages()
    assert caught.value.hint == "pip install no_such_package"


def test_the_steps_of_a_waterfall_add_up_to_artifact_and_budget(pair):
    for figure, one in zip(waterfalls(compare_entries(pair), pair), pair, strict=True):
        (trace,) = figure.data
        steps = dict(zip(trace["customdata"], zip(trace["x"], trace["meta"]["measure"], strict=True), strict=True))
        relative = [size for size, measure in steps.values() if measure == "relative"]
        assert sum(relative) == one.report.budget_bytes == steps["budget: 6,100 bytes"][0]
        assert steps["artifact: 6,000 bytes"] == (6000, "total") and steps["slack: 100 bytes"][0] == 100
        reached = [base + size for base, size in zip(trace["base"], trace["x"], strict=True)]
        assert trace["base"][0] == 0 and trace["base"][-1] == 0 and reached[-1] == reached[-2] == 6100
        for n, measure in enumerate(trace["meta"]["measure"]):
            assert trace["base"][n] == (0 if measure == "total" else reached[n - 1] if n else 0)


def test_codes_of_tensors_that_do_not_add_up_stay_one_step():
    overfull = entry(tensors=(tensor(size=9000),))
    (figure,) = waterfalls(compare_entries([overfull]), [overfull])
    assert figure.data[0]["customdata"][0] == "codes: 4,700 bytes"


def test_the_heat_map_has_a_row_for_each_layer_and_a_column_for_each_role(pair):
    first, second = heat_maps(compare_entries(pair[1:] + pair[1:]), pair[1:] + pair[1:])
    assert first.layout["yaxis"]["ticktext"] == ["0", "1", "2"] and first.layout["xaxis"]["ticktext"] == ["attn.q", "mlp.fc"]
    (trace,) = first.data
    cells = {(y, base + 0.48): bits for y, base, bits in zip(trace["y"], trace["base"], trace["marker"]["color"], strict=True)}
    assert cells[2, 0] == pytest.approx(8 * 902 / 2048) and (2, 1) not in cells and len(cells) == 5  # the last was left out
    assert trace["marker"]["showscale"] and all(
        first.data[0]["marker"][k] == second.data[0]["marker"][k] for k in ("cmin", "cmax")
    )
    assert trace["customdata"][0] == "0, attn.q: 3.516 bits per weight"


def test_measured_points_alone_are_drawn(pair):
    comparison, second = compare_entries(pair), pair[1]
    (figure,) = rate_distortion(comparison, pair)
    curve = next(t for t in figure.data if t["mode"] == "lines" and t["line"]["color"] == "#e0862b")
    measured = {size for t in second.tensors for size, _ in t.points} | {t.bytes for t in second.tensors}
    assert {x for x in curve["x"] if x} == measured and len(curve["x"]) == 4 * len(second.tensors)
    assert len(curve["customdata"]) == len(curve["x"]) and curve["customdata"][0].startswith("blocks.0.attn.q.weight: ")
    (steep,) = slopes(comparison, pair)
    first = steep.data[0]["x"]
    assert first == sorted(first, reverse=True) and len(first) == len(TENSORS)
    plain = entry(tensors=(tensor(),))
    assert slopes(compare_entries([plain]), [plain]) == []
    assert {t["mode"] for t in rate_distortion(compare_entries([plain]), [plain])[0].data} == {"markers"}


def test_shares_of_codes_add_up_to_all_that_are_within_the_limit(pair):
    counts = [OTHER_CODES, {}]
    (figure,) = code_shares(compare_entries(pair), counts)
    (trace,) = figure.data
    assert trace["name"] == "A &lt;b&gt;a.qlab, 20.00 % beyond" and sum(y or 0 for y in trace["y"]) == pytest.approx(0.8)
    assert len(trace["x"]) == len(trace["y"]) == 2 * MOST_COUNTED_CODE - 1 and figure.layout["xaxis"]["range"] == [-7.5, 7.5]
    assert code_shares(compare_entries(pair), [{}, {}]) == []


def test_a_prediction_is_drawn_beside_its_measurement(pair):
    (figure,) = predictions(compare_entries(pair))
    assert [t["name"] for t in figure.data[1:]] == ["A &lt;b&gt;a.qlab", "B b.qlab"]
    assert predictions(compare_entries([without(pair[0], evaluation=None)])) == []


def test_logarithmic_axes_have_few_round_ticks():
    assert log_axis([2000, 90_000], "x", short_count)["ticktext"] == ["2k", "5k", "10k", "20k", "50k", "100k"]
    assert log_axis([1e-6, 1.0], "x", short_nats)["ticktext"] == ["1e-6", "1e-5", "1e-4", "1e-3", "0.01", "0.1", "1"]
    assert log_axis([1.5e-3, 1.5e-3], "x", short_nats)["ticktext"] == ["1.5e-3"]


def test_a_page_is_small_and_names_methods_and_sizes(pair):
    page = page_of(*pair)
    assert len(page.encode()) < 2_000_000
    assert "<title>quantlab: &lt;b&gt;a.qlab (trellis, 6 kB), b.qlab (gptq, 6 kB)</title>" in page
    assert page.count('<p class="note">trellis</p>') == 1 and "What to do about a steep slope" in page


def test_the_page_and_the_picture_of_an_estimate():
    reader = read(page := estimate_page(estimates(), pair_score()))
    assert "&lt;u&gt;model.pt" in page and "<u>" not in page and "bits per byte" in page
    data = json.loads(reader.scripts[0])["estimate"]
    assert [p["total_bytes"] for p in data["points"]] == [3000, 6000, 12000]
    assert data["bpb"] == {"float": 1.6, "per_nat": pytest.approx(1000 / (2500 * 0.6931472))}
    assert data["places"][:2] == [{"role": "attn.q", "layer": "blocks 0"}, {"role": "mlp.fc", "layer": "blocks 0"}]
    assert "bits per byte" not in estimate_page(estimates())
    with pytest.raises(ConfigError, match="needs two sizes or more, got 1"):
        estimate_page(estimates((6000,)))
    pytest.importorskip("matplotlib")
    assert estimate_picture(estimates())[:8] == b"\x89PNG\r\n\x1a\n"


def pair_score():
    return entry().evaluation


def test_estimates_come_back_from_their_json_and_damaged_ones_are_refused(tmp_path):
    path = tmp_path / "e.json"

    def written(**changes):
        path.write_text(json.dumps(estimates().to_dict() | changes))
        return path

    assert read_estimates(written()) == estimates()
    points = estimates().to_dict()["points"]
    for changes, message in (
        ({"points": points[::-1]}, "must be positive and ascend"),
        ({"points": [points[0], points[1] | {"tensors": []}]}, "different tensors"),
        ({"points": [points[0] | {"predicted_kl": -1.0}]}, "must be positive and finite"),
        ({"points": [points[0] | {"tensors": [points[0]["tensors"][0] | {"shape": [0, 4]}]}]}, "two positive dimensions"),
        ({"n_params": 0}, "must be positive and finite"),
        ({"points": "all"}, "points"),
    ):
        with pytest.raises(ReportError, match=message):
            read_estimates(written(**changes))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if BINARY is None:
        pytest.skip("no Chromium found: chromium, chromium-browser and google-chrome are not in PATH")
    with open_page(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture(scope="module")
def page_file(pair, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "compare.html"
    path.write_text(page_of(*pair))
    return path


def names(browser):
    return browser.run("[...document.querySelectorAll('#tensors tbody tr:not([hidden]) th')].map(th => th.dataset.value)")


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
def test_a_browser_shows_it_without_errors_requests_or_sideways_scrolling(browser, page_file, width, dark):
    browser.open(page_file, width=width, dark=dark, mobile=width < 500)
    assert browser.errors() == [] and browser.requests() == []
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("window.hacked === undefined")
    assert browser.run("[...document.querySelectorAll('.plot')].every(plot => plot.querySelector('.main-svg'))")
    wide = "[...document.querySelectorAll('.main-svg')].filter(s => s.getBoundingClientRect().right > LIMIT).length"
    assert browser.run(wide.replace("LIMIT", str(width))) == 0
    ink = browser.run("getComputedStyle(document.querySelector('#curves text')).fill")
    assert ink == ("rgb(228, 232, 236)" if dark else "rgb(29, 36, 44)")
    if dark:  # the mode may change while the page is open
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
        browser.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert browser.run("getComputedStyle(document.querySelector('#curves text')).fill") == "rgb(29, 36, 44)"


def test_the_table_sorts_by_click_and_by_keyboard_and_filters(browser, page_file):
    browser.open(page_file)
    everything = names(browser)
    browser.click("#tensors th:nth-child(3) button")  # bytes A
    sizes = "[...document.querySelectorAll('#tensors tbody td:nth-child(3)')].map(td => +td.dataset.value)"
    assert browser.run(sizes) == sorted(browser.run(sizes), reverse=True)
    assert browser.run("document.querySelector('#tensors th:nth-child(3)').ariaSort") == "descending"
    browser.press("Enter", code=13, text="\r")  # the button has the focus
    assert browser.run(sizes) == sorted(browser.run(sizes))
    browser.press("Tab", code=9)
    browser.press(" ", code=32, text=" ")
    assert browser.run("document.querySelector('#tensors [aria-sort]').textContent.trim()") == "bpw A"
    browser.click("#tensors th:nth-child(6) button")  # bytes B-A: what B does not have comes last, either way
    assert sorted(names(browser)) == sorted(everything)
    missing = "[...document.querySelectorAll('#tensors tbody td:nth-child(6)')].map(td => td.dataset.value === '')"
    for _ in range(2):
        assert browser.run(missing) == sorted(browser.run(missing))
        browser.press("Enter", code=13, text="\r")
    browser.click("#filter")
    browser.call("Input.insertText", text="MLP.FC")
    assert sorted(names(browser)) == [t.name for t in TENSORS[1::2]]
    assert browser.run("document.querySelector('#shown').textContent") == f"3 of {len(everything)}"
    assert browser.errors() == []


def test_codes_of_every_tensor_can_be_chosen_whatever_its_name(browser, page_file):
    browser.open(page_file)
    for name in (HOSTILE[0], "__proto__", "constructor", TENSORS[-1].name, ""):
        choose = f"c.value = {json.dumps(name)}; c.dispatchEvent(new Event('change')); return c.value"
        assert browser.run(f"(() => {{ const c = document.getElementById('code-tensor'); {choose} }})()") == name
        shown = browser.run("document.getElementById('codes').data.map(trace => trace.name)")
        both = ["A &lt;b&gt;a.qlab", "B b.qlab"]
        assert shown == (both if not name else both[:1])
        peak = browser.run("Math.max(...document.getElementById('codes').data[0].y)")
        assert peak == pytest.approx(10 / 22)
    assert browser.errors() == [] and browser.run("window.hacked === undefined")


def test_the_slider_moves_size_kl_and_the_bits_of_every_role(browser, page_file):
    browser.open(page_file)
    said = "['budget-text', 'budget-bits', 'budget-kl', 'budget-bpb'].map(id => document.getElementById(id).textContent)"
    widths = "document.getElementById('budget-roles').data[0].x"
    assert browser.run(said)[:2] == ["6.000 kB", "2.93"]
    start = browser.run(widths)
    move = "(() => {{ const s = document.getElementById('budget'); s.value = {}; s.dispatchEvent(new Event('input')) }})()"
    browser.run(move.format(1000))
    size, bits, kl, bpb = browser.run(said)
    assert (size, bits) == ("12.00 kB", "5.86") and kl.startswith("0.000500 nats per token (0.000400 to 0.000625)")
    assert bpb.startswith("about 1.6003, the float model has 1.6000")
    assert browser.run(widths) == pytest.approx([2 * x for x in start], rel=1e-3)
    browser.run(move.format(250))  # between two sizes: KL of 4,243 bytes by the square law of the sample
    assert browser.run(said)[2].startswith("0.00400 nats")
    assert browser.errors() == []


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_the_page_of_an_estimate_fits_and_asks_for_nothing(browser, tmp_path, width, dark):
    path = tmp_path / "estimate.html"
    path.write_text(estimate_page(estimates(), pair_score()))
    browser.open(path, width=width, dark=dark, mobile=width < 500)
    assert browser.errors() == [] and browser.requests() == []
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("[...document.querySelectorAll('.plot')].every(plot => plot.querySelector('.main-svg'))")


def test_it_prints_in_light_colours_within_the_paper(browser, page_file, tmp_path):
    browser.open(page_file, dark=True)
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.run("getComputedStyle(document.querySelector('#curves text')).fill") == "rgb(29, 36, 44)"
    assert browser.run("Math.max(...[...document.querySelectorAll('.main-svg')].map(s => s.clientWidth))") == 660
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert browser.run("getComputedStyle(document.querySelector('#curves text')).fill") == "rgb(228, 232, 236)"
    browser.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    assert browser.errors() == []
