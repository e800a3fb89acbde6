"""Draws docs/overview.png, the picture at the top of the README, of pictures of Shapes.

    python -m docs.draw_overview                  # again, where Shapes or the methods have changed
    python -m docs.draw_overview elsewhere.png
"""
from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dassl.utils import write_atomically
from datasets.shapes import CLASSNAMES, DOMAINS, draw_pictures, part_numbers
from protocols.parts.cells import COMPARED
from protocols.parts.style import looks, own_methods, plt

PATH = Path(__file__).with_name("overview.png")
WIDTH, HEIGHT, DPI = 1600, 720, 100  # pixels
SHOTS, SHOWN = 16, 3  # images per class; classes and domains that are shown
BASE, NEW = CLASSNAMES[:len(CLASSNAMES) // 2], CLASSNAMES[len(CLASSNAMES) // 2:]
INK, QUIET, EDGE, FILL = "#1b1f24", "#57606a", "#d0d7de", "#f3f4f6"
LEARNED, FROZEN, TOWER, YOURS = "#D55E00", "#0072B2", "#cfe3f2", "#E69F00"
COLOURS = 192  # of the file's palette, for the pictures


def unlike(classnames: Sequence[str], number: int) -> list[str]:
    """The first classes that have neither pattern nor shape in common."""
    chosen: list[str] = []
    for name in classnames:
        if len(chosen) < number and not set(name.split()) & {word for other in chosen for word in other.split()}:
            chosen.append(name)
    return chosen


def pictures(domain: str, part: str, classname: str, number: int) -> Any:
    """The first pictures of a class in a part of a domain, (number, 64, 64, 3) uint8."""
    return draw_pictures(domain, [CLASSNAMES.index(classname)] * number, list(part_numbers(domain, part))[:number])


class Page:
    """A sheet whose units are pixels, from its lower left corner."""

    def __init__(self) -> None:
        self.figure = plt.figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, facecolor="white")
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
        self.axes.axis("off")

    def text(self, x: float, y: float, words: str, size: float = 22, **more: Any) -> float:
        """Write words on their baseline; returns their width. size: of the letters, in pixels."""
        style: dict[str, Any] = {"color": INK, "va": "baseline", "zorder": 3} | more
        drawn = self.axes.text(x, y, words, fontsize=size * 72 / DPI, **style)
        return float(drawn.get_window_extent().width)

    def picture(self, x: float, y: float, size: float, pixels: Any) -> None:
        self.axes.imshow(pixels, extent=(x, x + size, y, y + size), interpolation="lanczos", aspect="auto", zorder=2)

    def box(self, x: float, y: float, width: float, height: float, colour: str, edge: str = "none",
            rounding: float = 8) -> None:
        self.axes.add_patch(plt.matplotlib.patches.FancyBboxPatch(
            (x, y), width, height, boxstyle=f"round,pad=0,rounding_size={rounding}", facecolor=colour, edgecolor=edge,
            linewidth=1.5))

    def arrow(self, start: tuple[float, float], end: tuple[float, float], width: float = 2.5) -> None:
        self.axes.annotate("", end, start, arrowprops={
            "arrowstyle": "-|>,head_length=0.6,head_width=0.35", "color": QUIET, "linewidth": width, "shrinkA": 0,
            "shrinkB": 0})

    def heading(self, x: float, words: str, below: str) -> None:
        self.text(x, HEIGHT - 48, words, 31, weight="bold")
        self.text(x, HEIGHT - 84, below, 22, color=QUIET)

    def save(self, path: str | Path) -> None:
        """With a palette, which takes a third of the space; what is not a picture keeps its exact colours."""
        drawn = io.BytesIO()
        self.figure.savefig(drawn, dpi=DPI)
        plt.close(self.figure)
        image, palette = Image.open(drawn).convert("RGB"), Image.new("P", (1, 1))
        own = ["white", INK, QUIET, EDGE, FILL, LEARNED, FROZEN, TOWER, YOURS,
               *(look["color"] for look in looks(COMPARED).values())]
        exact = np.round(255 * plt.matplotlib.colors.to_rgba_array(own)[:, :3]).astype(int)
        found = np.array(image.quantize(COLOURS).getpalette()).reshape(-1, 3)
        apart = np.abs(found[:, None] - exact).max(-1).min(-1) > 8  # Pillow takes any one of those that are close
        palette.putpalette(np.concatenate([exact, found[apart]]).ravel().tolist())
        reduced = image.quantize(palette=palette, dither=Image.Dither.NONE)
        write_atomically(path, lambda file: reduced.save(file, format="PNG", optimize=True))


