// A life: one episode of the agent in its world, step by step, with changes to its memory. The agent lives it twice,
// with the changes and, as its twin, without them. A plan is all that a life depends on; it fits into the address.
// Needs agent.js and worlds.js.

const ACTIONS = ["left", "right", "forward"]; // CartPole has the first two
const OF_UNITS = ["zero", "flip", "hold", "set"], OF_ALL = ["swap", "wipe", "keep"]; // what can be done to a memory
const HORIZON = 300; // steps that are lived ahead of the one that is shown

/** plan: {options (of the world), draw (null: most probable actions; or a seed), moves {step: action}, edits}.
 *  edit: {kind, units (null: all), from (the step), on (from there on, else at it only); for "set" h, c or both}. */
class Life {
  /** forced(t): the action of step t whatever the agent says, without an end. */
  constructor(agent, task, plan, forced = null) {
    Object.assign(this, { agent, task, plan, forced, steps: [], end: null, held: new Map() });
    this.world = new WORLDS[task.kind](task, plan.options);
  }

  place() {
    const { x, y, direction, state, count } = this.world;
    return { x, y, direction, state, count };
  }

  /** The state of the world at step t, the last of which shows how the episode ended. */
  at(t) {
    return t < this.steps.length ? this.steps[t].place : this.end ? this.end.place : this.place();
  }

  extend(length, deadline = Infinity) {
    while (this.steps.length < length && !this.end && performance.now() < deadline) this.next();
    return this;
  }

  /** Forget the steps from t on: their plan has changed. */
  rewind(t) {
    if (t >= this.steps.length) return;
    Object.assign(this.world, this.steps[t].place, { over: "" });
    this.steps.length = t;
    this.end = this.donor = null;
  }

  next() {
    const { agent, world, plan, steps } = this, t = steps.length, last = steps[t - 1], place = this.place();
    const now = plan.edits.filter(e => e.from === t || (e.on && e.from < t));
    const obs = world.observe();
    const zero = agent.zero();
    const step = agent.step(obs, last ? last.h : zero, last ? last.c : zero, now.some(e => e.kind === "keep"));
    for (const edit of now) this.change(step, edit, t);
    const logits = agent.logits(step.h), probs = softmax(logits);
    let action = logits.indexOf(Math.max(...logits));
    if (plan.draw !== null) {
      let left = random(plan.draw * 10007 + t)();
      action = probs.findIndex(p => (left -= p) < 0);
      if (action < 0) action = probs.length - 1;
    }
    const chosen = this.forced ? this.forced(t) : plan.moves[t];
    const steered = chosen !== undefined && !this.forced;
    const sees = world.sees(obs);
    const record = { ...step, t, obs, place, logits, probs, steered, sees, action: chosen ?? action };
    record.value = agent.value(step.h);
    record.reward = world.step(record.action);
    steps.push(record);
    if (world.over && !this.forced) this.end = { outcome: world.over, place: this.place() };
  }

  change(step, edit, t) {
    step.pass ||= { h: new Float32Array(this.agent.H).fill(1), c: new Float32Array(this.agent.H).fill(1) };
    const name = JSON.stringify(edit);
    if (edit.kind === "hold" && edit.from === t) this.held.set(name, { h: step.h.slice(), c: step.c.slice() });
    const held = this.held.get(name), other = edit.kind === "swap" ? this.other(t) : null;
    for (const u of edit.units || step.h.keys()) for (const part of ["h", "c"]) {
      const value = step[part][u];
      const result = { zero: 0, wipe: 0, flip: -value, set: edit[part] ?? value, swap: other?.[part][u],
        hold: held?.[part][u], keep: value }[edit.kind];
      step[part][u] = result;
      if (edit.kind === "flip") step.pass[part][u] *= -1;
      else if (result !== value || ["zero", "wipe"].includes(edit.kind)) step.pass[part][u] = 0;
    }
  }

