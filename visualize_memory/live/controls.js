// The page: its state, buttons, keys, playing, the guide and the address. Needs all other files.

const ICONS = { play: "M4 2v12l10-6z", pause: "M3 2h4v12H3zM9 2h4v12H9z", left: "M7 1v3h3a4 4 0 0 1 0 9H4v-2h6a2 2 0 0 0 0-5H7v3L2 5z",
  right: "M9 1v3H6a4 4 0 0 0 0 9h6v-2H6a2 2 0 0 1 0-5h3v3l5-4z", forward: "M8 1 2 8h4v7h4V8h4z", undo: "M7 2v3h2.5a4.5 4.5 0 0 1 0 9H4v-2h5.5a2.5 2.5 0 0 0 0-5H7v3L2 6z",
  link: "M6.5 9.5a3 3 0 0 1 0-4l2-2a3 3 0 0 1 4 4l-1 1-1-1 1-1a1.5 1.5 0 0 0-2-2l-2 2a1.5 1.5 0 0 0 0 2zM9.5 6.5a3 3 0 0 1 0 4l-2 2a3 3 0 0 1-4-4l1-1 1 1-1 1a1.5 1.5 0 0 0 2 2l2-2a1.5 1.5 0 0 0 0-2z" };
const icon = name => `<svg viewBox="0 0 16 16"><path d="${ICONS[name]}"/></svg>`;
const WORDS = {
  memory: { success: "✓ the matching object", failure: "✗ the wrong object", open: "nothing yet", tells: "the cue", fps: 3, swap: "Swap: the other cue",
    other: "an agent that saw the other cue", thing: s => s.plan.options.cue },
  maze: { success: "✓ the goal", open: "nothing yet", tells: "where the goal is", fps: 6, swap: "Swap: another goal", other: "an agent in the same maze with another goal",
    thing: () => "goal" },
  cartpole: { success: "✓ balances to the end", failure: "✗ the pole falls", open: "a pole that still stands", tells: "the velocities", fps: 25, swap: "Swap: mirrored start",
    other: "an agent that began mirrored" } };
const DONE = { zero: "zero", flip: "flip", hold: "hold", set: "set", swap: "swap", wipe: "wipe all", keep: "forget nothing" };

