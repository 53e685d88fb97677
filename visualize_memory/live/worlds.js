// The worlds: MiniGrid's Memory, mazes, CartPole without velocities. Each is given its options and then stepped:
// observe() -> numbers; step(action) -> reward, and sets over ("", "success", "failure", "time limit"). Needs no other
// file.

const EMPTY = 1, WALL = 2, KEY = 5, BALL = 6, GOAL = 8; // MiniGrid's numbers
const COLOUR = { [WALL]: 5, [KEY]: 1, [BALL]: 1, [GOAL]: 1 };
const STEP_X = [1, 0, -1, 0], STEP_Y = [0, 1, 0, -1]; // directions: right, down, left, up

/** Numbers in [0, 1) that a seed repeats (mulberry32). */
function random(seed) {
  let state = (seed * 2654435761 + 1) >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

class GridWorld {
  /** Cells are kinds, indexed x * height + y. view: side of what the agent sees, 0 for the whole grid. */
  constructor(width, height, view, maxSteps, seesThroughWalls) {
    Object.assign(this, { width, height, view, maxSteps, seesThroughWalls });
    this.cells = new Uint8Array(width * height).fill(EMPTY);
    Object.assign(this, { x: 1, y: 1, direction: 0, count: 0, over: "" });
  }

  at(x, y) {
    return x < 0 || y < 0 || x >= this.width || y >= this.height ? WALL : this.cells[x * this.height + y];
  }

  put(x, y, kind) {
    this.cells[x * this.height + y] = kind;
  }

  /** The grid's place (x, y) of view cell (i, j); the agent looks towards j = 0 from the middle of the last row. */
  place(i, j) {
    const ahead = this.view - 1 - j, right = i - (this.view >> 1), d = this.direction;
    return [this.x + STEP_X[d] * ahead - STEP_Y[d] * right, this.y + STEP_Y[d] * ahead + STEP_X[d] * right];
  }

  /** Which view cells are seen (view x view, i * view + j): light spreads from the agent and stops at walls. */
  visible() {
    const n = this.view, mask = new Uint8Array(n * n).fill(this.seesThroughWalls ? 1 : 0);
    if (this.seesThroughWalls) return mask;
    const clear = (i, j) => mask[i * n + j] && this.at(...this.place(i, j)) !== WALL;
    const light = (i, j) => { if (i >= 0 && i < n && j >= 0) mask[i * n + j] = 1; };
    light(n >> 1, n - 1);
    for (let j = n - 1; j >= 0; j--) for (const way of [1, -1]) {
      const first = way > 0 ? 0 : n - 1;
      for (let i = first; i !== n - 1 - first; i += way) if (clear(i, j)) {
        light(i + way, j);
        light(i + way, j - 1);
        light(i, j - 1);
      }
    }
    return mask;
  }

  /** MiniGrid's observation: kind, colour, state of each cell, then the direction. */
  observe() {
    const obs = [], n = this.view || this.width, mask = this.view ? this.visible() : null;
    for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) {
      if (!mask) {
        const own = i === this.x && j === this.y;
        obs.push(...(own ? [10, 0, this.direction] : [this.at(i, j), COLOUR[this.at(i, j)] || 0, 0]));
        continue;
      }
      const own = i === n >> 1 && j === n - 1, kind = own ? EMPTY : this.at(...this.place(i, j));
      obs.push(...(mask[i * n + j] ? [kind, COLOUR[kind] || 0, 0] : [0, 0, 0]));
    }
    return [...obs, this.direction];
  }

  /** 0 turns left, 1 right, 2 walks -> reward: MiniGrid's, 1 - 0.9 * steps / limit for a success. */
  step(action) {
    this.count++;
    if (action < 2) this.direction = (this.direction + (action ? 1 : 3)) % 4;
    else {
      const x = this.x + STEP_X[this.direction], y = this.y + STEP_Y[this.direction];
      if ([EMPTY, GOAL].includes(this.at(x, y))) [this.x, this.y] = [x, y];
    }
    this.over = this.outcome() || (this.count >= this.maxSteps ? "time limit" : "");
    return this.over === "success" ? 1 - 0.9 * (this.count / this.maxSteps) : 0;
  }
}