  /** The state at step t of an agent that did the same with the other cue, another goal, the mirrored start. */
  other(t) {
    const { options } = this.plan, flipped = { key: "ball", ball: "key" };
    this.donor ||= new Life(this.agent, this.task, { draw: null, moves: {}, edits: [], options: { ...options,
      cue: flipped[options.cue], goal: 7 * (options.seed || 0) + 3, start: options.start?.map(v => -v) } },
      s => this.steps[s]?.action ?? 0);
    const step = this.donor.extend(t + 1).steps[t];
    this.donor.rewind(t); // what it does at t is not known yet
    return step;
  }

  /** The first step at Memory's fork, or null. */
  fork() {
    const { fork, middle } = this.world;
    if (!fork) return null;
    return this.steps.find(s => s.place.x === fork && s.place.y === middle)?.t ?? null;
  }

  /** How much each step up to t counts for the action at t: the length of the logit's gradient with respect to what the
   *  network reads there. (t + 1), at most 1; the longest pasts of large networks are cut, so that it takes no time. */
  importance(t) {
    const { agent, steps } = this, now = steps[t];
    if (this.counted?.step === now) return this.counted.sizes;
    const work = agent.input.weight.length + agent.recurrent.weight.length; // of a step
    const first = Math.max(0, t + 1 - Math.floor(1.5e7 / work));
    const gradients = agent.backward(steps.slice(first, t + 1), now.h, now.action);
    const lengths = gradients.map(d => Math.sqrt(d.reduce((sum, v) => sum + v * v, 0)));
    const most = Math.max(...lengths, 1e-12);
    const sizes = [...Array(first).fill(0), ...lengths.map(length => length / most)];
    this.counted = { step: now, sizes };
    return sizes;
  }
}

/** The first step at which two plans differ; Infinity if nowhere. */
function firstDifference(a, b) {
  if (JSON.stringify([a.options, a.draw]) !== JSON.stringify([b.options, b.draw])) return 0;
  const same = (x, y) => JSON.stringify(x) === JSON.stringify(y), moved = { ...a.moves, ...b.moves };
  let k = 0; // the edits are made in this order, and twice the same is not once
  while (k < a.edits.length && same(a.edits[k], b.edits[k])) k++;
  return Math.min(...[...a.edits.slice(k), ...b.edits.slice(k)].map(e => e.from),
    ...Object.keys(moved).filter(t => a.moves[t] !== b.moves[t]).map(Number));
}

class Session {
  /** data: what live.py wrote. */
  constructor(data) {
    this.task = { ...data.world };
    if (data.world.table) {
      const { obs, next, over, names, variables } = data.world.table, n = names.length;
      const flat = decode(variables, Int16Array);
      this.task.table = { obs: decode(obs, Uint8Array), next: decode(next, Uint16Array), over, names, index: new Map(),
        variables: over.map((_, k) => Array.from(flat.subarray(k * n, (k + 1) * n))) };
    }
    this.agent = new Agent(data.net);
    this.actions = ACTIONS.slice(0, this.agent.actor.at(-1).rows);
    this.begin(this.defaults());
  }

  defaults() {
    const { kind, size } = this.task;
    const options = { memory: { size, cue: "ball", upper: "ball", x: 2 }, maze: { size, seed: 1 },
      cartpole: { start: [0, 0, 0.03, 0] } }[kind];
    return { options, draw: null, moves: {}, edits: [] };
  }

  begin(plan, cursor = 0) {
    this.plan = plan;
    this.past = [];
    this.makeLives();
    this.go(cursor);
  }

  makeLives() {
    this.life = new Life(this.agent, this.task, this.plan);
    this.twin = new Life(this.agent, this.task, { ...this.plan, edits: [] });
  }

