// What is drawn over time: value, probabilities and a unit, each with the twin's line beside it; the strip of how much
// each past step counts; and the map of memories. Needs grid.js and life.js.

/** Steps that the time axis holds: where the agent wanders on for long, some way ahead. */
function span({ life, twin, cursor }) {
  const usual = twin.end ? 1.6 * twin.steps.length : 60;
  return Math.min(life.steps.length + (life.end ? 1 : 0), Math.max(cursor + 40, Math.round(usual)));
}

/** lines: [[f(step) -> number, colour]]; the agent's is solid, pale where it is still to come, the twin's dashed. */
function drawPlot(canvas, session, lines, low, high) {
  const { life, twin, cursor, plan } = session, n = span(session);
  const { c, width, height } = fit(canvas, () => 66), X = t => (t + 0.5) / n * width;
  const Y = v => height - 5 - (v - low) / (high - low || 1) * (height - 10);
  c.fillStyle = ink("seen");
  c.globalAlpha = 0.3;
  life.steps.slice(0, n).forEach(s => { if (s.sees) c.fillRect(s.t / n * width, 0, width / n + 0.5, height); });
  c.globalAlpha = 1;
  c.lineWidth = 1.2;
  for (const { from } of plan.edits) rule(c, X(from), height, "mark", []);
  const fork = life.fork();
  if (fork !== null) rule(c, X(fork), height, "soft", [4, 3]);
  const trace = (steps, f, first, last) => {
    c.beginPath();
    for (let t = first; t <= last && t < steps.length && t < n; t++) c.lineTo(X(t), Y(f(steps[t])));
    c.stroke();
  };
  for (const [f, colour] of lines) {
    if (session.changed()) {
      c.strokeStyle = ink(lines.length > 1 ? colour : "ghost");
      c.setLineDash([4, 4]);
      c.lineWidth = 1.6;
      trace(twin.steps, f, 0, n);
      c.setLineDash([]);
    }
    c.strokeStyle = ink(colour);
    c.lineWidth = 2.2;
    trace(life.steps, f, 0, cursor);
    c.globalAlpha = 0.35;
    trace(life.steps, f, cursor, n);
    c.globalAlpha = 1;
  }
  rule(c, X(cursor), height, "ink", []);
}

function rule(c, x, height, colour, dash) {
  c.strokeStyle = ink(colour);
  c.setLineDash(dash);
  c.beginPath();
  c.moveTo(x, 0);
  c.lineTo(x, height);
  c.stroke();
  c.setLineDash([]);
}

/** A bar for each step up to the present: how much it counts for the action about to be taken. */
function drawWhy(canvas, session) {
  const { life, plan } = session, n = span(session), t = session.now().t;
  const { c, width, height } = fit(canvas, () => (innerWidth < 640 ? 30 : 40));
  const X = s => 8 + s / Math.max(1, n - 1) * (width - 16);
  const bar = Math.max(1, Math.min(30, (width - 16) / n * 0.72)), fork = life.fork();
  c.font = "10.5px system-ui";
  life.importance(t).forEach((v, s) => {
    c.fillStyle = ink(life.steps[s].sees ? "seen" : "accent");
    const tall = Math.sqrt(v) * (height - 14);
    c.fillRect(X(s) - bar / 2, height - 3 - tall, bar, tall);
  });
  c.fillStyle = ink("seen");
  life.steps.slice(0, n).forEach(s => { if (s.sees) c.fillRect(X(s.t) - bar / 2, height - 3, bar, 3); });
  for (const { from } of plan.edits) rule(c, X(from), height, "mark", []);
  if (fork === null || fork >= n) return;
  rule(c, X(fork), height, "soft", [4, 3]);
  c.fillStyle = ink("soft");
  c.textAlign = X(fork) > width - 40 ? "right" : "left";
  c.fillText("fork", X(fork) + (c.textAlign === "left" ? 4 : -4), 9);
}

/** Hidden states of played episodes in two principal components; the way of the agent's state among them. */
function drawMap(canvas, session, map) {
  const { life, twin, cursor } = session, { c, width, height } = fit(canvas, w => Math.round(w * 0.82));
  const project = h => map.axes.map(axis => axis.reduce((sum, a, u) => sum + a * (h[u] - map.mean[u]), 0));
  const [xs, ys] = [0, 1].map(n => map.points.map(p => p[n])), most = Math.max(...map.colour.map(Math.abs), 1e-9);
  const scale = (v, low, high, size) => 8 + (Math.max(low, Math.min(high, v)) - low) / (high - low || 1) * (size - 16);
  const ends = [xs, ys].map(v => [1.1 * Math.min(...v), 1.1 * Math.max(...v)]);
  const at = ([x, y]) => [scale(x, ...ends[0], width), height - scale(y, ...ends[1], height)];
  const classes = map.colour.every(v => v === 0 || v === 1);
  c.globalAlpha = 0.55;
  map.points.forEach((p, n) => {
    c.fillStyle = css((classes ? 2 * map.colour[n] - 1 : Math.max(-1, Math.min(1, 1.5 * map.colour[n] / most))) * 0.7);
    c.fillRect(...at(p).map(v => v - 1.2), 2.4, 2.4);
  });
  c.globalAlpha = 1;
  for (const [of, colour] of session.changed() ? [[twin, "ghost"], [life, "ink"]] : [[life, "ink"]]) {
    const t = Math.min(cursor, of.steps.length - 1);
    c.strokeStyle = c.fillStyle = ink(colour);
    c.lineWidth = 1.6;
    c.setLineDash(colour === "ghost" ? [4, 3] : []);
    c.beginPath();
    for (let s = Math.max(0, t - 25); s <= t; s++) c.lineTo(...at(project(of.steps[s].h)));
    c.stroke();
    c.setLineDash([]);
    c.beginPath();
    c.arc(...at(project(of.steps[t].h)), 5, 0, 7);
    if (colour !== "ghost") c.fill();
    c.stroke();
  }
}

/** The plots over time: {canvases, draw}. Each has a title, its lines, and its range where that is fixed. */
function makePlots(ui) {
  const { session } = ui, unit = () => [...ui.chosen].at(-1) ?? ui.marked[0];
  const key = (name, a) => `<span class="key"><i style="background:var(--c${a})"></i>${name}</span>`;
  const plots = [
    { title: () => "Value", lines: () => [[s => s.value, "accent"]], now: s => show(s.value) },
    { title: () => "Probabilities", keys: session.actions.map(key).join(""), range: [0, 1],
      lines: () => session.actions.map((_, a) => [s => s.probs[a], `c${a}`]),
      now: s => `${session.actions[s.action]} ${Math.round(100 * s.probs[s.action])} %` },
    { title: () => `Unit ${unit()}, hidden`, range: [-1, 1], lines: () => [[s => s.h[unit()], "c0"]],
      now: s => show(s.h[unit()]) }];
  $("l-plots").innerHTML = plots.map(({ keys = "" }) => '<div class="chart"><h2><b></b>' + keys +
    '<span class="now"></span></h2><div class="plot"><canvas></canvas></div></div>').join("");
  const charts = [...$("l-plots").children], canvases = charts.map(chart => chart.querySelector("canvas"));
  function draw() {
    const values = [session.life, session.twin].flatMap(life => life.steps.map(s => s.value));
    plots.forEach(({ title, lines, range = [Math.min(...values), Math.max(...values)], now }, n) => {
      drawPlot(canvases[n], session, lines(), ...range);
      charts[n].querySelector("b").textContent = title();
      charts[n].querySelector(".now").textContent = now(session.now());
    });
  }
  return { canvases, draw };
}
