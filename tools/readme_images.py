"""Make the two images of the README: the road as SVG, and the top of a report, photographed in Chromium.

python -m export --quantize
python -m tools.readme_images artifacts/digits/report.html
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from runtime.command.parser import Parser
from runtime.writing import temporary_folder

IMAGES = Path(__file__).parents[1] / "docs" / "images"
WIDTH, HEIGHT = 1000, 1125  # CSS pixels of the report that are shown, at the width of a window
COLORS = 64  # enough for text and three hues, a third of the size of RGB

# Title, lines, and what the arrow after the box carries.
BOXES: Sequence[tuple[str, Sequence[str], str]] = (
    ("vit", ("train, or import", "weights"), "checkpoint"),
    ("export", ("ONNX, exact", "rewrites"), "float32 ONNX"),
    ("calibration", ("real images,", "INT8"), "INT8 ONNX"),
    ("export", ("measure drift,", "speed, size"), "one file"),
    ("runtime", ("the device: CPU,", "GPU, browser"), ""),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write both images and return the exit code."""
    parser = Parser(
        prog="python -m tools.readme_images",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("report", type=Path, help="report.html of an export")
    report: Path = parser.parse_args(arguments).report
    chromium = shutil.which("chromium")
    if chromium is None:
        parser.error("expected chromium on the path, found none; apt-get install chromium")
    if not report.is_file():
        parser.error(
            f"expected a report.html, found no file {report}; python -m export --quantize writes one"
        )
    (IMAGES / "road.svg").write_text(draw_road(), encoding="utf-8")
    photograph_report(chromium, report, IMAGES / "report.png")
    return 0


def draw_road() -> str:
    """Return the road from weights to a device as an SVG document."""
    step, box, top = 192, 132, 24
    width = step * (len(BOXES) - 1) + box + 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 128" width="{width}" '
        'font-family="sans-serif">',
        "<title>From weights to a device: vit, export, calibration, export, runtime</title>",
        f'<rect width="{width}" height="128" fill="#ffffff"/>',
    ]
    for index, (title, lines, carried) in enumerate(BOXES):
        left = 1 + index * step
        parts.append(
            f'<rect x="{left}" y="{top}" width="{box}" height="80" rx="8" fill="#eef4fb" stroke="#2b6cb0"/>'
        )
        parts.append(_text(left + box / 2, top + 24, title, size=15, bold=True))
        parts += [_text(left + box / 2, top + 46 + 18 * n, line, size=12) for n, line in enumerate(lines)]
        if carried:
            start, end = left + box + 4, left + step - 6
            parts.append(
                f'<path d="M{start} 64H{end}m-7 -5l7 5l-7 5" fill="none" stroke="#2b6cb0" stroke-width="2"/>'
            )
            parts.append(_text((start + end) / 2, 120, carried, size=11))
            parts.append(f'<path d="M{(start + end) / 2} 70V106" stroke="#9bb8d6" stroke-dasharray="2 3"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, *, size: int, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}"{weight} text-anchor="middle" fill="#1a202c">'
        f"{escape(text)}</text>"
    )


def photograph_report(chromium: str, report: Path, out: Path) -> None:
    """Write the top of a report as a PNG with few colors.

    Args:
        chromium: path of the browser.
        report: the HTML file.
        out: the PNG file to write.
    """
    with temporary_folder() as folder:
        shot = folder / "report.png"
        command = [chromium, "--headless", "--no-sandbox", "--hide-scrollbars", f"--screenshot={shot}"]
        size = f"--window-size={WIDTH},{HEIGHT}"
        subprocess.run(
            [*command, size, report.resolve().as_uri()], check=True, capture_output=True, timeout=120
        )
        with Image.open(shot) as image:
            image.convert("RGB").quantize(COLORS).save(out, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
