"use strict";
// Moves a budget between the sizes of an estimate, and shows where its bytes would go.
(() => {
  const estimate = charts.data.estimate;
  const slider = document.getElementById("budget");
  if (!estimate || !slider) return;
  const { points, places, weights, bpb } = estimate;
  const sizes = points.map((point) => point.total_bytes);
  const [low, high] = [Math.log(sizes[0]), Math.log(sizes.at(-1))];
  const mix = (a, b, share) => a + share * (b - a);
  const mixLog = (a, b, share) => (a > 0 && b > 0 ? Math.exp(mix(Math.log(a), Math.log(b), share)) : mix(a, b, share));
  const at = (size) => {
    const next = Math.max(1, sizes.findIndex((other) => other >= size));
    const [before, after] = [points[next - 1], points[next]];
    const share = Math.log(size / before.total_bytes) / Math.log(after.total_bytes / before.total_bytes);
    const both = (key) => mixLog(before[key], after[key], share);
    const bytes = before.bytes.map((value, n) => mix(value, after.bytes[n], share));
    return { size, kl: both("kl"), low: both("low"), high: both("high"), bytes };
  };
  const text = (size) => (size >= 1e6 ? `${(size / 1e6).toPrecision(4)} MB` : `${(size / 1e3).toPrecision(4)} kB`);
  const nats = (value) => value.toPrecision(3);
  const bits = (bytes, key) => {
    const groups = new Map();
    places.forEach((place, n) => {
      const group = groups.get(place[key]) ?? { bytes: 0, weights: 0 };
      group.bytes += bytes[n];
      group.weights += weights[n];
      groups.set(place[key], group);
    });
    return [...groups].map(([name, group]) => [name, (8 * group.bytes) / group.weights]);
  };
  const most = { role: 0, layer: 0 };
  for (const point of points) for (const key of ["role", "layer"]) for (const [, value] of bits(point.bytes, key)) most[key] = Math.max(most[key], value);
  const bars = (id, key, found) => {
    const rows = bits(found.bytes, key);
    const figure = charts.data.figures[id];
    const says = rows.map(([name, value]) => `${name}: ${value.toFixed(2)} bits per weight`);
    Object.assign(figure.data[0], { x: rows.map(([, value]) => value), y: rows.map((_, n) => n), text: rows.map(([, value]) => value.toFixed(2)), customdata: says });
    figure.layout.xaxis = { title: { text: `bits per weight by ${key}` }, range: [0, 1.15 * most[key]] };
    charts.draw(id);
  };
  const show = () => {
    const found = at(Math.exp(mix(low, high, slider.value / slider.max)));
    const put = (id, words) => { document.getElementById(id).textContent = words; };
    put("budget-text", text(found.size));
    put("budget-bits", ((8 * found.size) / estimate.n_params).toFixed(2));
    put("budget-kl", `${nats(found.kl)} nats per token (${nats(found.low)} to ${nats(found.high)})`);
    if (bpb) put("budget-bpb", `about ${(bpb.float + bpb.per_nat * found.kl).toFixed(4)}, the float model has ${bpb.float.toFixed(4)}`);
    const curve = charts.data.figures["budget-curve"];
    Object.assign(curve.data.at(-1), { x: [found.size], y: [found.kl] });
    charts.draw("budget-curve");
    bars("budget-roles", "role", found);
    bars("budget-layers", "layer", found);
  };
  slider.addEventListener("input", show);
  show();
})();
