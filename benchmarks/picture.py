"""Draw docs/figures/calibration.svg: `python benchmarks/picture.py`.

Vectors in a plane, calibrated by the package's own `fuse`; a line leads from each question to the passage it finds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import atan2, cos, degrees, radians, sin
from pathlib import Path

import numpy as np

from xqg_qdrant.augmentation.calibration import DEFAULT_GAMMA, pack_mean
from xqg_qdrant.augmentation.fusion import Fusion, fuse
from xqg_qdrant.records import FloatArray

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "figures" / "calibration.svg"
# Degrees from the mean of the bank, which points up with the length it has for multilingual-e5-small.
PASSAGES = {"A": -46.0, "hub": 3.0, "B": 44.0}
QUESTIONS = {"a": -19.0, "h": 5.0, "b": 22.0}
MEAN = np.array([0, 0.85], dtype=np.float32)
CALIBRATION = Fusion(0.0, "mean", renormalise=True, gamma=DEFAULT_GAMMA, bank_mean=pack_mean(MEAN))

WIDTH, HEIGHT, RADIUS, FLOOR = 760, 372, 222, 322
BLUE, RED, GREEN, GREY = "#1f5fa8", "#c0392b", "#2e7d4f", "#667"


def unit(angle: float) -> FloatArray:
    """Return the unit vector at an angle in degrees, clockwise from above; float32 of shape (2,)."""
    return np.array([sin(radians(angle)), cos(radians(angle))], dtype=np.float32)


def calibrate(angle: float) -> float:
    """Return the angle of a passage after its calibration, in degrees."""
    x, y = fuse(unit(angle), np.empty((0, 2), dtype=np.float32), CALIBRATION)
    return degrees(atan2(x, y))


def nearest(question: float, passages: Mapping[str, float]) -> str:
    """Return the passage with the highest dot product with a question."""
    return max(passages, key=lambda name: float(unit(passages[name]) @ unit(question)))


def draw() -> str:
    """Return the picture as SVG."""
    calibrated = {name: calibrate(angle) for name, angle in PASSAGES.items()}
    panels = [
        *_panel(190, "Plain: all three questions find the hub", PASSAGES, {}),
        *_panel(570, "Calibrated: each finds its own passage", calibrated, PASSAGES),
        *_legend(),
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
            'font-family="DejaVu Sans, Arial, sans-serif" font-size="13" role="img" aria-labelledby="title desc">',
            '<title id="title">Calibration, in two dimensions</title>',
            '<desc id="desc">Three passages and three questions on a circle. Before, the hub in the middle is nearest '
            "to all three questions. After, passages A and B have moved towards the mean of all questions and are "
            "nearest to their own questions; the hub has hardly moved.</desc>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
            *panels,
            "</svg>\n",
        ]
    )


def _panel(middle: float, title: str, passages: Mapping[str, float], before: Mapping[str, float]) -> Iterator[str]:
    yield f'<text x="{middle}" y="22" text-anchor="middle" font-size="14" font-weight="bold" fill="#111">{title}</text>'
    edge = 54.0
    arc = f"M{_at(middle, -edge)}A{RADIUS},{RADIUS} 0 0 1 {_at(middle, edge)}"
    yield f'<path d="{arc}" fill="none" stroke="#bbb" stroke-width="1.5"/>'
    yield from _arrow(_at(middle, 0, 0), _at(middle, 0, float(MEAN[1])), GREY, 2)
    yield _text(middle, 0, 0.5, "m, the mean of the bank", GREY, "start", 8)
    widest = max(map(abs, passages.values()))
    cone = f"M{_at(middle, 0, 0)}L{_at(middle, -widest)}A{RADIUS},{RADIUS} 0 0 1 {_at(middle, widest)}Z"
    yield f'<path d="{cone}" fill="{BLUE}" fill-opacity="0.07"/>'
    for name, question in QUESTIONS.items():
        found = nearest(question, passages)
        colour = GREEN if found.lower()[0] == name else RED
        # Beside the arc, which would hide a straight line.
        start, end, bend = (
            _at(middle, question, 1.13),
            _at(middle, passages[found], 1.03),
            (question + passages[found]) / 2,
        )
        yield f'<path d="M{start}Q{_at(middle, bend, 1.1)} {end}" fill="none" stroke="{colour}" stroke-width="2.5"/>'
    for name, angle in before.items():
        if abs(angle - passages[name]) > 5:
            x, y = _at(middle, angle).split(",")
            yield f'<circle cx="{x}" cy="{y}" r="6" fill="#fff" stroke="{BLUE}" stroke-dasharray="2 2"/>'
            towards = 2.4 if angle < 0 else -2.4
            yield from _arrow(
                _at(middle, angle + towards, 0.96), _at(middle, passages[name] - towards, 0.96), BLUE, 1.5
            )
    for name, angle in passages.items():
        x, y = _at(middle, angle).split(",")
        yield f'<circle cx="{x}" cy="{y}" r="7" fill="{RED if name == "hub" else BLUE}"/>'
        yield _text(middle, angle, 0.9, name, RED if name == "hub" else BLUE, "middle", 16 if name == "hub" else 0)
    for name, angle in QUESTIONS.items():
        across, down = (float(number) for number in _at(middle, angle, 1.13).split(","))
        yield f'<path d="M{across},{down - 7:.1f}l7,7l-7,7l-7,-7z" fill="#e69f00" stroke="#8a5f00"/>'
        yield _text(middle, angle, 1.2, name, "#8a5f00", "middle", 0)


def _legend() -> Iterator[str]:
    y = HEIGHT - 16
    yield f'<circle cx="36" cy="{y}" r="6" fill="{BLUE}"/><text x="48" y="{y + 4}">passage</text>'
    yield f'<circle cx="126" cy="{y}" r="6" fill="{RED}"/><text x="138" y="{y + 4}">hub, a passage near m</text>'
    yield f'<path d="M316,{y - 7}l7,7l-7,7l-7,-7z" fill="#e69f00" stroke="#8a5f00"/>'
    yield f'<text x="329" y="{y + 4}">question</text>'
    for x, colour, label in ((416, RED, "finds the wrong passage"), (630, GREEN, "finds its own")):
        yield f'<path d="M{x},{y}h22" stroke="{colour}" stroke-width="2.5"/>'
        yield f'<text x="{x + 28}" y="{y + 4}">{label}</text>'


def _at(middle: float, angle: float, length: float = 1.0) -> str:
    x, y = length * unit(angle)
    return f"{middle + RADIUS * x:.1f},{FLOOR - RADIUS * y:.1f}"


def _text(middle: float, angle: float, length: float, text: str, colour: str, anchor: str, aside: float) -> str:
    x, y = (float(number) for number in _at(middle, angle, length).split(","))
    return f'<text x="{x + aside:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}" fill="{colour}">{text}</text>'


def _arrow(start: str, end: str, colour: str, width: float) -> Iterator[str]:
    (x, y), (to_x, to_y) = ([float(number) for number in place.split(",")] for place in (start, end))
    angle = degrees(atan2(to_y - y, to_x - x))
    yield f'<path d="M{start}L{end}" stroke="{colour}" stroke-width="{width}"/>'
    yield f'<path d="M0,0l-9,-4v8z" fill="{colour}" transform="translate({end}) rotate({angle:.1f})"/>'


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