class MemoryWorld extends GridWorld {
  /** MiniGrid's MemoryEnv. options: {size (odd), end (the corridor's last column; size - 3), cue, upper ("key", "ball":
   *  the object at the upper end of the fork), x}. task: {view, table, size}: for the corridors of the task itself
   *  states are looked up in MiniGrid's own table; another length is built by the rule that gives the same table. */
  constructor(task, options) {
    const { size } = options, end = options.end || size - 3, middle = size >> 1, { put } = GridWorld.prototype;
    super(size, size, task.view, 5 * size * size, false);
    const wall = (x, y) => put.call(this, x, y, WALL);
    for (let n = 0; n < size; n++) for (const [x, y] of [[n, 0], [n, size - 1], [0, n], [size - 1, n]]) wall(x, y);
    for (let x = 1; x < 5; x++) for (const y of [middle - 2, middle + 2]) wall(x, y);
    for (let x = 4; x < end; x++) for (const y of [middle - 1, middle + 1]) wall(x, y);
    for (let y = 0; y < size; y++) for (const x of [end, end + 2]) if (x > end || y !== middle) wall(x, y);
    const kinds = { key: KEY, ball: BALL }, other = { key: "ball", ball: "key" }, { cue, upper } = options;
    this.put(1, middle - 1, kinds[cue]);
    this.put(end + 1, middle - 2, kinds[upper]);
    this.put(end + 1, middle + 2, kinds[other[upper]]);
    const success = middle + (cue === upper ? -1 : 1);
    Object.assign(this, { end, middle, success, fork: end + 1, x: options.x, y: middle });
    if (task.table && size === task.size) {
      this.table = task.table;
      this.state = this.find();
    }
  }

  /** The table's number of this state; undefined for a corridor that is not the task's. */
  find() {
    const { index, names } = this.table;
    if (!index.size) this.table.variables.forEach((row, n) => { if (!this.table.over[n]) index.set(row.join(), n); });
    const own = { cue: +(this.at(1, this.middle - 1) === BALL), x: this.x, y: this.y, direction: this.direction,
      success_x: this.fork, success_y: this.success };
    return index.get(names.map(name => own[name]).join());
  }

  outcome() {
    if (this.x !== this.fork || Math.abs(this.y - this.middle) !== 1) return "";
    return this.y === this.success ? "success" : "failure";
  }

  observe() {
    if (this.state === undefined) return super.observe();
    const D = this.table.obs.length / this.table.variables.length;
    return Array.from(this.table.obs.subarray(this.state * D, (this.state + 1) * D));
  }

  step(action) {
    const reward = super.step(action);
    if (this.state === undefined) return reward;
    const { next, variables, names, over } = this.table, row = variables[this.state = next[3 * this.state + action]];
    for (const name of ["x", "y", "direction"]) this[name] = row[names.indexOf(name)];
    this.over = ["", "failure", "success"][over[this.state]] || (this.count >= this.maxSteps ? "time limit" : "");
    return this.over === "success" ? 1 - 0.9 * (this.count / this.maxSteps) : 0;
  }

  /** Whether the cue is in view. */
  sees(obs) {
    if (!this.view) return true;
    for (let i = 0; i < this.view; i++) for (let j = 0; j < this.view; j++) {
      const [x, y] = this.place(i, j);
      if (x === 1 && y === this.middle - 1) return [KEY, BALL].includes(obs[3 * (i * this.view + j)]);
    }
    return false;
  }
}

