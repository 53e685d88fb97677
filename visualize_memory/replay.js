"use strict";
const data = JSON.parse(document.getElementById("data").textContent), $ = id => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)"), H = data.hidden_size, heats = document.querySelectorAll(".heat");
const LIGHT = [[26, 74, 143], [91, 146, 205], [245, 244, 240], [236, 146, 83], [163, 61, 11]];
const DARK = [[120, 190, 255], [50, 104, 165], [36, 40, 47], [178, 98, 35], [255, 178, 102]];
let ep, states, step = 0, number = 0, unit = 0, playing = null, charts = [];

// ---- colours and numbers
const rgb = v => { // v from -1 to 1
  const stops = dark.matches ? DARK : LIGHT, x = Math.min(3.9999, Math.max(0, (v + 1) * 2)), i = Math.floor(x);
  return stops[i].map((a, c) => Math.round(a + (stops[i + 1][c] - a) * (x - i)));
};
const css = v => `rgb(${rgb(v)})`, show = (v, digits = 2) => v.toFixed(digits).replace("-", "−");
const full = data.bits === 16 ? 32767 : 127;
const decode = text => { const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0)); return data.bits === 16 ? new Int16Array(bytes.buffer) : new Int8Array(bytes.buffer); };
const at = (t, part, u) => states[(t * 2 + part) * H + u] / full; // in units of the scale
const last = () => ep.actions.length; // the step after the last action: the episode is over
const images = new Map();
function image(n) {
  if (!images.has(n)) { const img = new Image(); img.onload = () => { if (ep.frames[step] === n) drawFrame(); }; img.src = "data:image/webp;base64," + data.frames[n]; images.set(n, img); }
  return images.get(n);
}
const ICON = { ball: '<svg class="icon" viewBox="0 0 16 16"><circle cx="8" cy="8" r="5.5" fill="#2fa84f"/></svg>',
  key: '<svg class="icon" viewBox="0 0 16 16"><g fill="none" stroke="#2fa84f" stroke-width="2"><circle cx="8" cy="4.5" r="2.8"/><path d="M8 7v8M8 14.2h3.4M8 11h2.6"/></g></svg>' };
const MARK = { success: ["✓", "good"], failure: ["✗", "bad"], "time limit": ["⏱", "bad"] };