def shots(page: Page, left: float) -> None:
    """What is trained on."""
    page.heading(left, "A few images per class", f"{SHOTS} shots: {SHOTS} images of each class")
    size, pitch = 49, 53
    for row, name in enumerate(unlike(BASE, SHOWN)):
        top = HEIGHT - 125 - row * 152
        page.text(left, top, name, 23)
        for i, pixels in enumerate(pictures("photo", "train", name, SHOTS)):
            page.picture(left + i % 8 * pitch, top - 11 - size - i // 8 * pitch, size, pixels)


def model(page: Page, left: float) -> None:
    """What learns, and what does not."""
    page.heading(left, "Train prompts, not CLIP", "or adapters, a cache, a classifier")
    name = unlike(BASE, SHOWN)[0]
    tower, middle = left + 224, (480.0, 262.0)
    for y, words in zip(middle, ("text\nencoder", "image\nencoder")):
        page.box(tower, y - 62, 136, 124, TOWER)
        page.text(tower + 68, y + 3, words, 24, ha="center", va="center", linespacing=1.2)
        page.arrow((left + 178, y), (tower - 6, y))
        prompts(page, left, y + 12)
    page.text(left, middle[0] + 72, "learned prompts", 23, color=LEARNED, weight="bold")
    page.text(left, middle[1] + 72, "learned prompts", 23, color=LEARNED, weight="bold")
    page.box(left, middle[0] - 48, 168, 44, "white", QUIET)
    page.text(left + 84, middle[0] - 27, name, 22, ha="center", va="center")
    page.picture(left, middle[1] - 102, 100, pictures("photo", "test", name, 1)[0])
    page.text(tower + 68, sum(middle) / 2, "frozen\nCLIP", 23, color=FROZEN, ha="center",
              va="center", weight="bold", linespacing=1.2)
    match = (tower + 222, sum(middle) / 2)
    for y in middle:
        page.arrow((tower + 141, y), (match[0] - 10, match[1] + (44 if y > match[1] else -44)))
    page.text(match[0], match[1], "which class\nfits best?", 23, ha="center", va="center", linespacing=1.3)


def prompts(page: Page, left: float, y: float) -> None:
    for i in range(4):
        page.box(left + i * 44, y, 36, 36, LEARNED, rounding=5)


def tests(page: Page, left: float) -> None:
    """What is tested on."""
    page.heading(left, "Test on what is new", "not seen in training")
    size, pitch = 122, 144
    new = [(name, pictures("photo", "test", name, 1)[0], name.split()) for name in unlike(NEW, SHOWN)]
    known = unlike(BASE, SHOWN)[0]
    styles = [(domain, pictures(domain, "test", known, 1)[0], [domain]) for domain in DOMAINS[1:1 + SHOWN]]
    for top, words, row in ((HEIGHT - 125, "new classes", new), (HEIGHT - 366, "new domains", styles)):
        page.text(left, top, words, 25, weight="bold")
        for i, (_, pixels, caption) in enumerate(row):
            page.picture(left + i * pitch, top - 14 - size, size, pixels)
            for line, word in enumerate(caption):
                page.text(left + i * pitch + size / 2, top - size - 38 - 25 * line, word, 21, ha="center")


def methods(page: Page) -> None:
    """What is compared."""
    page.box(24, 16, WIDTH - 48, 122, FILL, rounding=14)
    page.text(48, 100, "Methods side by side", 27, weight="bold")
    page.text(408, 100, "on the same images, with one evaluation: tables, figures, and which differences hold", 24)
    look, x = looks(COMPARED), 48.0
    others = len(own_methods()) - len(COMPARED)
    for words, colour in [*((name, look[name]["color"]) for name in COMPARED), (f"{others} more", QUIET),
                          ("yours: one file", YOURS)]:
        width = 64 + page.text(x + 44, 55, words, 23, va="center_baseline")
        page.box(x, 32, width, 46, "white", EDGE, 23)
        page.axes.plot(x + 25, 55, "o", color=colour, markersize=12)
        x += width + 18


def overview(path: str | Path = PATH) -> None:
    """Write the picture to `path`."""
    with plt.rc_context({"font.family": "DejaVu Sans", "text.parse_math": False}):  # comes with matplotlib
        page = Page()
        shots(page, 36)
        page.arrow((480, 371), (524, 371), 5)
        model(page, 546)
        page.arrow((1072, 371), (1116, 371), 5)
        tests(page, 1146)
        methods(page)
        page.save(path)


if __name__ == "__main__":
    overview(*sys.argv[1:2])
