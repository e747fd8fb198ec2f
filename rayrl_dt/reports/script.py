"""What makes a page answer: tables that sort, and figures whose lines light up together with their table rows."""

from __future__ import annotations

__all__ = ["SCRIPT", "STYLE"]

STYLE = """
.sortable thead button {
  all: unset; cursor: pointer; font: inherit; color: inherit;
}
.sortable thead button:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.sortable thead button::after { content: " \\2195"; opacity: 0.4; }
.sortable [aria-sort="ascending"] button::after { content: " \\2191"; opacity: 1; }
.sortable [aria-sort="descending"] button::after { content: " \\2193"; opacity: 1; }
.sortable tr.lit > * { background: var(--panel); }
figure svg {
  display: block; width: 100%; height: auto; background: #fff;
  border: 1px solid var(--line); border-radius: 10px; padding: 0.5rem;
}
svg [data-name] { transition: opacity 0.1s; }
svg.dim [data-name] { opacity: 0.1; }
svg.dim [data-name].lit { opacity: 1; }"""

SCRIPT = """"use strict";
// Sorting: numbers by value (as the page writes them), text by the alphabet, unknown values always last.
const UNKNOWN = "\\u2013";
const textOf = (row, column) => row.cells[column].textContent;
const numberOf = (text) => Number(text.replaceAll(",", "").replace("\\u2212", "-"));
function compare(one, other) {
  const difference = numberOf(one) - numberOf(other);
  return Number.isNaN(difference) ? one.localeCompare(other, "en", { numeric: true }) : difference;
}
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const sign = head.ariaSort === "ascending" ? -1 : 1;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.ariaSort = sign === 1 ? "ascending" : "descending";
      const rows = [...table.tBodies[0].rows].sort((one, other) => {
        const [a, b] = [textOf(one, column), textOf(other, column)];
        if (a === UNKNOWN || b === UNKNOWN) return (a === UNKNOWN) - (b === UNKNOWN);
        return sign * compare(a, b);
      });
      table.tBodies[0].append(...rows);
    });
  });
  for (const row of table.tBodies[0].rows) row.dataset.name = textOf(row, 0);
}
// Lighting up: everything that carries the name under the pointer.
function light(name, on) {
  if (name === null) return;
  for (const part of document.querySelectorAll(`[data-name="${CSS.escape(name)}"]`)) {
    part.classList.toggle("lit", on);
    part.closest("svg")?.classList.toggle("dim", on);
  }
}
let lit = null;
document.addEventListener("pointerover", (event) => {
  const name = event.target.closest("[data-name]")?.dataset.name ?? null;
  if (name === lit) return;
  light(lit, false);
  light(name, true);
  lit = name;
});
"""