// ---- drawing
function drawFrame() {
  const img = image(ep.frames[step]), canvas = $("frame");
  if (!img.complete || !img.naturalWidth) return;
  if (canvas.width !== img.naturalWidth || canvas.height !== img.naturalHeight) { canvas.width = img.naturalWidth; canvas.height = img.naturalHeight; canvas.style.setProperty("--ratio", canvas.width / canvas.height); }
  canvas.getContext("2d").drawImage(img, 0, 0);
}
function drawHeat(part) {
  const canvas = heats[part], ratio = devicePixelRatio || 1, width = canvas.clientWidth, side = width / data.columns, t = Math.min(step, last() - 1);
  canvas.width = Math.round(width * ratio); canvas.height = Math.round(side * data.rows * ratio);
  const c = canvas.getContext("2d"), gap = side > 8 ? 1.5 : 0, tops = new Set(data.analysis ? data.analysis.top : []);
  c.scale(ratio, ratio);
  for (let u = 0; u < H; u++) {
    const x = (u % data.columns) * side, y = Math.floor(u / data.columns) * side;
    c.fillStyle = css(at(t, part, u)); c.fillRect(x, y, side - gap, side - gap);
    if (side > 8) { c.strokeStyle = dark.matches ? "#ffffff22" : "#00000018"; c.lineWidth = 1; c.strokeRect(x + .5, y + .5, side - gap - 1, side - gap - 1); }
    if (tops.has(u)) { c.fillStyle = "#e5484d"; c.beginPath(); c.arc(x + side * .8, y + side * .2, Math.min(3.2, side * .09), 0, 7); c.fill(); c.strokeStyle = "#fff"; c.lineWidth = .8; c.stroke(); }
    if (u === unit) { c.strokeStyle = dark.matches ? "#fff" : "#111"; c.lineWidth = 2.2; c.strokeRect(x + 1.1, y + 1.1, side - gap - 2.2, side - gap - 2.2); }
  }
}
function backdrop() { // when the cue was in view, and the fork
  const n = last() + 1;
  let svg = "";
  (ep.seen || []).forEach((s, t) => { if (s) svg += `<rect class="band" x="${t / n * 1000}" width="${1000 / n + .5}" y="0" height="100"/>`; });
  if (ep.fork !== null) svg += `<line class="mark" x1="${(ep.fork + .5) / n * 1000}" x2="${(ep.fork + .5) / n * 1000}" y1="0" y2="100"/>`;
  return svg;
}
function chart(title, height, now, body, low, high, keys = "") {
  const box = document.createElement("div"); box.className = "chart";
  box.innerHTML = `<h2>${title} ${keys}<span class="now"></span></h2><div class="plot" style="height:${height}px">${body}` +
    `<div class="range" style="top:1px">${high}</div><div class="range" style="bottom:1px">${low}</div><div class="cursor"></div></div>`;
  const plot = box.querySelector(".plot");
  const seek = e => go(Math.floor((e.clientX - plot.getBoundingClientRect().left) / plot.clientWidth * (last() + 1)), true);
  plot.addEventListener("pointerdown", e => { seek(e); plot.onpointermove = e.pointerType === "mouse" ? m => m.buttons && seek(m) : null; });
  $("charts").append(box);
  charts.push({ cursor: box.querySelector(".cursor"), now: box.querySelector(".now"), text: now, box });
  return box;
}
const svg = inner => `<svg viewBox="0 0 1000 100" preserveAspectRatio="none">${backdrop()}${inner}</svg>`;
function line(values, low, high, colour) {
  const n = last() + 1, y = v => 96 - (v - low) / (high - low || 1) * 92;
  return `<path style="stroke:${colour}" d="M${values.map((v, t) => `${((t + .5) / n * 1000).toFixed(1)} ${y(v).toFixed(2)}`).join("L")}"/>`;
}
function stack(probs) { // action probabilities, one upon the other
  const n = last() + 1, A = data.actions.length, x = t => (t / n * 1000).toFixed(1);
  let out = "";
  for (let a = 0; a < A; a++) {
    const sum = (p, k) => p.slice(0, k).reduce((s, v) => s + v, 0);
    let d = "";
    probs.forEach((p, t) => { d += `M${x(t)} ${100 * (1 - sum(p, a))}V${100 * (1 - sum(p, a + 1))}H${(+x(t + 1) + .6).toFixed(1)}V${100 * (1 - sum(p, a))}Z`; });
    out += `<path style="fill:var(--c${a % 7});stroke:none" d="${d}"/>`;
  }
  return out;
}
const key = (name, a) => `<span class="key"><i style="background:var(--c${a % 7})"></i>${name}</span>`;
function buildCharts() {
  $("charts").textContent = ""; charts = [];
  const low = Math.min(...ep.values), high = Math.max(...ep.values), most = Math.log(data.actions.length), T = last();
  chart("Value", 84, t => show(ep.values[t]), svg(line(ep.values, low, high, "var(--accent)")), show(low), show(high));
  chart("Action probabilities", 84, t => `${data.actions[ep.actions[t]]} ${Math.round(100 * ep.probs[t][ep.actions[t]])} %`, svg(stack(ep.probs)), "", "", data.actions.map(key).join(""));
  chart("Entropy", 58, t => `${show(ep.entropy[t])} nats`, svg(line(ep.entropy, 0, most, "var(--c3)")), "0", show(most));
  const box = chart("All hidden units", Math.min(150, Math.max(96, 4 * H)), () => "", "<canvas></canvas>", "", ""), canvas = box.querySelector("canvas");
  canvas.width = T + 1; canvas.height = H;
  const c = canvas.getContext("2d"), pixels = c.createImageData(T, H);
  for (let u = 0; u < H; u++) for (let t = 0; t < T; t++) pixels.data.set([...rgb(at(t, 0, u)), 255], 4 * (u * T + t));
  c.putImageData(pixels, 0, 0);
  buildUnit();
}
function buildUnit() {
  if (charts.length > 4) charts.pop().box.remove();
  const of = part => Array.from({ length: last() }, (_, t) => at(t, part, unit));
  chart(`Unit ${unit}`, 70, t => `${show(at(t, 0, unit) * ep.scale[0])}, ${show(at(t, 1, unit) * ep.scale[1])}`,
    svg(line(of(0), -1, 1, "var(--c0)") + line(of(1), -1, 1, "var(--c1)")), "− scale", "+ scale", key("hidden", 0) + key("cell", 1));
}
function draw() {
  const T = last(), over = step === T, t = Math.min(step, T - 1), total = ep.rewards.reduce((a, b) => a + b, 0);
  drawFrame(); drawHeat(0); drawHeat(1);
  for (const chart of charts) { chart.cursor.style.left = `${(step + .5) / (T + 1) * 100}%`; chart.now.textContent = over ? "" : chart.text(t); }
  document.body.classList.toggle("over", over);
  const reset = step === 0 || data.memoryless ? " · state reset" : "";
  $("action").textContent = over ? "none, the episode is over" : `${data.actions[ep.actions[t]]}, ${Math.round(100 * ep.probs[t][ep.actions[t]])} %${reset}`;
  if (ep.seen) {
    let ago = t; while (ago >= 0 && !ep.seen[ago]) ago--;
    const gone = t - ago, when = ago < 0 ? "not seen yet" : gone === 0 ? "in view" : `out of view for ${gone} step${gone > 1 ? "s" : ""}`;
    $("lag").innerHTML = `<span class="dot ${gone === 0 ? "on" : ""}"></span>${ep.cue ? ep.cue + ", " : ""}${when}`;
  }
  const [mark, tone] = MARK[ep.outcome];
  $("outcome").innerHTML = `<span class="${tone}">${mark} ${ep.outcome}</span> in ${T} steps, return ${show(total)}`;
  $("slider").value = step; $("slider").setAttribute("aria-valuetext", `step ${step} of ${T}`);
  $("time").textContent = over ? `end (${T})` : `step ${step} of ${T}`;
  $("frame").setAttribute("aria-label", `the environment at step ${step}`);
  $("play").innerHTML = playing ? '<svg viewBox="0 0 16 16"><path d="M3 2h4v12H3zM9 2h4v12H9z"/></svg>' : '<svg viewBox="0 0 16 16"><path d="M4 2v12l10-6z"/></svg>';
  $("play").setAttribute("aria-label", playing ? "pause" : "play");
  const u = x => show(at(t, x, unit) * ep.scale[x]);
  $("unit").innerHTML = `<b>unit ${unit}</b>: hidden ${u(0)}, cell ${u(1)}` + (data.analysis ? '<br><span class="soft"><span style="color:#e5484d">●</span> tells most, see below</span>' : "");
  document.body.dataset.step = step; document.body.dataset.episode = number + 1;
}

