"use strict";
(() => {
  const data = JSON.parse(document.getElementById("page-data").textContent);
  const root = document.documentElement;
  const config = { displayModeBar: false, responsive: true, doubleClick: false };
  const PRINT_WIDTH = 660; // CSS pixels of A4 between margins, with a little room
  const MOST_COUNTED_CODE = 64; // as in quantlab/artifact/reader.py
  const HEAT_MARGIN = 90;
  const LEAST_CELL = 26; // pixels that a number in a cell needs

  // figures: text and lines take the colours of the page
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const coloured = (value) => {
    if (typeof value === "string") return value.startsWith("var(") ? css(value.slice(4, -1)) : value;
    if (Array.isArray(value)) return value.map(coloured);
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, coloured(part)]));
  };
  const themed = (layout) => {
    const out = coloured(layout);
    const axis = { gridcolor: css("--line"), linecolor: css("--line"), zerolinecolor: css("--line"), fixedrange: true, automargin: true };
    Object.assign(out, { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true });
    out.font = { color: css("--text"), family: getComputedStyle(document.body).fontFamily, size: 12 };
    out.hoverlabel = { bgcolor: css("--panel"), bordercolor: css("--line"), font: { color: css("--text"), size: 12 } };
    for (const key of ["xaxis", "yaxis"]) out[key] = { ...axis, ...out[key] };
    return out;
  };
  const draw = (id, width) => {
    const figure = data.figures[id];
    const layout = themed(figure.layout);
    const traces = coloured(figure.data);
    if (width) Object.assign(layout, { width, autosize: false });
    for (const trace of traces) {
      const room = ((width || document.getElementById(id).clientWidth) - HEAT_MARGIN) / (trace.z?.[0].length || 1);
      if (room < LEAST_CELL) delete trace.texttemplate; // numbers would overlap; hovering over a cell still shows its number
    }
    return Plotly.react(id, traces, layout, config);
  };
  const drawAll = (width) => Object.keys(data.figures).forEach((id) => draw(id, width));
  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll());
  addEventListener("beforeprint", () => { root.dataset.print = ""; drawAll(PRINT_WIDTH); });
  addEventListener("afterprint", () => { delete root.dataset.print; drawAll(); });

  // codes of one tensor instead of all tensors
  const choice = document.getElementById("code-tensor");
  if (choice) {
    const whole = data.figures.codes;
    const percent = (share) => `${(100 * share).toFixed(2)} %`;
    const traceOf = (trace, tally) => {
      const sum = tally.reduce((a, b) => a + b, 0);
      const beyond = tally[0] + tally.at(-1);
      const name = trace.meta.name + (beyond ? `, ${percent(beyond / sum)} beyond` : "");
      return { ...trace, name, y: tally.slice(1, -1).map((count) => (count ? count / sum : null)) };
    };
    const reach = (tally) => Math.max(4, ...tally.map((count, at) => (count ? Math.min(Math.abs(at - MOST_COUNTED_CODE), MOST_COUNTED_CODE - 1) : 0)));
    const figureOf = (tensor) => {
      const shown = whole.data.filter((trace) => Object.hasOwn(data.codes[trace.meta.file], tensor));
      const tallies = shown.map((trace) => data.codes[trace.meta.file][tensor]);
      const end = Math.max(...tallies.map(reach)) + 0.5;
      const axes = { xaxis: { ...whole.layout.xaxis, range: [-end, end] }, yaxis: { ...whole.layout.yaxis, range: undefined } };
      return { data: shown.map((trace, n) => traceOf(trace, tallies[n])), layout: { ...whole.layout, ...axes } };
    };
    choice.addEventListener("change", () => {
      data.figures.codes = choice.value ? figureOf(choice.value) : whole;
      draw("codes");
    });
  }

  // the table of tensors
  const table = document.getElementById("tensors");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const headings = [...table.tHead.rows[0].cells];
  const value = (row, column) => row.cells[column].dataset.value;
  const compare = (column, sign) => (a, b) => {
    const [x, y] = [value(a, column), value(b, column)];
    if (x === "" || y === "") return (x === "") - (y === ""); // missing values come last in both orders
    return sign * (column ? x - y : x.localeCompare(y, undefined, { numeric: true }));
  };
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const first = column ? "descending" : "ascending";
      const second = column ? "ascending" : "descending";
      const order = heading.getAttribute("aria-sort") === first ? second : first;
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", order);
      rows.sort(compare(column, order === "ascending" ? 1 : -1));
      body.append(...rows);
    });
  });
  const filter = document.getElementById("filter");
  filter.addEventListener("input", () => {
    const wanted = filter.value.trim().toLowerCase();
    for (const row of rows) row.hidden = !value(row, 0).toLowerCase().includes(wanted);
    document.getElementById("shown").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  });
})();
