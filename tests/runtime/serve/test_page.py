"""The page in a real browser."""

from __future__ import annotations

from pathlib import Path
from urllib.request import urlopen

from _helpers.bundles import write_bundle
from _helpers.chromium import chromium
from _helpers.two_heads import HEADS, write_two_heads


def test_an_image_on_the_page(server, images: list[Path], tmp_path: Path):
    expected = server.model(images[0])
    with chromium(tmp_path / "profile") as page:
        page.call("Page.navigate", url=f"http://{server.netloc}/")
        page.until("document.querySelector('#model')?.textContent === 'tiny'")
        assert page.evaluate("document.querySelector('#facts').textContent") == "fp32 on onnxruntime-cpu"

        page.choose_file("#file", images[0])
        page.until("document.querySelector('.time')")
        assert page.evaluate("document.querySelector('.label').textContent") == expected.label
        rows = page.evaluate("[...document.querySelectorAll('.row')].map(row => row.textContent)")
        assert rows == [f"{label}{100 * score:.1f} %" for label, score in expected.top]
        assert "round trip" in page.evaluate("document.querySelector('.time').textContent")
        assert page.evaluate("document.querySelector('#drop img').naturalWidth") == 20

        bad = tmp_path / "bad.png"
        bad.write_bytes(b"abc")
        page.choose_file("#file", bad)
        page.until("document.querySelector('.error')")
        assert "is not an image of an accepted format" in page.evaluate("document.querySelector('.error').textContent")

        # a drop, as far as a script can make one
        page.evaluate(
            "(async () => { const data = new DataTransfer();"
            "const blob = await (await fetch('v2')).blob();"
            "data.items.add(new File([blob], 'x.png'));"
            "document.dispatchEvent(new DragEvent('drop', {dataTransfer: data, cancelable: true})); })()"
        )
        with urlopen(f"http://{server.netloc}/v2") as answer:
            size = len(answer.read())
        page.until(f"document.querySelector('.error')?.textContent.includes('image of {size} bytes')")

        assert all(url.startswith((f"http://{server.netloc}/", "blob:", "data:")) for url in page.requests), (
            page.requests
        )
        complaints = [text for text in page.complaints if "status of 400" not in text]
        assert complaints == []


def test_the_page_says_what_the_command_line_says(start, images: list[Path], tmp_path: Path):
    one = {"heads": HEADS, "least_score": 1.0}  # no score reaches it
    servers = [
        start(write_two_heads(tmp_path / "two.krl", settings=one).path),
        start(write_bundle(tmp_path / "several.krl", settings={"output_kind": "sigmoid-logits"}).path),
    ]
    with chromium(tmp_path / "profile") as page:
        for server in servers:
            expected = server.model(images[0])
            page.call("Page.navigate", url=f"http://{server.netloc}/")
            page.until(f"document.querySelector('#model')?.textContent === '{server.model.bundle.manifest.name}'")
            page.choose_file("#file", images[0])
            page.until("document.querySelector('.time')")
            assert page.evaluate("document.querySelector('.label').textContent") == expected.prediction
            others = page.evaluate("[...document.querySelectorAll('.other')].map(row => row.textContent)")
            assert others == [
                f"{name}: {item.label}, {100 * item.score:.1f} %" for name, item in expected.others.items()
            ]