  /** Show step t: both lives are lived to it now, and ahead of it while there is time. True if that is done. */
  go(t, budget = 5) {
    const deadline = performance.now() + budget;
    for (const life of [this.life, this.twin]) life.extend(Math.max(0, t) + 1);
    this.cursor = Math.min(Math.max(0, t), this.last());
    for (const life of [this.life, this.twin]) life.extend(this.cursor + HORIZON, deadline);
    return [this.life, this.twin].every(life => life.end || life.steps.length >= this.cursor + HORIZON);
  }

  /** The agent's last step, after which the episode is over. */
  last() {
    return this.life.end ? this.life.steps.length : this.life.steps.length - 1;
  }

  /** The step at the cursor; at the end the one before. */
  now() {
    return this.life.steps[Math.min(this.cursor, this.life.steps.length - 1)];
  }

  changed() {
    return this.plan.edits.length > 0;
  }

  /** Change the plan; undo takes it back. Both lives are lived again from the first step that it touches. */
  change(alter, keep = true) {
    const before = structuredClone(this.plan);
    if (keep) this.past.push({ plan: before, cursor: this.cursor });
    alter(this.plan);
    this.again(before);
  }

  again(before) {
    const unchanged = plan => ({ ...plan, edits: [] });
    if (firstDifference(unchanged(before), unchanged(this.plan)) === 0) this.makeLives();
    const live = (life, was, plan) => {
      life.plan = plan;
      life.rewind(firstDifference(was, plan));
    };
    live(this.life, before, this.plan);
    live(this.twin, unchanged(before), unchanged(this.plan));
    this.go(this.cursor);
  }

  /** Change the memory at the cursor. units: null for all. */
  edit(kind, units, on, values = {}) {
    const from = this.now().t;
    const same = e => kind === "set" && e.kind === kind && e.from === from && String(e.units) === String(units);
    const sliding = this.plan.edits.find(same);
    const edit = { ...sliding, kind, units, from, on: on || kind === "hold", ...values };
    this.change(plan => { plan.edits = [...plan.edits.filter(e => e !== sliding), edit]; }, !sliding); // one change
  }

  /** The reader does `action` at the cursor; what was steered later is forgotten. */
  steer(action) {
    const t = this.cursor;
    if (t >= this.life.steps.length) return;
    this.change(plan => {
      plan.moves = Object.fromEntries(Object.entries(plan.moves).filter(([s]) => s < t));
      plan.moves[t] = action;
    });
    this.go(t + 1);
  }

  undo() {
    const after = this.plan, before = this.past.pop();
    if (!before) return;
    Object.assign(this, before);
    this.again(after);
  }

  /** A start and a step at which zeroing the units that tell most makes the agent fail: {plan, t, units, on}, or null.
   *  On Memory once, in the state that enters the first step at the fork; elsewhere from the step on. */
  demonstration(ranking) {
    const { kind, size } = this.task, base = this.defaults(), H = ranking.length, starts = [];
    if (kind === "memory") {
      for (const cue of ["ball", "key"]) for (const upper of ["key", "ball"]) for (const x of [4, 3, 5, 2]) {
        starts.push({ ...base.options, cue, upper, x: Math.min(x, size - 3) });
      }
    } else if (kind === "maze") for (const seed of [1, 2, 3, 4]) starts.push({ size, seed });
    else starts.push(base.options);
    for (const k of [H / 2, H / 4, 3 * H / 4, H].map(Math.ceil)) for (const options of starts) {
      const plan = { ...base, options }, life = new Life(this.agent, this.task, plan).extend(500);
      const t = { memory: life.fork() - 1, maze: 3, cartpole: 25 }[kind], on = kind !== "memory";
      const units = ranking.slice(0, k);
      if (life.end?.outcome !== "success" || t < 0) continue;
      const edits = [{ kind: "zero", units, from: t, on }];
      const other = new Life(this.agent, this.task, { ...plan, edits }).extend(500);
      const fails = other.end && other.end.outcome !== "success";
      if (fails && (kind !== "memory" || other.steps.length < life.steps.length + 4)) return { plan, t, units, on };
    }
    return null;
  }
}
