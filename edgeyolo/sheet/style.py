"""What the sheet's page adds to the style of all pages."""

STYLE = """
h3 { font-size: .95rem; margin: 0 0 8px; overflow-wrap: anywhere; }
h3 small { color: var(--dim); font-weight: normal; }
i { display: inline-block; width: .75em; height: .75em; margin-right: .4em; border-radius: 2px; }
.legend i:not(:first-child) { margin-left: .8em; }
i.reference { background: var(--reference); }
i.model { background: var(--model); }
i.same { background: var(--same); }
i.other { background: var(--other); }
.curve { width: 90px; height: 36px; display: block; background: var(--card); }
polyline { fill: none; stroke-width: 1.5; vector-effect: non-scaling-stroke; }
polyline.reference { stroke: var(--reference); stroke-dasharray: 4 2; }
polyline.model { stroke: var(--model); }
article { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px; min-width: 0; }
article div { display: grid; gap: 10px; }
article figure { margin: 0; min-width: 0; }
article img { width: 100%; max-height: 70vh; object-fit: contain; display: block; border-radius: 4px; cursor: zoom-in; }
figcaption { margin-top: 4px; }
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
@media (max-width: 640px) {
  .n3 article div { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  article { padding: 8px; }
}
"""