// ---- moving about
function go(to, stop) {
  if (stop) pause();
  step = Math.min(last(), Math.max(0, to));
  draw();
  if (!playing) remember();
}
let pending;
function remember() { clearTimeout(pending); pending = setTimeout(() => { if (document.body.dataset.mode !== "live") try { history.replaceState(null, "", `#episode=${number + 1}&step=${step}`); } catch { /* some viewers forbid it */ } }, 300); }
function pause() { if (playing) { clearInterval(playing); playing = null; draw(); remember(); } }
function play() {
  if (playing) return pause();
  if (step === last()) step = 0;
  playing = setInterval(() => { if (step >= last()) pause(); else go(step + 1); }, 1000 / (data.fps * $("speed").value));
  draw();
}
function choose(n, to = 0) {
  pause();
  number = Math.min(data.episodes.length - 1, Math.max(0, n)); ep = data.episodes[number]; states = decode(ep.states);
  if (!choose.unit) { // at first the unit that tells most, or else the one that moves most
    const range = u => { let a = 1, b = -1; for (let t = 0; t < last(); t++) { const v = at(t, 0, u); a = Math.min(a, v); b = Math.max(b, v); } return b - a; };
    unit = data.analysis ? data.analysis.top[0] : [...Array(H).keys()].reduce((best, u) => range(u) > range(best) ? u : best, 0);
    choose.unit = true;
  }
  ep.frames.forEach(image);
  $("tabs").querySelectorAll("button").forEach((b, i) => b.setAttribute("aria-pressed", i === number));
  $("slider").max = last();
  [0, 1].forEach(x => { $(`scale${x}`).textContent = `±${show(ep.scale[x])}`; });
  const spot = t => `${t / last() * 100}%`;
  let marks = data.memoryless ? "<b style='left:0'>state reset at every step</b>" : "<b style='left:0'>state reset</b>";
  (ep.seen || []).forEach((s, t) => { if (s) marks += `<i style="left:${(t - .5) / last() * 100}%;width:${100 / last()}%"></i>`; });
  if (ep.fork !== null) marks += `<b style="left:${spot(ep.fork)}">fork</b>`;
  $("marks").innerHTML = marks;
  buildCharts(); go(to);
}
function fromAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  choose((parseInt(given.get("episode")) || 1) - 1, parseInt(given.get("step")) || 0);
}
heats.forEach(canvas => canvas.addEventListener("click", e => {
  const side = canvas.clientWidth / data.columns, u = Math.floor(e.offsetY / side) * data.columns + Math.floor(e.offsetX / side);
  if (u >= 0 && u < H) { unit = u; buildUnit(); draw(); }
}));
heats[0].addEventListener("keydown", e => {
  const way = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -data.columns, ArrowDown: data.columns }[e.key];
  if (!way || e.ctrlKey || e.metaKey || e.altKey) return;
  e.preventDefault(); e.stopPropagation();
  unit = Math.max(0, Math.min(H - 1, unit + way)); buildUnit(); draw();
});
heats[0].addEventListener("mousedown", e => { e.preventDefault(); document.activeElement.blur(); }); // arrow keys go on stepping
$("slider").addEventListener("input", e => go(+e.target.value, true));
$("first").onclick = () => go(0, true); $("back").onclick = () => go(step - 1, true); $("next").onclick = () => go(step + 1, true); $("play").onclick = play;
$("speed").onchange = () => { if (playing) { pause(); play(); } };
const KEYS = { " ": play, ArrowLeft: () => go(step - 1, true), ArrowRight: () => go(step + 1, true), Home: () => go(0, true), End: () => go(last(), true),
  ArrowUp: () => choose(number - 1), ArrowDown: () => choose(number + 1) };
