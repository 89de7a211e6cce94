// What a page does beyond what the server draws: times that go on, charts, and whether the page is live.
"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");

  // times
  const length = (s) => {
    if (s < 60) return s < 10 ? `${s.toFixed(1)} s` : `${Math.round(s)} s`;
    if (s < 3600) return `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s`;
    if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
    return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
  };
  const tick = () => {
    for (const one of document.querySelectorAll("[data-since]")) {
      one.textContent = length(Math.max(0, (Date.now() - Date.parse(one.dataset.since)) / 1000));
    }
    const today = new Date().toISOString().slice(0, 10);
    for (const day of document.querySelectorAll("time .day")) {
      day.hidden = day.parentElement.dateTime.startsWith(today);
    }
  };
  tick();
  setInterval(tick, 1000);

  // forms
  document.addEventListener("submit", (event) => {
    const question = event.target.dataset.confirm;
    if (question && !window.confirm(question)) event.preventDefault();
  });
  document.addEventListener("change", (event) => {
    const form = event.target.closest("form[data-submit-on-change]");
    if (form) form.requestSubmit();
  });

  // charts
  const plots = new Map();
  const colour = (element) => getComputedStyle(element).color;
  const draw = (element) => {
    const data = JSON.parse(element.dataset.series);
    const old = plots.get(element);
    if (old && old.theme === root.dataset.theme + matchMedia("(prefers-color-scheme: dark)").matches) {
      old.plot.setData(data);
      return;
    }
    if (old) old.plot.destroy();
    const figure = element.closest("figure");
    const tones = [...figure.querySelectorAll(".swatch")].map(colour);
    const dim = colour(figure.querySelector(".legend"));
    const line = getComputedStyle(figure).borderTopColor;
    const labels = JSON.parse(element.dataset.labels);
    const axis = { stroke: dim, font: "11px system-ui", grid: { stroke: line, width: 1 }, ticks: { show: false } };
    const number = (value) => (value >= 1000 ? `${value / 1000}k` : String(Number(value.toPrecision(3))));
    const plot = new uPlot({
      width: element.clientWidth || 420,
      height: 190,
      padding: [8, 8, 0, 0],
      legend: { show: false },
      cursor: { drag: { x: false, y: false }, points: { size: 6 } },
      scales: { y: { range: (_, low, high) => [0, high > 0 ? high * 1.15 : 1] } },
      axes: [
        { ...axis, values: (_, times) => times.map((t) => new Date(t * 1000).toISOString().slice(11, 16)), space: 60, size: 26 },
        { ...axis, size: 44, values: (_, values) => values.map(number) },
      ],
      series: [{}, ...labels.map((label, n) => ({
        label, stroke: tones[n], width: 1.75, spanGaps: true,
        points: { show: (u, index) => u.data[index].filter((value) => value !== null).length < 12, size: 5 },
      }))],
    }, data, element);
    plots.set(element, { plot, theme: root.dataset.theme + matchMedia("(prefers-color-scheme: dark)").matches });
  };
  const drawAll = () => {
    for (const [element, one] of plots) {
      if (!element.isConnected) {
        one.plot.destroy();
        plots.delete(element);
      }
    }
    for (const element of document.querySelectorAll(".plot")) draw(element);
  };
  if (window.uPlot) {
    drawAll();
    addEventListener("resize", () => {
      for (const [element, one] of plots) one.plot.setSize({ width: element.clientWidth, height: 190 });
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  }

  // live
  const state = document.getElementById("link-state");
  const say = (name, words) => {
    state.hidden = false;
    state.className = `link-state ${name}`;
    state.querySelector(".words").textContent = words;
  };
  document.addEventListener("htmx:sse:after:connection", () => say("is-on", "Live"));
  document.addEventListener("htmx:sse:error", (event) => {
    if (event.detail.status === 401) location.assign(document.querySelector(".themes [name=back]").value); // signed out
    else say("is-off", "Reconnecting");
  });
  document.addEventListener("drain", () => say("is-off", "Reconnecting"));
  document.addEventListener("over", () => { state.hidden = true; });
  document.addEventListener("htmx:after:swap", () => {
    tick();
    if (window.uPlot) drawAll();
  });
})();