class MazeWorld extends GridWorld {
  /** envs.MazeEnv. options: {size, seed}, or {size, cells, x, y} as given. x, y: where to start; goal: moves the
   *  goal, to the `goal`-th free cell. task.random: the maze's own size is from 6 up to `size`, the rest is wall. */
  constructor(task, options) {
    super(options.size, options.size, task.view, task.max_steps, true);
    if (options.cells) {
      this.cells = Uint8Array.from(options.cells);
      [this.x, this.y] = [options.x, options.y];
      return;
    }
    this.build(task.random ? 6 + options.seed % (options.size - 5) : options.size, random(options.seed));
    if (options.x !== undefined && this.at(options.x, options.y) === EMPTY) [this.x, this.y] = [options.x, options.y];
    if (options.goal !== undefined) {
      const own = this.x * this.height + this.y;
      const free = [...this.cells.keys()].filter(n => this.cells[n] === EMPTY && n !== own);
      this.cells[this.cells.indexOf(GOAL)] = EMPTY;
      this.cells[free[options.goal % free.length]] = GOAL;
    }
  }

  /** Randomised Kruskal: rooms are joined in random order wherever they are not yet connected. */
  build(inner, draw) {
    const rooms = (inner - 1) >> 1, label = [...Array(rooms * rooms).keys()], edges = [];
    const place = room => [1 + 2 * Math.floor(room / rooms), 1 + 2 * (room % rooms)];
    this.cells.fill(WALL);
    label.forEach(room => {
      this.put(...place(room), EMPTY);
      if (room + rooms < label.length) edges.push([draw(), room, room + rooms]);
      if (room % rooms < rooms - 1) edges.push([draw(), room, room + 1]);
    });
    for (const [, a, b] of edges.sort((a, b) => a[0] - b[0])) {
      const [old, other] = [label[a], label[b]], [ax, ay] = place(a), [bx, by] = place(b);
      if (old === other) continue;
      label.forEach((l, n) => { if (l === other) label[n] = old; });
      this.put((ax + bx) / 2, (ay + by) / 2, EMPTY);
    }
    const free = [...this.cells.keys()].filter(n => this.cells[n] === EMPTY);
    const [agent] = free.splice(Math.floor(draw() * free.length), 1), goal = free[Math.floor(draw() * free.length)];
    this.cells[goal] = GOAL;
    [this.x, this.y] = [Math.floor(agent / this.height), agent % this.height];
  }

  outcome() {
    return this.at(this.x, this.y) === GOAL ? "success" : "";
  }

  /** Whether the goal is in view. */
  sees(obs) {
    return obs.some((kind, n) => n % 3 === 0 && kind === GOAL && n < obs.length - 1);
  }
}

class CartPoleWorld {
  /** gymnasium's equations, Euler, in float64. options: {start: [x, x', angle, angle']}. */
  constructor(task, options) {
    Object.assign(this, { state: [...options.start], count: 0, over: "", maxSteps: task.max_steps });
  }

  observe() {
    return [Math.fround(this.state[0]), Math.fround(this.state[2])];
  }

  step(action) {
    const [x, speed, angle, turn] = this.state, force = action ? 10 : -10, cos = Math.cos(angle), sin = Math.sin(angle);
    const push = (force + 0.05 * (turn * turn) * sin) / 1.1; // pole mass times half its length; mass in all
    const turning = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * (cos * cos) / 1.1));
    const speeding = push - 0.05 * turning * cos / 1.1;
    this.state = [x + 0.02 * speed, speed + 0.02 * speeding, angle + 0.02 * turn, turn + 0.02 * turning];
    this.count++;
    const fell = Math.abs(this.state[0]) > 2.4 || Math.abs(this.state[2]) > 12 * 2 * Math.PI / 360;
    this.over = fell ? "failure" : this.count >= this.maxSteps ? "success" : "";
    return 1;
  }

  sees() {
    return false;
  }
}

const WORLDS = { memory: MemoryWorld, maze: MazeWorld, cartpole: CartPoleWorld };