addEventListener("keydown", e => {
  if (document.body.dataset.mode === "live" || e.ctrlKey || e.metaKey || e.altKey || e.target.tagName === "SELECT" || e.target.tagName === "SUMMARY") return;
  if (e.key === " " && e.target.tagName === "BUTTON" && e.target.matches(":focus-visible")) return; // the button's own
  if (KEYS[e.key]) { e.preventDefault(); KEYS[e.key](); } else if (/^[1-9]$/.test(e.key) && data.episodes[e.key - 1]) choose(e.key - 1);
});
addEventListener("resize", () => draw()); addEventListener("hashchange", fromAddress); dark.addEventListener("change", () => { ramp(); buildCharts(); draw(); });

// ---- what does not change
function ramp() { $("ramp").style.background = `linear-gradient(90deg, ${[-1, -.5, 0, .5, 1].map(css)})`; }
const steps = data.global_step ? `, trained for ${data.global_step >= 1e6 ? (data.global_step / 1e6).toFixed(1) + " M" : Math.round(data.global_step / 1000) + " k"} steps` : "";
const where = data.env_id === data.trained_on ? steps : `${steps} on ${data.trained_on}`;
$("subtitle").textContent = `${data.env_id} · LSTM of ${H} units${where}` + (data.memoryless ? " · memoryless control" : "");
document.title = `What the agent remembers: ${data.env_id}`;
$("about").textContent = `The agent of ${data.checkpoint} plays with ${data.sampled ? "actions drawn from its policy" : "its most probable actions"}, without random moves.` +
  (data.episodes[0].seen ? ` Yellow marks the steps at which the ${data.what} is in view${data.episodes[0].cue ? "; the dashed line is the first step at the fork" : ""}.` : "") +
  (data.memoryless ? " It is a memoryless control: its state is zeroed before every step." : " Its state is zeroed before the first step of each episode, and never within one.");
$("sight").hidden = !data.episodes[0].seen; $("sight").style.display = data.episodes[0].seen ? "" : "none"; $("sight").firstElementChild.textContent = data.what;
data.episodes.forEach((e, n) => {
  const b = document.createElement("button"), [mark, tone] = MARK[e.outcome];
  b.innerHTML = `${n + 1}${ICON[e.cue] || ""}<span class="${tone}">${mark}</span>`;
  b.setAttribute("aria-label", `episode ${n + 1}: ${e.cue ? e.cue + ", " : ""}${e.outcome}`); b.onclick = () => choose(n);
  $("tabs").append(b);
});
if (data.analysis) {
  $("analysis").hidden = false; $("analysis").querySelector("img").src = "data:image/png;base64," + data.analysis.figure;
  data.analysis.text.forEach(text => { const li = document.createElement("li"); li.textContent = text; $("analysis").querySelector("ul").append(li); });
}
document.documentElement.style.setProperty("--shape", data.columns / data.rows);
ramp(); fromAddress();
