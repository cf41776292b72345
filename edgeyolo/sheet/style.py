"""The style sheet of the HTML sheet: light and dark, one column on a telephone."""

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
h3 { font-size: .95rem; margin: 0 0 8px; overflow-wrap: anywhere; }
h3 small, figcaption { color: var(--dim); font-weight: normal; }
p { margin: 6px 0; max-width: 80ch; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; margin: 0; }
dt { color: var(--dim); }
dd { margin: 0; overflow-wrap: anywhere; }
i { display: inline-block; width: .75em; height: .75em; margin-right: .4em; border-radius: 2px; }
.legend i:not(:first-child) { margin-left: .8em; }
i.reference { background: var(--reference); }
i.model { background: var(--model); }
i.same { background: var(--same); }
i.other { background: var(--other); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-weight: 600; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); max-width: 40ch;
  overflow: hidden; text-overflow: ellipsis; }
.plots { display: flex; flex-wrap: wrap; gap: 16px 32px; margin-top: 24px; }
.plots figure { flex: 1 1 330px; max-width: 560px; margin: 0; }
.plots svg { width: 100%; height: auto; }
.curve { width: 90px; height: 36px; display: block; background: var(--card); }
polyline { fill: none; stroke-width: 1.5; vector-effect: non-scaling-stroke; }
polyline.reference { stroke: var(--reference); stroke-dasharray: 4 2; }
polyline.model { stroke: var(--model); }
article { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px; min-width: 0; }
article div { display: grid; gap: 10px; }
article figure { margin: 0; min-width: 0; }
article img { width: 100%; max-height: 70vh; object-fit: contain; display: block; border-radius: 4px; cursor: zoom-in; }
figcaption { font-size: .85rem; margin-top: 4px; }
.cards { display: grid; gap: 14px; margin: 14px 0; }
.n1 { grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); }
.n2 { grid-template-columns: repeat(auto-fill, minmax(min(100%, 560px), 1fr)); }
.n2 article div { grid-template-columns: repeat(2, minmax(0, 1fr)); }
.n3 article div { grid-template-columns: repeat(3, minmax(0, 1fr)); }
label { display: block; }
label input { position: absolute; opacity: 0; pointer-events: none; }
input:focus-visible + img { outline: 3px solid var(--model); }
input:checked + img { position: fixed; inset: 0; z-index: 1; width: 100vw; height: 100vh; max-height: none;
  border-radius: 0; background: var(--paper); cursor: zoom-out; }
summary { cursor: pointer; font-weight: 600; padding: 8px 0; }
@media (max-width: 640px) {
  main { padding: 10px; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 6px; }
  .n3 article div { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  article { padding: 8px; }
  th, td { padding: 4px 7px; }
  th:first-child { max-width: 22ch; }
}
"""
