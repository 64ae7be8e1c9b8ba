"""Two Sphinx directives that draw diagrams from text, as SVG inside the page.

``sequence`` draws what two or more parties send to each other, from the top to the bottom::

    .. sequence:: client, server

       client -> server: Close 1000
       server: may still send
       server -> client: Close 1000

``flow`` draws rows of boxes. Arrows connect the boxes of a row::

    .. flow::

       transport -> _stream -> _protocol
       caller -> send_all

A diagram has the colour of the text around it, so it suits light and dark pages.
"""

from __future__ import annotations

from html import escape
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

LETTER = 7.4  # width of a letter, in pixels at a font size of 13
STEP = 34  # pixels from one line of a sequence to the next
BOX = 34  # height of a box


def text(x: float, y: float, words: str, anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, more: str = "") -> str:
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" {more}/>'


def arrow(x1: float, x2: float, y: float) -> str:
    tip = 7 if x2 < x1 else -7
    head = f"{x2:g},{y:g} {x2 + tip:g},{y - 4:g} {x2 + tip:g},{y + 4:g}"
    return line(x1, y, x2, y) + f'<polygon points="{head}" fill="currentColor"/>'


def box(x: float, y: float, width: float, words: str) -> str:
    shape = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{BOX}" rx="4" fill="none"/>'
    return shape + text(x + width / 2, y + BOX / 2 + 4, words)


def svg(width: float, height: float, parts: list[str], label: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(label)}"'
        f' viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
        f' style="min-width: {max(0.75 * width, min(width, 360)):g}px"'
        ' font-family="inherit" font-size="13" stroke="currentColor" fill="currentColor"'
        ' stroke-width="1.2"><style>text{stroke:none}</style>' + "".join(parts) + "</svg>"
    )


def draw_sequence(parties: list[str], lines: list[str], label: str) -> str:
    steps = [(who, words.strip()) for who, _, words in (each.partition(":") for each in lines)]

    def room_for_notes(party: str) -> float:
        """Return the pixels that the notes of a party at the edge need beside its line."""
        notes = [len(words) for who, words in steps if who.strip() == party]
        return max([58, *(LETTER * length + 20 for length in notes)])

    arrows = [len(words) for who, words in steps if "->" in who]
    gap = max(170, max(arrows) * LETTER + 30)
    left = room_for_notes(parties[0])
    places = {party: left + index * gap for index, party in enumerate(parties)}
    rightmost = max(places.values())
    bottom = BOX + 20 + STEP * len(lines)
    parts = []
    for party, x in places.items():
        width = max(90, len(party) * LETTER + 24)
        parts.append(box(x - width / 2, 1, width, party))
        parts.append(line(x, BOX + 1, x, bottom, 'stroke-dasharray="3 4" opacity="0.6"'))
    for index, (who, words) in enumerate(steps):
        y = BOX + STEP * (index + 1)
        source, is_arrow, target = (each.strip() for each in who.partition("->"))
        x = places[source]
        if is_arrow:
            parts.append(arrow(x, places[target], y))
            parts.append(text((x + places[target]) / 2, y - 7, words))
        else:
            side, anchor = (12, "start") if x == rightmost else (-12, "end")
            parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="3.5" fill="currentColor"/>')
            parts.append(text(x + side, y + 4, words, anchor))
    return svg(rightmost + room_for_notes(parties[-1]), bottom + 4, parts, label)


def draw_flow(lines: list[str], label: str) -> str:
    parts = []
    rows = [[words.strip() for words in each.split("->")] for each in lines]
    widest = 0.0
    for index, row in enumerate(rows):
        x, y = 1.0, 1 + index * (BOX + 20)
        for number, words in enumerate(row):
            if number:
                parts.append(arrow(x, x + 36, y + BOX / 2))
                x += 36
            width = len(words) * LETTER + 24
            parts.append(box(x, y, width, words))
            x += width
        widest = max(widest, x)
    return svg(widest + 2, len(rows) * (BOX + 20) - 16, parts, label)


class Diagram(SphinxDirective):
    """The directive of both kinds."""

    has_content = True
    optional_arguments = 1
    final_argument_whitespace = True
    option_spec = {"caption": directives.unchanged_required}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        self.assert_has_content()
        lines = [each.strip() for each in self.content if each.strip()]
        caption = self.options["caption"]
        if self.name == "sequence":
            parties = [each.strip() for each in self.arguments[0].split(",")]
            drawn = draw_sequence(parties, lines, caption)
        else:
            drawn = draw_flow(lines, caption)
        html = f'<figure class="diagram">{drawn}<figcaption>{escape(caption)}</figcaption></figure>'
        return [nodes.raw("", html, format="html")]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("sequence", Diagram)
    app.add_directive("flow", Diagram)
    return {"version": "1", "parallel_read_safe": True}
