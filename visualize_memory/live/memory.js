// The units: three heatmaps (hidden, cell, what each writes into the logit), and choosing units in them.
// Needs grid.js and life.js; `ui` is the page's state, see controls.js.

/** Rows and columns for H units, roughly square, as in the pictures that page.py draws. */
function unitGrid(H) {
  let rows = Math.floor(Math.sqrt(H));
  while (H % rows) rows--;
  if (H > 2 * rows * rows) rows = Math.floor(Math.sqrt(H));
  return { rows, columns: Math.ceil(H / rows) };
}

/** What each unit adds to the logit of the action about to be taken (less the mean logit): (H). */
function writes({ agent }, step) {
  return agent.logitGradient(step.h, step.action).map((g, u) => g * step.h[u]);
}

function drawUnits(canvas, ui) {
  const { session, chosen, marked } = ui, { life, twin, cursor, agent } = session, { part } = canvas.dataset;
  const { rows, columns } = unitGrid(agent.H), step = session.now();
  const { c, width } = fit(canvas, w => Math.round(w / columns * rows));
  const side = width / columns, size = side - (side > 8 ? 1.5 : 0.5);
  const other = session.changed() ? twin.steps[Math.min(cursor, twin.steps.length - 1)] : null;
  const values = part === "w" ? writes(session, step) : step[part];
  let scale = 1e-6;
  const shown = [...twin.steps, ...life.steps.slice(0, cursor + 1)];
  for (const row of part === "w" ? [values] : shown.map(s => s[part])) {
    for (const v of row) scale = Math.max(scale, Math.abs(v));
  }
  if (part === "c") ui.most = Math.ceil(scale);
  const label = $(`l-scale-${part}`);
  if (label) label.textContent = `±${show(scale)}`;
  const edited = new Set(session.plan.edits.filter(e => e.from === step.t || (e.on && e.from < step.t))
    .flatMap(e => e.units || [...Array(agent.H).keys()]));
  for (let u = 0; u < agent.H; u++) {
    const x = (u % columns) * side, y = Math.floor(u / columns) * side;
    c.fillStyle = css(values[u] / scale);
    c.fillRect(x, y, size, size);
    if (other && part !== "w" && Math.abs(other[part][u] - values[u]) > 0.02 * scale) { // the twin's
      c.fillStyle = css(other[part][u] / scale);
      c.fillRect(x + size * 0.55, y + size * 0.55, size * 0.45, size * 0.45);
      c.strokeStyle = ink("ghost");
      c.lineWidth = 1;
      c.strokeRect(x + size * 0.55, y + size * 0.55, size * 0.45, size * 0.45);
    }
    if (edited.has(u)) {
      c.setLineDash([3, 2]);
      c.strokeStyle = ink("mark");
      c.lineWidth = 1.5;
      c.strokeRect(x + 1, y + 1, size - 2, size - 2);
      c.setLineDash([]);
    }
    if (marked.includes(u)) {
      c.fillStyle = ink("mark");
      c.strokeStyle = "#fff";
      c.lineWidth = 0.8;
      c.beginPath();
      c.arc(x + size * 0.2, y + size * 0.2, Math.max(1.6, Math.min(3.6, side * 0.1)), 0, 7);
      c.fill();
      c.stroke();
    }
    if (chosen.has(u)) {
      c.strokeStyle = ink("ink");
      c.lineWidth = 2;
      c.strokeRect(x + 1, y + 1, size - 2, size - 2);
    }
  }
}

/** Choosing: a click takes one unit, shift or a drag several; a tap adds or takes away; arrow keys move on after Tab. */
function listenToUnits(canvas, ui, changed) {
  const { H } = ui.session.agent, { rows, columns } = unitGrid(H);
  const unitAt = e => {
    const box = canvas.getBoundingClientRect();
    const [column, row] = [(e.clientX - box.left) / box.width * columns, (e.clientY - box.top) / box.height * rows];
    const u = Math.floor(row) * columns + Math.floor(column);
    return column >= 0 && column < columns && row >= 0 && u < H ? u : null;
  };
  let drag = null;
  canvas.addEventListener("mousedown", e => { // a click takes no focus: the arrow keys go on steering
    e.preventDefault();
    document.activeElement.blur();
  });
  canvas.addEventListener("pointerdown", e => {
    const u = drag = unitAt(e), had = ui.chosen.has(u);
    const adds = e.shiftKey || e.ctrlKey || e.metaKey || e.pointerType !== "mouse";
    if (u === null) return;
    if (!adds) ui.chosen = new Set(had && ui.chosen.size === 1 ? [] : [u]);
    else if (had) ui.chosen.delete(u);
    else ui.chosen.add(u);
    changed();
  });
  canvas.addEventListener("pointermove", e => {
    const u = e.buttons && drag !== null ? unitAt(e) : null;
    if (u === null || u === drag || ui.chosen.has(u)) return;
    ui.chosen.add(u);
    changed();
  });
  canvas.addEventListener("pointerup", () => { drag = null; });
  canvas.addEventListener("keydown", e => {
    const way = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[e.key];
    if (!way) return;
    e.preventDefault();
    e.stopPropagation();
    ui.chosen = new Set([Math.max(0, Math.min(H - 1, ([...ui.chosen].at(-1) ?? -way) + way))]);
    changed();
  });
}

/** What is said of the chosen units. */
function aboutUnits({ session, chosen, marked, tells }) {
  const step = session.now(), action = session.actions[step.action], dot = '<span style="color:var(--mark)">●</span>';
  const other = session.changed() && session.twin.steps[step.t], signed = v => (v < 0 ? "" : "+") + show(v);
  const some = `${[...chosen].slice(0, 12).join(", ")}${chosen.size > 12 ? ", …" : ""}`;
  if (!chosen.size) return `${dot} ${marked.length} units that tell ${tells} best. Choose some by a click or a drag.`;
  if (chosen.size > 1) return `${chosen.size} units chosen: ${some}.`;
  const [u] = chosen, told = writes(session, step)[u];
  const twins = other ? ` (twin ${show(other.h[u])}, ${show(other.c[u])})` : "";
  return `<b>Unit ${u}</b>: hidden ${show(step.h[u])}, cell ${show(step.c[u])}${twins}. ` +
    `It adds ${signed(told)} to “${action}”.`;
}
