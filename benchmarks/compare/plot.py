"""Bar charts as SVG, readable on a light and on a dark page."""

from html import escape
from math import log10

WIDTH, LABEL_WIDTH, VALUE_WIDTH, ROW, TITLE = 720, 150, 90, 20, 34
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#444}.title{font-weight:600}rect{fill:#9aa4b2}.own{fill:#c15f3c}"
    "@media(prefers-color-scheme:dark){text{fill:#ccc}rect{fill:#667080}.own{fill:#e0805c}}"
)


def bars(title: str, unit: str, groups: dict[str, dict[str, float]]) -> str:
    """Returns a bar chart with a logarithmic scale. A group has one bar for each arm; the bars of Tailrace are
    coloured."""
    values = [value for group in groups.values() for value in group.values() if value > 0]
    low, high = min(values) / 2, max(values)
    parts, top = [_text(0, 18, f"{title} (logarithmic scale)", "title")], 44
    for name, group in groups.items():
        parts.append(_text(0, top + 14, name))
        top += TITLE - 10
        for arm, value in group.items():
            share = log10(max(value, low) / low) / log10(high / low)
            width = share * (WIDTH - LABEL_WIDTH - VALUE_WIDTH)
            kind = ' class="own"' if arm.startswith("tailrace") else ""
            parts.append(_text(12, top + 14, arm))
            parts.append(f'<rect x="{LABEL_WIDTH}" y="{top + 3}" width="{width:.1f}" height="{ROW - 6}"{kind}/>')
            number = f"{value:,.0f}" if value >= 10 else f"{value:.2f}"
            parts.append(_text(LABEL_WIDTH + width + 6, top + 14, f"{number} {unit}"))
            top += ROW
        top += 12
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" role="img" '
        f'aria-label="{escape(title)}"><style>{STYLE}</style>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y}"{kind}>{escape(text)}</text>'
