"use strict";
// Shows the codes of one tensor instead of all tensors.
(() => {
  const { data, draw } = charts;
  const MOST_COUNTED_CODE = 64; // as in quantlab/artifact/reader.py
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
})();
