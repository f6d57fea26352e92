"""Reports as one HTML file without outside parts: tables and pictures."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1c2733; background: #fff; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; } th, td { padding: .3rem .8rem; text-align: left;
       border-bottom: 1px solid #d7dee6; } td { font-variant-numeric: tabular-nums; }
figure { margin: 0 .5% 0 0; display: inline-block; width: 32%; } figure.wide { width: 100%; }
.scroll { overflow-x: auto; }
img { width: 100%; border-radius: 4px; } figcaption { color: #5a6b7b; font-size: .9rem; }
.pass { color: #0a7a3d; } .fail { color: #b3261e; font-weight: 600; }
"""


class Raw(str):
    """HTML; all other text is escaped."""


def write(path: Path, title: str, parts: Sequence[str]) -> None:
    """Write a page of HTML `parts`."""
    path.write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f'<title>{html.escape(title)}</title><style>{_STYLE}</style></head>'
        f'<body>{"".join(parts)}</body></html>',
        encoding='utf-8',
    )


def paragraph(text: str) -> str:
    """Return a paragraph of text."""
    return f'<p>{safe(text)}</p>'


def verdict(passed: bool, words: tuple[str, str] = ('passed', 'failed')) -> Raw:
    """Return the first word, in green, where something passed, else the second one."""
    good, bad = words
    kind, word = ('pass', good) if passed else ('fail', bad)
    return Raw(f'<span class="{kind}">{html.escape(word)}</span>')


def link(target: str, text: str) -> Raw:
    """Return a link."""
    return Raw(f'<a href="{html.escape(target)}">{html.escape(text)}</a>')


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of text."""
    head = ''.join(f'<th>{html.escape(name)}</th>' for name in header)
    body = [''.join(f'<td>{safe(cell)}</td>' for cell in row) for row in rows]
    lines = ''.join(f'<tr>{cells}</tr>' for cells in body)
    return f'<div class="scroll"><table><tr>{head}</tr>{lines}</table></div>'


def image(data: bytes, caption: str, wide: bool = False, kind: str = 'png') -> str:
    """Return a figure of an encoded picture."""
    encoded = base64.b64encode(data).decode()
    style = ' class="wide"' if wide else ''
    caption = html.escape(caption)
    return (
        f'<figure{style}><img alt="{caption}" src="data:image/{kind};base64,{encoded}">'
        f'<figcaption>{caption}</figcaption></figure>'
    )


def png(picture: np.ndarray) -> bytes:
    """Encode an RGB picture uint8 [H, W, 3]."""
    return _encoded(picture, '.png')


def jpeg(picture: np.ndarray) -> bytes:
    """Encode an RGB picture uint8 [H, W, 3] small."""
    return _encoded(picture, '.jpg')


def _encoded(picture: np.ndarray, suffix: str) -> bytes:
    import cv2

    return cv2.imencode(suffix, picture[..., ::-1])[1].tobytes()


def safe(text: str) -> str:
    """Return text as HTML."""
    return text if isinstance(text, Raw) else html.escape(text)