function startLive(data) {
  const session = new Session(data), { kind } = session.task, words = WORDS[kind], demo = session.demonstration(data.ranking);
  const marked = demo ? demo.units : data.ranking.slice(0, data.marked), units = document.querySelectorAll(".units");
  const ui = { session, marked, chosen: new Set(), on: Boolean(demo?.on), playing: null, tells: words.tells, shown: 0 };
  const steering = kind === "cartpole" ? { ArrowLeft: 0, ArrowRight: 1 } : { ArrowLeft: 0, ArrowUp: 2, ArrowRight: 1 };
  let drawing = 0, saving, guide = demo ? "try" : "";

  // ---- what is shown
  const plots = [["Value", () => [[s => s.value, "accent"]]],
    ["Probabilities", () => session.actions.map((_, a) => [s => s.probs[a], `c${a}`]), 0, 1],
    ["Unit", () => [...ui.chosen].slice(-1).concat(marked[0]).slice(0, 1).map(u => [s => s.h[u], "c0"]), -1, 1]];
  const keys = session.actions.map((name, a) => `<span class="key"><i style="background:var(--c${a})"></i>${name}</span>`).join("");
  $("l-plots").innerHTML = plots.map(([title], n) => `<div class="chart"><h2>${title} ${n === 1 ? keys : ""}<span class="now"></span></h2>` +
    '<div class="plot"><canvas></canvas></div></div>').join("");
  const charts = [...$("l-plots").querySelectorAll(".chart")];

  function render() {
    drawing = 0;
    const began = performance.now(), { life, cursor } = session, step = session.now(), values = life.steps.concat(session.twin.steps).map(s => s.value);
    drawWorld($("l-world"), session);
    units.forEach(canvas => drawUnits(canvas, ui));
    plots.forEach(([title, lines, low = Math.min(...values), high = Math.max(...values)], n) => {
      drawPlot(charts[n].querySelector("canvas"), session, lines(), low, high);
      const own = n === 1 ? `${session.actions[step.action]} ${Math.round(100 * step.probs[step.action])} %` : show(lines()[0][0](step));
      charts[n].querySelector(".now").textContent = own;
    });
    charts[2].querySelector("h2").firstChild.textContent = `Unit ${[...ui.chosen].at(-1) ?? marked[0]}, hidden `;
    drawMap($("l-map"), session, data.map);
    write(step);
    if (!ui.playing) drawWhy($("l-why"), session);
    else setTimeout(() => drawWhy($("l-why"), session));
    ui.took = performance.now() - began;
  }

  function fate(life) {
    if (!life.end) return `${words.open} after ${life.steps.length} steps`;
    const { outcome } = life.end, text = words[outcome] || `⏱ ${outcome}`;
    return `<b class="${outcome === "success" ? "good" : "bad"}">${text}</b> after ${life.steps.length} steps`;
  }

  function write(step) {
    const { life, twin, cursor, plan, actions } = session, over = life.end && cursor === life.steps.length, twinStep = twin.steps[cursor];
    const percent = s => `<b>${actions[s.action]}</b>${s.steered ? " (you)" : ` ${Math.round(100 * s.probs[s.action])} %`}`;
    const ago = step.t - (life.steps.slice(0, step.t + 1).findLast(s => s.sees)?.t ?? NaN);
    const seen = isNaN(ago) ? "not seen yet" : ago ? `out of view for ${ago} step${ago > 1 ? "s" : ""}` : "in view";
    $("l-sight").innerHTML = words.thing ? `<i class="dot ${ago === 0 ? "on" : ""}"></i>${words.thing(session)}, ${seen}` : "it sees position and angle; arrows: the hidden velocities";
    $("l-about").textContent = over ? `the end, step ${cursor}` : `step ${cursor}`;
    const steered = Object.keys(plan.moves).some(t => t >= cursor);
    $("l-fate").innerHTML = (over ? "" : `Now ${percent(step)}${session.changed() && twinStep ? `, its twin ${percent(twinStep)}` : ""}. `) +
      `${over ? "It ended with" : steered ? "By your moves it comes to" : "By itself it comes to"} ${fate(life)}` +
      (session.changed() ? `; its <span style="color:var(--ghost)">twin</span>, which keeps its memory, to ${fate(twin)}.` : ".");
    $("l-changes").innerHTML = plan.edits.map((e, n) => `<button data-n="${n}" aria-label="take back">` +
      `${DONE[e.kind]} ${e.units ? (e.units.length > 4 ? `${e.units.length} units` : `unit ${e.units.join(", ")}`) : ""} ` +
      `${e.on ? "from" : "at"} step ${e.from}${e.on ? " on" : ""} ✕</button>`).join("");
    $("l-unit").innerHTML = aboutUnits(ui);
    $("l-writes").textContent = actions[step.action];
    for (const [id, part] of [["l-h", "h"], ["l-c", "c"]]) {
      const [first] = ui.chosen, value = first === undefined ? 0 : step[part][first];
      if (document.activeElement !== $(id) || !ui.sliding) $(id).value = value;
      $(id).nextElementSibling.textContent = first === undefined ? "" : show(value);
    }
    document.querySelectorAll("#l-do button, .slide input").forEach(e => { e.disabled = !ui.chosen.size || over; });
    document.querySelectorAll("#l-whole button, #l-steer button").forEach(e => { e.disabled = over; });
    document.querySelectorAll("[data-on]").forEach(b => b.setAttribute("aria-pressed", ui.on === Boolean(b.dataset.on)));
    $("l-undo").disabled = !session.past.length;
    $("l-slider").max = span(session) - 1;
    $("l-slider").value = cursor;
    $("l-slider").setAttribute("aria-valuetext", `step ${cursor}`);
    $("l-play").innerHTML = icon(ui.playing ? "pause" : "play");
    $("l-play").setAttribute("aria-label", ui.playing ? "pause" : "play");
    document.body.dataset.cursor = cursor;
    $("l-world").setAttribute("aria-label", `the world at step ${cursor}`);
    showGuide();
  }

  function showGuide() {
    const count = `the ${marked.length} marked units`, { cue } = session.plan.options;
    const texts = {
      try: { memory: `This agent saw a ${cue} and is about to reach the fork, where nothing shows it which way is right. Zero ${count} and watch it turn the wrong way.`,
        maze: `This agent has to find the green goal, which it sees only from nearby. Zero ${count} and watch it lose its way.`,
        cartpole: `This agent sees where cart and pole are, never how fast they move. Zero ${count} and watch the pole fall.` }[kind],
      done: "The hollow figure and the dashed lines are its twin, which kept its memory. Undo, choose units yourself, or steer with the arrow keys: what would happen is shown at once." };
    $("l-guide").hidden = !guide;
    if (!guide) return;
    $("l-guide").querySelector("p").textContent = texts[guide];
    $("l-try").textContent = guide === "try" ? `Zero ${count}` : "Undo";
    $("l-close").textContent = guide === "try" ? "Not now" : "Got it";
  }

  // ---- what is done
  function changed(lasting = true) {
    drawing ||= requestAnimationFrame(render);
    if (!lasting || ui.playing) return;
    clearTimeout(saving);
    saving = setTimeout(() => {
      if (document.body.dataset.mode === "live") try { history.replaceState(null, "", "#" + toAddress(session)); } catch { /* some viewers forbid it */ }
    }, 250);
  }
  function go(t, stop = true) {
    if (stop) pause();
    lookAhead(session.go(t));
    changed();
  }
  function lookAhead(complete) { // the rest of the steps ahead, a little at a time
    if (!complete && !ui.ahead) ui.ahead = setTimeout(() => {
      ui.ahead = 0;
      lookAhead(session.go(session.cursor, 15));
      changed(false);
    }, 30);
  }
  function pause() {
    clearTimeout(ui.playing);
    ui.playing = null;
    changed();
  }
  function play() {
    if (ui.playing) return pause();
    if (session.life.end && session.cursor === session.last()) session.go(0);
    const tick = () => {
      if (session.life.end && session.cursor >= session.last()) return pause();
      ui.playing = setTimeout(tick, 1000 / words.fps);
      go(session.cursor + 1, false);
    };
    ui.playing = setTimeout(tick, 1000 / words.fps);
    changed(false);
  }
  function edit(what, values) {
    if (session.cursor >= session.life.steps.length) return;
    const whole = ["swap", "wipe", "keep"].includes(what);
    if (!whole && !ui.chosen.size) return;
    pause();
    session.edit(what, whole ? null : [...ui.chosen], what === "wipe" ? false : what === "swap" ? false : ui.on, values);
    guide &&= "done";
    lookAhead(session.go(session.cursor));
    changed();
  }
  function steer(action) {
    pause();
    session.steer(action);
    lookAhead(session.go(session.cursor));
    changed();
  }
  function undo() {
    pause();
    session.undo();
    changed();
  }
  function begin(alter) { // another start: what was changed and steered stays where only the cue is another
    pause();
    session.change(0, alter);
    changed();
  }
  const choose = list => {
    ui.chosen = new Set(list);
    changed();
  };

  // ---- another start
  const pick = (label, name, choices, value, alter) => {
    const id = `l-o-${name}`, options = choices.map(([v, text]) => `<option value="${v}" ${v === value ? "selected" : ""}>${text}</option>`);
    return [`<label>${label} <select id="${id}">${options.join("")}</select></label>`, id, "change", alter];
  };
  const clear = plan => Object.assign(plan, { moves: {}, edits: [] });
  function buildOptions() {
    const { options, draw } = session.plan, { size, random: anyLength } = session.task, parts = [];
    const set = (name, fresh) => e => begin(plan => { plan.options[name] = isNaN(e.target.value) ? e.target.value : +e.target.value; if (fresh) fresh(plan); });
    if (kind === "memory") {
      const sizes = [...new Set([7, 9, 13, 17, 33, 65, 129, 257, size])].sort((a, b) => a - b);
      const both = [["key", "key"], ["ball", "ball"]], { end = options.size - 3 } = options;
      parts.push(pick("cue", "cue", both, options.cue, set("cue")), pick("upper object", "upper", both, options.upper, set("upper")),
        pick("corridor", "size", sizes.map(n => [n, `S${n}${n === size ? " (this task)" : ""}`]), options.size, set("size", plan => {
          clear(plan).options.end = plan.options.size - 3;
          plan.options.x = Math.min(plan.options.x, plan.options.end);
        })),
        [`<label>start <input id="l-o-x" type="range" min="1" max="${end}" value="${options.x}" style="width:90px"> ${options.x}</label>`, "l-o-x", "change", set("x", clear)]);
      if (anyLength) parts.push([`<label>length <input id="l-o-end" type="range" min="4" max="${options.size - 3}" value="${end}" style="width:90px"> ${end}</label>`,
        "l-o-end", "change", set("end", plan => { clear(plan).options.x = Math.min(plan.options.x, plan.options.end); })]);
    } else parts.push([`<button id="l-o-new">${kind === "maze" ? "Another maze" : "Another start"}</button>`, "l-o-new", "click", () => begin(plan => {
      const own = () => Math.round(100 * (0.1 * Math.random() - 0.05)) / 100;
      clear(plan).options = kind === "maze" ? { ...plan.options, seed: plan.options.seed + 1 } : { start: [own(), own(), own(), own()] };
    })]);
    parts.push(pick("actions", "draw", [["", "most probable"], ["1", "drawn"], ["2", "drawn, again"]], draw === null ? "" : draw % 2 ? "1" : "2",
      e => begin(plan => { plan.draw = e.target.value ? 2 * Math.floor(Math.random() * 5000) + +e.target.value : null; })));
    $("l-options").innerHTML = parts.map(([html]) => html).join("");
    for (const [, id, event, alter] of parts) $(id).addEventListener(event, e => { alter(e); buildOptions(); });
  }

  // ---- buttons and keys
  const click = { "l-first": () => go(0), "l-back": () => go(session.cursor - 1), "l-next": () => go(session.cursor + 1), "l-play": play, "l-undo": undo,
    "l-marked": () => choose(marked), "l-all": () => choose([...session.agent.zero().keys()]), "l-none": () => choose([]),
    "l-close": () => { guide = ""; changed(); },
    "l-try": () => {
      if (guide === "done") { undo(); guide = ""; return; }
      session.edit("zero", marked, ui.on);
      guide = "done";
      changed();
      setTimeout(play, 900);
    },
    "l-link": async () => {
      const address = location.href.split("#")[0] + "#" + toAddress(session);
      try {
        await navigator.clipboard.writeText(address);
        $("l-link").lastChild.textContent = "Copied";
        setTimeout(() => { $("l-link").lastChild.textContent = "Copy link"; }, 1500);
      } catch { prompt("The link to this moment:", address); }
    } };
  for (const [id, does] of Object.entries(click)) $(id).addEventListener("click", does);
  for (const [id, name, text] of [["l-undo", "undo", "Undo"], ["l-link", "link", "Copy link"]]) $(id).innerHTML = `${icon(name)}<span>${text}</span>`;
  const { rows, columns } = unitGrid(session.agent.H);
  document.querySelector("#live .memory").classList.toggle("square", columns < 1.5 * rows);
  if (innerWidth < 640) $("l-setup").open = false;
  $("l-marked").textContent = `${marked.length} marked`;
  $("l-map-name").textContent = `by ${data.map.name}`;
  document.querySelector("[data-do=swap]").textContent = words.swap;
  document.querySelector("[data-do=swap]").title = `the whole state of ${words.other} and did the same`;
  document.querySelectorAll("[data-do]").forEach(b => b.addEventListener("click", () => edit(b.dataset.do)));
  document.querySelectorAll("[data-on]").forEach(b => b.addEventListener("click", () => { ui.on = Boolean(b.dataset.on); changed(); }));
  for (const id of ["l-h", "l-c"]) {
    $(id).addEventListener("input", () => { ui.sliding = true; edit("set", { h: +$("l-h").value, c: +$("l-c").value }); });
    $(id).addEventListener("change", () => { ui.sliding = false; });
  }
  $("l-changes").addEventListener("click", e => {
    const n = e.target.dataset.n;
    if (n) begin(plan => plan.edits.splice(n, 1));
  });
  $("l-steer").innerHTML = Object.entries(steering).map(([key, a]) => `<button data-a="${a}" aria-label="steer ${session.actions[a]}" title="${key}">${icon(session.actions[a])}</button>`).join("");
  $("l-steer").addEventListener("click", e => { if (e.target.dataset.a) steer(+e.target.dataset.a); });
  $("l-slider").addEventListener("input", e => go(+e.target.value));
  units.forEach(canvas => listenToUnits(canvas, ui, changed));
  for (const canvas of [$("l-why"), ...charts.map(chart => chart.querySelector("canvas"))]) {
    const seek = e => { if (e.buttons || e.type === "pointerdown") go(Math.floor((e.clientX - canvas.getBoundingClientRect().left) / canvas.clientWidth * span(session))); };
    canvas.addEventListener("pointerdown", seek);
    canvas.addEventListener("pointermove", e => { if (e.pointerType === "mouse") seek(e); });
  }
  const press = { " ": play, ",": () => go(session.cursor - 1), ".": () => go(session.cursor + 1), Home: () => go(0), End: () => go(session.last()),
    m: () => choose(marked), z: () => edit("zero"), f: () => edit("flip"), h: () => edit("hold"), u: undo, Backspace: undo };
  addEventListener("keydown", e => {
    if (document.body.dataset.mode !== "live" || e.ctrlKey || e.metaKey || e.altKey || ["SELECT", "SUMMARY", "INPUT"].includes(e.target.tagName)) return;
    if (e.key === " " && e.target.tagName === "BUTTON" && e.target.matches(":focus-visible")) return; // the button's own
    if (!(e.key in steering) && !press[e.key]) return;
    e.preventDefault();
    if (e.key in steering) steer(steering[e.key]);
    else press[e.key]();
  });
  addEventListener("resize", () => changed(false));
  dark.addEventListener("change", () => changed(false));

  /** Go where the address says; without one to the demonstration. */
  function open(address) {
    const { plan, t } = address ? fromAddress(address, session) : demo ? structuredClone({ plan: demo.plan, t: demo.t }) : { plan: session.defaults(), t: 0 };
    if (address) guide = "";
    session.begin(plan, t);
    lookAhead(false);
    buildOptions();
    changed();
  }
  return { ui, session, open, render, demo };
}

/** The page has two modes, live and replay; where the agent cannot live in it, one, and says why. */
(function startPage() {
  const data = JSON.parse($("live-data").textContent), buttons = document.querySelectorAll("#modes button");
  const asked = () => (location.hash.startsWith("#live") ? location.hash.slice(1) : "");
  if (data.why) {
    $("why-not").textContent = `Replay only. ${data.why}`;
    return;
  }
  let live;
  function enter(mode, address) {
    const first = mode === "live" && !live;
    document.body.dataset.mode = mode;
    $("live").hidden = mode !== "live";
    buttons.forEach(b => b.setAttribute("aria-pressed", b.dataset.mode === mode));
    if (first) live = window.live = startLive(data);
    if (first || address) live.open(address);
    dispatchEvent(new Event("resize")); // what was hidden had no size
  }
  $("modes").hidden = false;
  buttons.forEach(b => b.addEventListener("click", () => enter(b.dataset.mode, "")));
  addEventListener("hashchange", () => { if (asked()) enter("live", asked()); });
  enter(location.hash.startsWith("#episode") ? "replay" : "live", asked());
})();
