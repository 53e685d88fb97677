// Deep links: a session's state as the part of the address behind the #, and back. Needs life.js (a session).
// live&cue=ball&x=4&zero=29,4@11&flip=3@12-&set=7@12:0.5:-1.2&moves=13l&t=14: units at a step, "-" for from there on.

const LETTERS = "lrf"; // left, right, forward

function toAddress({ plan, cursor }) {
  const parts = ["live"], steered = Object.entries(plan.moves).map(([t, action]) => t + LETTERS[action]);
  for (const [name, value] of Object.entries(plan.options)) if (value !== undefined) parts.push(`${name}=${value}`);
  if (plan.draw !== null) parts.push(`draw=${plan.draw}`);
  if (steered.length) parts.push(`moves=${steered}`);
  for (const { kind, units, from, on, h, c } of plan.edits) {
    const values = kind === "set" ? [h, c].map(v => `:${v === undefined ? "" : +v.toFixed(3)}`).join("") : "";
    parts.push(`${kind}=${units || ""}@${from}${on ? "-" : ""}${values}`);
  }
  return [...parts, `t=${cursor}`].join("&");
}

/** {plan, t} of such an address; what is wrong in it or missing is as in `session.defaults`, t as the last change. */
function fromAddress(text, session) {
  const { task, agent } = session, plan = session.defaults(), { options } = plan;
  const within = (low, high) => v => (/^\d{1,6}$/.test(v) && +v >= low && +v <= high ? +v : undefined);
  const thing = value => (["key", "ball"].includes(value) ? value : undefined);
  const start = value => (/^(-?[\d.]+(,|$)){4}$/.test(value)
    ? value.split(",").map(v => Math.max(-0.2, Math.min(0.2, +v || 0))) : undefined);
  const odd = value => (value % 2 && task.view ? within(7, 257)(value) : undefined); // the whole grid has one size
  const readers = { memory: { cue: thing, upper: thing, size: odd, end: within(4, 254), x: within(1, 255) },
    maze: { seed: within(0, 999999), size: within(task.size, task.size), x: within(1, 99), y: within(1, 99) },
    cartpole: { start } }[task.kind];
  let t;
  for (const [name, value] of new URLSearchParams(text)) {
    const edit = [...OF_UNITS, ...OF_ALL].includes(name)
      && value.match(/^([\d,]*)@(\d{1,4})(-?)(?::(-?[\d.]*):(-?[\d.]*))?$/);
    if (edit) {
      const [, list, from, dash, h, c] = edit, on = dash === "-" || name === "hold";
      const units = OF_ALL.includes(name) ? null : (list.match(/\d+/g) || []).map(Number).filter(u => u < agent.H);
      const set = {};
      if (name === "set" && h) set.h = Math.max(-1, Math.min(1, +h || 0));
      if (name === "set" && c) set.c = Math.max(-999, Math.min(999, +c || 0));
      if (!units || units.length) plan.edits.push({ kind: name, units, from: +from, on, ...set });
    } else if (name === "moves") for (const [, at, letter] of value.matchAll(/(\d{1,4})([lrf])/g)) {
      if (LETTERS.indexOf(letter) < session.actions.length) plan.moves[at] = LETTERS.indexOf(letter);
    } else if (name === "draw") plan.draw = within(1, 999999)(value) ?? null;
    else if (name === "t") t = within(0, 9999)(value);
    else if (Object.hasOwn(readers, name)) options[name] = readers[name](value) ?? options[name];
  }
  if (task.kind === "memory") {
    options.end = Math.min(options.end || options.size - 3, options.size - 3);
    options.x = Math.min(options.x, options.end);
  }
  return { plan, t: t ?? Math.max(0, ...plan.edits.map(e => e.from)) };
}
