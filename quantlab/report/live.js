"use strict";
// Asks the server for the runs at work, shows their progress and curves, and loads the page anew when a run has ended.
(() => {
  const EVERY_MS = 2000;
  const place = document.getElementById("live");
  const state = document.getElementById("live-state");
  const filter = document.getElementById("filter");
  const known = charts.data.version;
  const element = (name, words, parent) => {
    const made = document.createElement(name);
    if (words !== undefined) made.textContent = words;
    parent.append(made);
    return made;
  };
  const cards = new Map();
  const card = (run) => {
    const box = element("section", undefined, place);
    box.className = "card";
    const made = { box, title: element("h2", "", box), stage: element("p", "", box), bar: element("progress", undefined, box), note: element("p", "", box), plot: element("div", undefined, box) };
    made.note.className = "note";
    made.plot.id = `live-${run}`;
    cards.set(run, made);
    return made;
  };
  const curve = (points, name, colour, width) => ({ type: "scatter", mode: "lines", name, x: points.map(([step]) => step), y: points.map(([, loss]) => loss), line: { color: colour, width } });
  const show = (one) => {
    const parts = cards.get(one.run) ?? card(one.run);
    parts.title.textContent = `${one.kind} ${one.run} ${one.what}`.trim();
    parts.stage.textContent = one.stage ? `${one.stage}: ${one.done.toLocaleString()} of ${one.total.toLocaleString()} ${one.unit}${one.left ? `, ${one.left} left` : ""}` : "no progress yet";
    parts.bar.max = Math.max(one.total, 1);
    parts.bar.value = one.done;
    parts.note.textContent = one.note;
    if (!one.train.length && !one.val.length) return;
    const traces = [curve(one.train, "training", "#3b82c4", 1.2), curve(one.val, "validation", "#e0862b", 2)];
    const layout = { height: 260, margin: { l: 8, r: 12, t: 10, b: 8 }, xaxis: { title: { text: "step" } }, yaxis: { title: { text: "nats per token" } }, legend: { orientation: "h", y: 1.1 } };
    charts.data.figures[parts.plot.id] = { data: traces, layout };
    charts.draw(parts.plot.id);
  };
  const look = async () => {
    try {
      const answer = await fetch("state.json", { cache: "no-store" });
      const found = await answer.json();
      const now = new Set(found.live.map((one) => one.run));
      for (const [run, parts] of cards) if (!now.has(run)) { parts.box.remove(); cards.delete(run); delete charts.data.figures[parts.plot.id]; }
      found.live.forEach(show);
      state.textContent = found.live.length ? `${found.live.length} at work` : "No run is at work.";
      if (found.version !== known) {
        if (!filter || !filter.value) { location.reload(); return; }
        state.textContent += " There are new results: load the page again.";
      }
    } catch {
      state.textContent = "The server does not answer.";
    }
    setTimeout(look, EVERY_MS);
  };
  look();
})();
