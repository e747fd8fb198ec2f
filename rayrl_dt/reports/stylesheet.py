"""The style sheet of a page, light and dark."""

from __future__ import annotations

__all__ = ["STYLE"]

STYLE = """:root {
  color-scheme: light dark;
  --ink: #1f2328; --faint: #59636e; --line: #d9dee4; --page: #ffffff; --panel: #f6f8fa; --accent: #0072b2;
  --warn: #fff8e6; --warn-line: #e0b44c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6edf3; --faint: #9aa5b1; --line: #333b45; --page: #0f1419; --panel: #181e25; --accent: #56b4e9;
    --warn: #2a2412; --warn-line: #8a6d1f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif;
}
main { max-width: 72rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1, h2, h3 { line-height: 1.25; letter-spacing: -0.01em; text-wrap: balance; overflow-wrap: anywhere; }
h1 { font-size: 1.9rem; margin: 0 0 0.25rem; }
h2 { font-size: 1.35rem; margin: 3.25rem 0 0.5rem; padding-top: 1.5rem; border-top: 1px solid var(--line); }
h1 + h2, h1 + p + h2 { margin-top: 1.75rem; padding-top: 0; border: 0; }
h3 { font-size: 1.05rem; margin: 2rem 0 0.5rem; }
p { margin: 0.6rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.muted, figcaption, small { color: var(--faint); font-size: 0.875rem; }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 0.75rem; margin: 1.25rem 0;
}
.tiles div, pre { border: 1px solid var(--line); border-radius: 10px; background: var(--panel); }
.tiles div { padding: 0.8rem 1rem; }
.tiles dt { font-size: 0.85rem; color: var(--faint); }
.tiles dd { margin: 0.1rem 0; font-size: 1.6rem; font-weight: 650; line-height: 1.3; }
.tiles small { display: block; line-height: 1.4; }
aside {
  border: 1px solid var(--warn-line); border-radius: 10px; background: var(--warn);
  padding: 0.75rem 1rem; margin: 1rem 0;
}
aside ul { margin: 0.25rem 0 0; padding-left: 1.2rem; overflow-wrap: anywhere; }
.scroll {
  overflow-x: auto; margin: 0.75rem 0 1rem;
  /* Shadows at the sides on which there is more: those that hide them move with the table. */
  background:
    linear-gradient(to right, var(--page) 30%, transparent) 0 0 / 2.5rem 100% no-repeat local,
    linear-gradient(to left, var(--page) 30%, transparent) 100% 0 / 2.5rem 100% no-repeat local,
    linear-gradient(to right, var(--line), transparent) 0 0 / 0.9rem 100% no-repeat scroll,
    linear-gradient(to left, var(--line), transparent) 100% 0 / 0.9rem 100% no-repeat scroll;
}
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; }
table, .tiles dd { font-variant-numeric: tabular-nums; }
th, td { padding: 0.45rem 0.6rem; border-bottom: 1px solid var(--line); }
th, td { text-align: left; vertical-align: top; }
thead th { color: var(--faint); font-weight: 600; vertical-align: bottom; border-bottom-width: 2px; }
tbody th { font-weight: 500; }
th:first-child { padding-left: 0; }
.numeric td, .numeric thead th:not(:first-child) { text-align: right; }
.numeric td, .numeric tbody th { white-space: nowrap; }
.plain td { overflow-wrap: anywhere; }
.plain tbody th { color: var(--faint); white-space: nowrap; width: 1%; padding-right: 1.5rem; }
figure { margin: 1.25rem 0; max-width: 58rem; }
img {
  display: block; width: 100%; height: auto; background: #fff;
  border: 1px solid var(--line); border-radius: 10px; padding: 0.5rem;
}
figcaption { margin-top: 0.4rem; max-width: 46rem; }
pre {
  margin: 0.5rem 0; padding: 0.8rem 1rem; overflow-x: auto;
  font: 0.82rem/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
}
.wrap { white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--accent); font-weight: 550; }
@media print { h2, h3 { break-after: avoid; } figure, tr { break-inside: avoid; } }"""
