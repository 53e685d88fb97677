// The agent: encoder, LSTM, two heads, in float32, and the gradient of a logit back through all of it.
// Names and shapes are those of ppo_lstm_minigrid.py; torch.nn.LSTM's gate order (i, f, g, o). Needs no other file.

const sigmoid = x => 1 / (1 + Math.exp(-x));

/** Base64 of little-endian numbers -> a typed array of `Kind`. */
function decode(text, Kind) {
  return new Kind(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer);
}

class Linear {
  /** weight (rows x columns) row by row, bias (rows) or nothing. */
  constructor(weight, bias, columns) {
    Object.assign(this, { weight, bias, columns, rows: weight.length / columns });
  }

  forward(x, out = new Float32Array(this.rows)) {
    const { weight, bias, columns } = this;
    for (let r = 0; r < out.length; r++) {
      let sum = bias ? bias[r] : 0;
      for (let c = 0, k = r * columns; c < columns; c++, k++) sum += weight[k] * x[c];
      out[r] = sum;
    }
    return out;
  }

  /** Gradient of the output (rows) -> gradient of the input (columns). */
  backward(dy) {
    const dx = new Float64Array(this.columns);
    for (let r = 0; r < this.rows; r++) {
      if (dy[r]) for (let c = 0, k = r * this.columns; c < dx.length; c++, k++) dx[c] += this.weight[k] * dy[r];
    }
    return dx;
  }
}

class Agent {
  /** net: {H, cells (0 if the observation is numbers), memoryless, weights: {name: {columns, data}}}, see live.py. */
  constructor(net) {
    const layer = (weight, bias) => {
      const { columns, data } = net.weights[weight];
      return new Linear(decode(data, Float32Array), bias && decode(net.weights[bias].data, Float32Array), columns);
    };
    const head = name => ["0", "2", ""].filter(n => net.weights[[name, n, "weight"].filter(Boolean).join(".")])
      .map(n => layer(...["weight", "bias"].map(part => [name, n, part].filter(Boolean).join("."))));
    this.H = net.H;
    this.memoryless = net.memoryless;
    this.offsets = [];
    for (let n = 0, at = 0; n < net.cells; n++) for (const kinds of [11, 6, 4]) {
      this.offsets.push(at);
      at += kinds;
    }
    if (net.cells) this.offsets.push(21 * net.cells); // the direction
    this.scale = decode(net.scale, Float32Array); // of each input: a rare object counts six times
    this.encoder = net.weights["encoder.linear.weight"] ? layer("encoder.linear.weight", "encoder.linear.bias") : null;
    this.input = layer("lstm.weight_ih_l0", "lstm.bias");
    this.recurrent = layer("lstm.weight_hh_l0");
    this.actor = head("actor");
    this.critic = head("critic");
  }

  zero() {
    return new Float32Array(this.H);
  }

  /** Observation -> the network's input: one-hot for cells and direction, scaled either way. */
  read(obs) {
    const x = new Float32Array(this.scale.length);
    obs.forEach((value, n) => {
      const at = this.offsets.length ? this.offsets[n] + value : n;
      x[at] = this.scale[at] * (this.offsets.length ? 1 : Math.fround(value));
    });
    return x;
  }

  encode(obs) {
    const x = this.read(obs);
    return this.encoder ? this.encoder.forward(x).map(v => Math.max(0, v)) : x;
  }

  /** One step of the LSTM: obs, the state before it (h, c) -> the state that has read it, and what `backward` needs.
   *  keep: the forget gate is 1, nothing is forgotten. */
  step(obs, h, c, keep = false) {
    const H = this.H;
    if (this.memoryless) h = c = this.zero();
    const features = this.encode(obs);
    const gates = this.input.forward(features);
    const recurrent = this.recurrent.forward(h);
    const out = { h: this.zero(), c: this.zero(), tanh: this.zero(), lastC: c, features, gates, keep };
    for (let u = 0; u < H; u++) {
      const i = gates[u] = sigmoid(gates[u] + recurrent[u]);
      const f = gates[u + H] = keep ? 1 : sigmoid(gates[u + H] + recurrent[u + H]);
      const g = gates[u + 2 * H] = Math.tanh(gates[u + 2 * H] + recurrent[u + 2 * H]);
      const o = gates[u + 3 * H] = sigmoid(gates[u + 3 * H] + recurrent[u + 3 * H]);
      out.c[u] = f * c[u] + i * g;
      out.tanh[u] = Math.tanh(out.c[u]);
      out.h[u] = o * out.tanh[u];
    }
    return out;
  }

  head(layers, h) {
    return layers.reduce((x, layer, n) => layer.forward(n ? x.map(v => Math.max(0, v)) : x), h);
  }

  logits(h) {
    return this.head(this.actor, h);
  }

  value(h) {
    return this.head(this.critic, h)[0];
  }

  /** Gradient of logit `action`, less the mean of all logits (a number added to all changes nothing), at h: (H). */
  logitGradient(h, action) {
    const A = this.actor.at(-1).rows;
    let dy = Float64Array.from({ length: A }, (_, a) => (a === action) - 1 / A);
    for (let n = this.actor.length - 1; n >= 0; n--) {
      dy = this.actor[n].backward(dy);
      if (n) this.head(this.actor.slice(0, n), h).forEach((v, k) => { if (v <= 0) dy[k] = 0; });
    }
    return dy;
  }

  /** The gradient of that logit with respect to the network's input at each of `steps`, back through the LSTM.
   *  steps: what `step` gave, from the episode's first to the present, each with `pass` {h, c}, the factor (H) by which
   *  a change of the state went on (0 where a unit was overwritten, -1 where it was flipped), or without. */
  backward(steps, h, action) {
    const H = this.H, gradients = [];
    let dh = this.logitGradient(h, action), dc = new Float64Array(H);
    for (let t = steps.length - 1; t >= 0; t--) {
      const { gates, tanh, lastC, features, pass, keep } = steps[t];
      const d = new Float64Array(4 * H), before = new Float64Array(H);
      for (let u = 0; u < H; u++) {
        const [i, f, g, o] = [gates[u], gates[u + H], gates[u + 2 * H], gates[u + 3 * H]];
        const toH = dh[u] * (pass ? pass.h[u] : 1);
        const toC = dc[u] * (pass ? pass.c[u] : 1) + toH * o * (1 - tanh[u] ** 2);
        d[u] = toC * g * i * (1 - i);
        d[u + H] = keep ? 0 : toC * lastC[u] * f * (1 - f);
        d[u + 2 * H] = toC * i * (1 - g * g);
        d[u + 3 * H] = toH * tanh[u] * o * (1 - o);
        before[u] = toC * f;
      }
      const dFeatures = this.input.backward(d);
      if (this.encoder) features.forEach((v, k) => { if (v <= 0) dFeatures[k] = 0; });
      gradients.unshift(this.encoder ? this.encoder.backward(dFeatures) : dFeatures);
      if (this.memoryless) break;
      dh = this.recurrent.backward(d);
      dc = before;
    }
    while (gradients.length < steps.length) gradients.unshift(new Float64Array(this.scale.length));
    return gradients;
  }
}

/** Logits -> probabilities. */
function softmax(logits) {
  const most = Math.max(...logits), e = Array.from(logits, v => Math.exp(v - most)), sum = e.reduce((a, b) => a + b);
  return e.map(v => v / sum);
}
