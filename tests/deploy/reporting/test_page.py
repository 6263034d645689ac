"""The page in a real browser: nothing is requested, nothing complains, and it can be read everywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import krl_deploy
from _helpers.bundles import write_bundle
from _helpers.chromium import Page, chromium

HOSTILE = (
    "<script>pwned=1</script>",
    "<img src=http://127.0.0.1:9/x onerror=pwned=1>",
    "</script><script>pwned=1</script>",
    '<a href="javascript:pwned=1">ship</a>',
)
"""Names of classes, layers and data that would run or load something if they were not escaped."""

TEXTS = ("body", "a", ".source", "figcaption", ".facts", ".role", "thead th", "summary", ".wrong")
CONTRAST = """
(selector => {
  const parts = text => text.match(/[\\d.]+/g).map(Number);
  const light = text => parts(text).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const each = [...document.querySelectorAll(selector)].map(item => {
    let behind = item;
    while ((parts(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement;
    const both = [getComputedStyle(item).color, getComputedStyle(behind).backgroundColor].map(light);
    return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
  });
  return Math.min(...each, 99);
})
"""
"""The smallest ratio of contrast of the texts of a selector, by the formula of WCAG 2."""


@pytest.fixture(scope="module")
def opened(results: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("browser")
    krl_deploy.report(path=results, out=folder / "report.html", data=digits)
    with chromium(folder / "profile") as page:
        page.call("Page.navigate", url=(folder / "report.html").as_uri())
        page.until("document.documentElement?.dataset.ready")
        yield page


def show(page: Page, width: int, scheme: str) -> None:
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    page.until(f"innerWidth === {width}")  # a page that is wider than a phone widens its viewport


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_is_readable(opened: Page, width: int, scheme: str):
    show(opened, width, scheme)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    for selector in TEXTS:
        assert opened.evaluate(f"({CONTRAST})({json.dumps(selector)})") >= 4.5, selector
    count = opened.evaluate("document.querySelectorAll('.plot').length")
    assert count >= 5
    opened.until(
        "[...document.querySelectorAll('.plot')].every(plot => { const svg = plot.querySelector('svg.main-svg');"
        f"return svg && svg.getBoundingClientRect().width <= {width} && svg.getBoundingClientRect().height > 100; }})"
    )
    # the legend and the title of an axis do not cover each other, also after the scheme has changed
    opened.until(
        "[...document.querySelectorAll('.plot')].every(plot => { const [legend, title] = ['.legend', '.xtitle']"
        ".map(each => plot.querySelector(each)?.getBoundingClientRect()); return !legend || !title || "
        "legend.top >= title.bottom - 1 || legend.bottom <= title.top + 1; })"
    )
    # the texts of plots follow the color scheme
    fill = "getComputedStyle(document.querySelector('.plot .xtick text')).fill"
    expected = "rgb(230, 237, 243)" if scheme == "dark" else "rgb(27, 31, 36)"
    opened.until(f"{fill} === '{expected}'")


def test_nothing_is_requested_and_nothing_complains(opened: Page):
    assert [url for url in opened.requests if not url.startswith("data:")] == [opened.requests[0]]
    assert opened.requests[0].startswith("file:")
    assert opened.complaints == []


def test_images_and_plots_are_there_in_words(opened: Page):
    assert opened.evaluate("[...document.images].every(image => image.alt && image.naturalWidth)")
    assert opened.evaluate("document.images.length") == 12
    assert opened.evaluate("[...document.querySelectorAll('.plot')].every(plot => plot.ariaLabel.length > 20)")
    # each plot is followed by a table in its section
    assert opened.evaluate(
        "[...document.querySelectorAll('.plot')].every(plot => [...plot.closest('section').querySelectorAll('table')]"
        ".some(table => plot.compareDocumentPosition(table) & Node.DOCUMENT_POSITION_FOLLOWING))"
    )
    assert opened.evaluate("document.documentElement.lang") == "en"
    levels = opened.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(item => item.tagName)")
    assert levels[0] == "H1"
    assert set(levels[1:]) == {"H2"}


def test_all_is_on_paper(opened: Page):
    closed = "document.querySelectorAll('details:not([open])').length"
    before = opened.evaluate(closed)
    assert before >= 4
    show(opened, 1280, "dark")
    opened.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert opened.evaluate(closed) == 0
    opened.call(
        "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    assert opened.evaluate(f"({CONTRAST})('body')") >= 4.5
    assert opened.evaluate("getComputedStyle(document.body).color") == "rgb(27, 31, 36)"
    opened.until("getComputedStyle(document.querySelector('.plot .xtick text')).fill === 'rgb(27, 31, 36)'")
    opened.evaluate("dispatchEvent(new Event('afterprint'))")
    opened.call("Emulation.setEmulatedMedia", media="")
    assert opened.evaluate(closed) == before


def test_names_cannot_become_scripts(tmp_path: Path):
    write_bundle(tmp_path / "tiny.krl", labels=HOSTILE, name=HOSTILE[0])
    layers = [{"name": name, "operator": name, "ms": 1.0, "share": 0.25} for name in HOSTILE]
    bench = {
        **{"bundle": "tiny.krl", "backend": HOSTILE[1], "variant": "fp32", "iterations": 1, "cpus": 1, "batch": 1},
        **{"latency_ms": {HOSTILE[2]: 1.0}, "stages_ms": {}, "throughput_per_s": 1.0},
        "layers": {"layers": layers, "sum_ms": 4.0, "network_ms": 4.0, "runs": 1},
    }
    (tmp_path / "bench.json").write_text(json.dumps(bench))
    krl_deploy.report(path=tmp_path, out=tmp_path / "r.html", title=HOSTILE[2])
    with chromium(tmp_path / "profile") as page:
        page.call("Page.navigate", url=(tmp_path / "r.html").as_uri())
        page.until("document.documentElement?.dataset.ready")
        assert page.evaluate("document.querySelector('h1').textContent") == HOSTILE[2]
        names = page.evaluate("[...document.querySelectorAll('details tbody th')].map(item => item.textContent)")
        assert set(HOSTILE) <= set(names)
        ticks = page.evaluate("[...document.querySelectorAll('.ytick')].map(item => item.textContent)")
        assert f"1. {HOSTILE[0]}" in ticks
        assert page.evaluate("typeof pwned") == "undefined"
        assert page.evaluate("document.querySelectorAll('.plot a, main img[src^=http]').length") == 0
        assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []
        assert page.complaints == []
        # the policy holds on its own: a script that were there would not run, and an image would not load
        page.evaluate(
            "(() => { const script = document.createElement('script'); script.textContent = 'pwned = 1';"
            "document.body.append(script); new Image().src = 'http://127.0.0.1:9/x'; })()"
        )
        page.until("true")
        assert page.evaluate("typeof pwned") == "undefined"
