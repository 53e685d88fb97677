// Drawing: colours, canvases, and the world with the agent in it and its twin beside it.
// Needs worlds.js and life.js (a session), and replay.js: $, dark, css (-1 to 1 -> a colour), show (a number).

const inks = new Map();
dark.addEventListener("change", () => inks.clear());

/** A custom property of the page's style. */
function ink(name) {
  if (!inks.has(name)) inks.set(name, getComputedStyle(document.body).getPropertyValue(`--${name}`).trim());
  return inks.get(name);
}

/** Fit a canvas to its width on the page and the given height -> context, width and height in CSS pixels. */
function fit(canvas, heightOf) {
  const ratio = devicePixelRatio || 1, width = canvas.clientWidth || 300, height = heightOf(width);
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) {
    [canvas.width, canvas.height] = [w, h];
    canvas.style.height = `${height}px`;
  }
  const c = canvas.getContext("2d");
  c.setTransform(ratio, 0, 0, ratio, 0, 0);
  c.clearRect(0, 0, width, height);
  return { c, width, height };
}

function drawWorld(canvas, session) {
  if (session.task.kind === "cartpole") drawCartPole(canvas, session);
  else drawGrid(canvas, session);
}

/** The part of the grid that is drawn: Memory's corridor and what is beside it, around the agent where it is long. */
function windowOf(world, x) {
  const columns = Math.min(world.width, world.middle ? 25 : world.width);
  const left = Math.max(0, Math.min(world.width - columns, x - (columns >> 1)));
  return { left, columns, top: world.middle ? world.middle - 3 : 0, rows: world.middle ? 7 : world.height };
}

function drawGrid(canvas, session) {
  const { life, twin, cursor, task } = session, { world } = life, here = life.at(cursor);
  const { left, top, columns, rows } = windowOf(world, here.x), far = columns < world.width ? 22 : 0;
  const { c, width, height } = fit(canvas, w => Math.round(Math.min(w / columns * rows, 0.45 * innerHeight) + far));
  const side = Math.min(width / columns, (height - far) / rows), shift = (width - side * columns) / 2;
  const X = x => shift + (x - left) * side, Y = y => (y - top) * side;
  canvas.cellAt = e => [left + Math.floor((e.offsetX - shift) / side), top + Math.floor(e.offsetY / side)];
  const looking = Object.assign(Object.create(world), here), lit = new Set();
  if (task.view) looking.visible().forEach((seen, n) => {
    if (seen) lit.add(looking.place(Math.floor(n / task.view), n % task.view).join());
  });
  for (let x = left; x < left + columns; x++) for (let y = top; y < top + rows; y++) {
    const kind = world.at(x, y), seen = !task.view || lit.has(`${x},${y}`);
    c.fillStyle = ink(kind === WALL ? "wall" : seen ? "lit" : "floor");
    c.globalAlpha = kind === WALL && !seen ? 0.55 : 1;
    c.fillRect(X(x), Y(y), side - 0.7, side - 0.7);
    c.globalAlpha = 1;
    if (kind !== EMPTY && kind !== WALL) drawThing(c, kind, X(x), Y(y), side);
  }
  if (world.middle) {
    c.font = `bold ${Math.round(side * 0.4)}px system-ui`;
    c.textAlign = "center";
    for (const way of [-1, 1]) {
      const right = world.middle + way === world.success;
      c.fillStyle = ink(right ? "good" : "bad");
      c.fillText(right ? "✓" : "✗", X(world.fork) + side * 0.17, Y(world.middle + 2 * way) + side * 0.36);
    }
  }
  const figures = session.changed() ? [[twin, "ghost", true], [life, "accent", false]] : [[life, "accent", false]];
  for (const [of, colour, ghost] of figures) {
    const nudge = ghost ? -side * 0.07 : figures.length > 1 ? side * 0.07 : 0;
    c.strokeStyle = ink(colour);
    c.lineWidth = Math.max(1.5, side * 0.06);
    c.setLineDash(ghost ? [side * 0.15, side * 0.13] : []);
    c.globalAlpha = 0.6;
    c.beginPath();
    for (let t = 0; t <= Math.min(cursor, of.steps.length); t++) {
      const { x, y } = of.at(t);
      if (x >= left && x < left + columns) c.lineTo(X(x) + side / 2 + nudge, Y(y) + side / 2 + nudge);
    }
    c.stroke();
    c.globalAlpha = 1;
    drawFigure(c, of.at(Math.min(cursor, of.steps.length)), colour, ghost, X, Y, side);
  }
  if (far) { // where in the whole corridor this is
    const at = x => 6 + x / (world.width - 1) * (width - 12), y = height - 8;
    c.setLineDash([]);
    c.fillStyle = ink("line");
    c.fillRect(6, y - 2, width - 12, 4);
    c.fillStyle = ink("soft");
    c.fillRect(at(left), y - 4, at(left + columns - 1) - at(left), 8);
    for (const [x, colour] of [[1, "thing"], [world.fork, "thing"], [here.x, "accent"]]) {
      c.fillStyle = ink(colour);
      c.beginPath();
      c.arc(at(x), y, 4, 0, 7);
      c.fill();
    }
  }
}

