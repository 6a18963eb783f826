"use strict";
// Tables with data-filter: a click on a heading sorts by its column, an input keeps the rows that hold its text.
(() => {
  const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const isNumber = (text) => text !== "" && Number.isFinite(Number(text));
  const compare = (column, sign) => (a, b) => {
    const [x, y] = [value(a, column), value(b, column)];
    if (x === "" || y === "") return (x === "") - (y === ""); // missing values come last in both orders
    return sign * (isNumber(x) && isNumber(y) ? x - y : x.localeCompare(y, undefined, { numeric: true }));
  };
  const sortable = (table) => {
    const body = table.tBodies[0];
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      heading.querySelector("button").addEventListener("click", () => {
        const isText = heading.dataset.kind === "text" || !column;
        const first = isText ? "ascending" : "descending";
        const second = isText ? "descending" : "ascending";
        const order = heading.getAttribute("aria-sort") === first ? second : first;
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", order);
        body.append(...[...body.rows].sort(compare(column, order === "ascending" ? 1 : -1)));
      });
    });
  };
  const filterable = (table) => {
    const input = document.getElementById(table.dataset.filter);
    const shown = document.getElementById(table.dataset.shown);
    const text = (row) => (row.dataset.text ?? value(row, 0)).toLowerCase();
    const apply = () => {
      const words = input.value.trim().toLowerCase().split(/\s+/);
      const rows = [...table.tBodies[0].rows];
      for (const row of rows) row.hidden = !words.every((word) => text(row).includes(word));
      shown.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
    };
    input.addEventListener("input", apply);
  };
  for (const table of document.querySelectorAll("table[data-filter]")) {
    sortable(table);
    filterable(table);
  }
})();
