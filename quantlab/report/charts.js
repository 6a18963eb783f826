"use strict";
// Draws the figures of page-data with plotly, in the page's colours.
const charts = (() => {
  const data = JSON.parse(document.getElementById("page-data").textContent);
  const root = document.documentElement;
  const config = { displayModeBar: false, responsive: true, doubleClick: false };
  const PRINT_WIDTH = 660; // CSS pixels of A4 between margins, with a little room
  const HEAT_MARGIN = 90;
  const LEAST_CELL = 26; // pixels that a number in a cell needs

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
    if (!figure || !document.getElementById(id)) return;
    const layout = themed(figure.layout);
    const traces = coloured(figure.data);
    if (width) Object.assign(layout, { width, autosize: false });
    for (const trace of traces) {
      if (!trace.meta?.columns) continue;
      const room = ((width || document.getElementById(id).clientWidth) - HEAT_MARGIN) / trace.meta.columns;
      if (room < LEAST_CELL) delete trace.text; // numbers would overlap; hovering over a cell still shows its number
    }
    return Plotly.react(id, traces, layout, config);
  };
  const drawAll = (width) => Object.keys(data.figures).forEach((id) => draw(id, width));
  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll());
  addEventListener("beforeprint", () => { root.dataset.print = ""; drawAll(PRINT_WIDTH); });
  addEventListener("afterprint", () => { delete root.dataset.print; drawAll(); });
  return { data, draw, drawAll };
})();
