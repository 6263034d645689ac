"""The page in a real browser."""

from __future__ import annotations

from pathlib import Path

from _helpers.chromium import chromium


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
        page.until("document.querySelector('.error')?.textContent.includes('image of 85 bytes')")

        assert all(url.startswith((f"http://{server.netloc}/", "blob:", "data:")) for url in page.requests), (
            page.requests
        )
        complaints = [text for text in page.complaints if "status of 400" not in text]
        assert complaints == []
