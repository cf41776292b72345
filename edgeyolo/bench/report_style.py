"""What the report's page adds to the style of all pages, and its one script."""

STYLE = """
main { max-width: 1440px; }
p { overflow-wrap: anywhere; }
small { color: var(--dim); font-weight: normal; font-size: .85em; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(120px, 1fr)); gap: 10px; max-width: 720px;
  margin: 8px 0; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 8px 12px; }
.tiles dd { font-size: 1.5rem; font-variant-numeric: tabular-nums; margin: 0; }
.unsure { color: var(--dim); }
th button:focus-visible { outline: 2px solid currentColor; outline-offset: 2px; }
th button { all: unset; cursor: pointer; text-decoration: underline dotted var(--dim); text-underline-offset: 3px; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
.wide { background: linear-gradient(to left, var(--paper) 30%, transparent) right / 40px 100% no-repeat local,
  linear-gradient(to left, var(--line), transparent) right / 16px 100% no-repeat scroll; }
.sortable th, .sortable td { padding: 4px 7px; font-size: .87rem; }
.sortable thead th { vertical-align: bottom; white-space: normal; }
.plots figure { flex-basis: 460px; }
.sortable tbody th { font-weight: normal; white-space: normal; overflow-wrap: anywhere; min-width: 20ch; }
.stack { display: grid; grid-template-columns: fit-content(30ch) minmax(0, 1fr) max-content; gap: 6px 12px;
  align-items: center; margin: 8px 0; max-width: 1000px; }
.stack span { overflow-wrap: anywhere; }
.stack b { font-variant-numeric: tabular-nums; text-align: right; }
.bar { display: flex; gap: 1px; height: 1.5em; min-width: 0; }
.bar i { overflow: hidden; text-align: center; font: .8rem/1.9 system-ui, sans-serif; white-space: nowrap; }
i { color: #101010; min-width: 1px; }
.legend i { display: inline-block; width: .9em; height: .9em; margin: 0 .35em 0 0; vertical-align: -.1em; }
.legend span { margin-right: 1.2em; white-space: nowrap; }
.pre { background: #9cc7f0; }
.infer { background: #e8a04a; }
.decode { background: #7fc4a8; }
.nms { background: #d486b4; }
details { border-bottom: 1px solid var(--line); }
details > :last-child { margin-bottom: 14px; }
summary { overflow-wrap: anywhere; }
@media (max-width: 640px) {
  .stack { grid-template-columns: minmax(0, 1fr) max-content; gap: 2px 8px; }
  .stack span { grid-column: 1 / -1; margin-top: 6px; }
  .sortable tbody th { min-width: 12ch; max-width: 15ch; }
  .facts { grid-template-columns: max-content 1fr; gap: 2px 10px; font-size: .9rem; }
  .tiles { grid-template-columns: 1fr 1fr; }
}
"""

SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const compare = (a, b, sign) => {
    const x = a.dataset.number, y = b.dataset.number;
    if (x === undefined && y === undefined)
      return sign * a.textContent.localeCompare(b.textContent, undefined, { numeric: true });
    if (x === undefined || y === undefined) return x === undefined ? 1 : -1;
    return sign * (x - y);
  };
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of heads) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...body.rows];
    rows.sort((a, b) => compare(a.cells[column], b.cells[column], up ? 1 : -1));
    body.append(...rows);
  }));
}
"""
"""Sorts a table by the column whose head is pressed: cells with ``data-number`` as numbers, cells without one last."""