function drawThing(c, kind, x, y, side) {
  c.fillStyle = c.strokeStyle = ink("thing");
  c.lineWidth = side * 0.1;
  c.beginPath();
  if (kind === GOAL) c.rect(x + side * 0.1, y + side * 0.1, side * 0.8 - 0.7, side * 0.8 - 0.7);
  if (kind === BALL) c.arc(x + side / 2, y + side / 2, side * 0.3, 0, 7);
  if (kind === GOAL || kind === BALL) return c.fill();
  c.arc(x + side * 0.5, y + side * 0.28, side * 0.15, 0, 7);
  c.moveTo(x + side * 0.5, y + side * 0.43);
  c.lineTo(x + side * 0.5, y + side * 0.86);
  c.lineTo(x + side * 0.68, y + side * 0.86);
  c.moveTo(x + side * 0.5, y + side * 0.68);
  c.lineTo(x + side * 0.64, y + side * 0.68);
  c.stroke();
}

function drawFigure(c, { x, y, direction }, colour, ghost, X, Y, side) {
  c.save();
  c.translate(X(x) + side / 2, Y(y) + side / 2);
  c.rotate(direction * Math.PI / 2);
  c.beginPath();
  c.moveTo(side * 0.38, 0);
  c.lineTo(-side * 0.28, side * 0.3);
  c.lineTo(-side * 0.28, -side * 0.3);
  c.closePath();
  c.setLineDash(ghost ? [side * 0.12, side * 0.08] : []);
  c.lineWidth = Math.max(1.6, side * 0.07);
  c.strokeStyle = ink(ghost ? colour : "card");
  c.fillStyle = ink(colour);
  if (!ghost) c.fill();
  c.stroke();
  c.restore();
}

function drawCartPole(canvas, session) {
  const { life, twin, cursor } = session;
  const { c, width, height } = fit(canvas, w => Math.round(Math.min(0.55 * w, 0.42 * innerHeight)));
  const ground = height * 0.8, unit = Math.min(width / 5.2, height * 0.55);
  c.fillStyle = ink("floor");
  c.fillRect(0, 0, width, height);
  c.strokeStyle = ink("wall");
  c.lineWidth = 2;
  c.beginPath();
  c.moveTo(0, ground);
  c.lineTo(width, ground);
  for (const x of [-2.4, 2.4]) {
    c.moveTo(width / 2 + x * unit, ground - 14);
    c.lineTo(width / 2 + x * unit, ground + 14);
  }
  c.stroke();
  const arrow = (x, y, dx, dy) => {
    const angle = Math.atan2(dy, dx);
    c.beginPath();
    c.moveTo(x, y);
    c.lineTo(x + dx, y + dy);
    for (const turn of [2.6, -2.6]) {
      c.moveTo(x + dx, y + dy);
      c.lineTo(x + dx + 7 * Math.cos(angle + turn), y + dy + 7 * Math.sin(angle + turn));
    }
    c.stroke();
  };
  for (const [of, ghost] of session.changed() ? [[twin, true], [life, false]] : [[life, false]]) {
    const [position, speed, angle, turn] = of.at(Math.min(cursor, of.steps.length)).state;
    const x = width / 2 + position * unit;
    const tip = [x + unit * Math.sin(angle), ground - 16 - unit * Math.cos(angle)];
    c.setLineDash(ghost ? [6, 5] : []);
    c.strokeStyle = c.fillStyle = ink(ghost ? "ghost" : "accent");
    c.lineWidth = ghost ? 2 : 3;
    c[ghost ? "strokeRect" : "fillRect"](x - 34, ground - 28, 68, 24);
    c.lineWidth = ghost ? 3 : 9;
    c.strokeStyle = ink(ghost ? "ghost" : "c1");
    c.beginPath();
    c.moveTo(x, ground - 16);
    c.lineTo(...tip);
    c.stroke();
    if (ghost) continue;
    c.strokeStyle = ink("soft"); // the velocities, which the agent does not see
    c.lineWidth = 2;
    arrow(x, ground + 22, speed * unit * 0.4, 0);
    arrow(...tip, turn * unit * 0.4 * Math.cos(angle), turn * unit * 0.4 * Math.sin(angle));
  }
}
