"""Pages that stand alone: nothing is fetched, no text from elsewhere is markup, and one script at most runs."""

from __future__ import annotations

import base64
import hashlib
import html

from edgeyolo.errors import printable

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1e21; --dim: #5f6670; --line: #d9dce1; --card: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #121417; --ink: #e6e8eb; --dim: #9aa3ad; --line: #30353c; --card: #1b1f24; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.45rem; margin: 0 0 12px; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 28px 0 8px; }
p { margin: 6px 0; max-width: 80ch; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; margin: 0; }
dt { color: var(--dim); }
dd { margin: 0; overflow-wrap: anywhere; }
figcaption { color: var(--dim); font-size: .85rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-weight: 600; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); max-width: 40ch;
  overflow: hidden; text-overflow: ellipsis; }
.plots { display: flex; flex-wrap: wrap; gap: 16px 32px; margin-top: 24px; }
.plots figure { flex: 1 1 330px; max-width: 560px; margin: 0; }
.plots svg { width: 100%; height: auto; }
summary { cursor: pointer; font-weight: 600; padding: 8px 0; }
@media (max-width: 640px) {
  main { padding: 10px; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 6px; }
  th, td { padding: 4px 7px; }
  th:first-child { max-width: 22ch; }
}
"""
"""What all pages share: light and dark, one column on a telephone."""


def escape(value: object) -> str:
    """Anything as HTML text or attribute in quotes: no markup, no control characters, one line."""
    return html.escape(printable(str(value)).replace("\n", " "))


def page(title: object, style: str, body: str, script: str = "") -> str:
    """The whole document; its content security policy stops whatever is not in it.

    Args:
        title: any text.
        style: added to ``STYLE``.
        body: HTML in which every text from elsewhere has passed ``escape``.
        script: the only one that runs; the policy has its hash.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    policy += f"; script-src 'sha256-{digest}'" if script else ""
    tail = f"<script>{script}</script>\n" if script else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}</main>\n{tail}</body>\n</html>\n"
    )
