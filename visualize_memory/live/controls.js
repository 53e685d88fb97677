// The page: its state, buttons, keys, playing and the address. Needs all other files.

const ICONS = {
  first: "M2 2h2v12H2zM14 2v12L5 8z", back: "M11 2v12L3 8z", next: "M5 2v12l8-6z", play: "M4 2v12l10-6z",
  pause: "M3 2h4v12H3zM9 2h4v12H9z", forward: "M8 1 2 8h4v7h4V8h4z",
  left: "M7 1v3h3a4 4 0 0 1 0 9H4v-2h6a2 2 0 0 0 0-5H7v3L2 5z",
  right: "M9 1v3H6a4 4 0 0 0 0 9h6v-2H6a2 2 0 0 1 0-5h3v3l5-4z",
  undo: "M7 2v3h2.5a4.5 4.5 0 0 1 0 9H4v-2h5.5a2.5 2.5 0 0 0 0-5H7v3L2 6z",
  link: "M6.5 9.5a3 3 0 0 1 0-4l2-2a3 3 0 0 1 4 4l-1 1-1-1 1-1a1.5 1.5 0 0 0-2-2l-2 2a1.5 1.5 0 0 0 0 2z" +
    "M9.5 6.5a3 3 0 0 1 0 4l-2 2a3 3 0 0 1-4-4l1-1 1 1-1 1a1.5 1.5 0 0 0 2 2l2-2a1.5 1.5 0 0 0 0-2z" };
const icon = name => `<svg viewBox="0 0 16 16"><path d="${ICONS[name]}"/></svg>`;
const all = selector => [...document.querySelectorAll(`#live ${selector}`)];

function startLive(data) {
  const session = new Session(data), { kind } = session.task, words = WORDS[kind];
  const demo = session.demonstration(data.ranking), marked = demo?.units || data.ranking.slice(0, data.marked);
  const ui = { session, marked, chosen: new Set(), on: Boolean(demo?.on), playing: null, tells: words.tells };
  const units = all(".units"), plots = makePlots(ui), fields = all("[data-option]");
  let drawing = 0, saving = 0, ahead = 0;
  ui.guide = demo ? "try" : "free";

  // ---- what is shown
  function render() {
    drawing = 0;
    const began = performance.now();
    drawWorld($("l-world"), session);
    units.forEach(canvas => drawUnits(canvas, ui));
    plots.draw();
    drawMap($("l-map"), session, data.map);
    tell(ui);
    showGuide(ui);
    showControls();
    setTimeout(() => drawWhy($("l-why"), session)); // after the rest is on the screen
    ui.took = performance.now() - began;
  }
  function showControls() {
    const { life, cursor, plan, actions } = session, step = session.now(), over = cursor >= life.steps.length;
    const [first] = ui.chosen, alone = first !== undefined;
    $("l-unit").innerHTML = aboutUnits(ui);
    $("l-writes").textContent = actions[step.action];
    for (const [id, part] of [["l-h", "h"], ["l-c", "c"]]) {
      if (part === "c") Object.assign($(id), { max: ui.most, min: -ui.most });
      if (!ui.sliding) $(id).value = alone ? step[part][first] : 0;
      $(id).nextElementSibling.textContent = alone ? show(step[part][first]) : "";
    }
    for (const e of all("#l-do button, .slide input")) e.disabled = !alone || over;
    for (const e of all("#l-whole button, #l-steer button")) e.disabled = over;
    for (const b of all("[data-on]")) b.setAttribute("aria-pressed", ui.on === Boolean(b.dataset.on));
    $("l-undo").disabled = !session.past.length;
    $("l-slider").max = span(session) - 1;
    $("l-slider").value = cursor;
    $("l-slider").setAttribute("aria-valuetext", `step ${cursor}`);
    $("l-play").innerHTML = icon(ui.playing ? "pause" : "play");
    $("l-play").setAttribute("aria-label", ui.playing ? "pause" : "play");
    const { size, end = size - 3 } = plan.options;
    for (const field of fields) {
      const name = field.dataset.option;
      if (name === "x" || name === "end") field.max = name === "x" ? end : size - 3;
      field.value = name === "draw" ? plan.draw ?? 0 : name === "end" ? end : plan.options[name];
      if (field.type === "range") field.nextElementSibling.textContent = field.value;
    }
  }
  /** Draw soon; and keep the address up to date, unless it only looks `ahead`. */
  function changed(lasting = true) {
    drawing ||= requestAnimationFrame(render);
    if (!lasting || ui.playing) return;
    clearTimeout(saving);
    saving = setTimeout(() => {
      if (document.body.dataset.mode !== "live") return;
      try { history.replaceState(null, "", "#" + toAddress(session)); } catch { /* some viewers forbid it */ }
    }, 250);
  }
  /** The rest of the steps ahead, a little at a time. */
  function lookAhead(complete) {
    if (complete || ahead) return;
    ahead = setTimeout(() => {
      ahead = 0;
      lookAhead(session.go(session.cursor, 15));
      changed(false);
    }, 30);
  }

  // ---- what is done
  function act(does) {
    pause();
    does();
    lookAhead(session.go(session.cursor));
    changed();
  }
  const go = t => act(() => session.go(t));
  const undo = () => act(() => session.undo());
  const steer = action => act(() => session.steer(action));
  const alter = change => act(() => session.change(change));
  const clear = plan => Object.assign(plan, { moves: {}, edits: [] });
  function edit(what, chosen = [...ui.chosen], values = {}) {
    const whole = OF_ALL.includes(what);
    if (session.cursor >= session.life.steps.length || !(whole || chosen.length)) return;
    if (ui.guide === "try") ui.guide = "done";
    act(() => session.edit(what, whole ? null : chosen, ui.on && (!whole || what === "keep"), values));
  }
  function choose(list) {
    ui.chosen = new Set(list);
    changed();
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
      lookAhead(session.go(session.cursor + 1));
      changed();
    };
    ui.playing = setTimeout(tick, 1000 / words.fps);
    changed();
  }
  async function copyLink() {
    const address = location.href.split("#")[0] + "#" + toAddress(session), label = $("l-link").lastChild;
    try {
      await navigator.clipboard.writeText(address);
      label.textContent = "Copied";
      setTimeout(() => { label.textContent = "Copy link"; }, 1500);
    } catch { prompt("The link to this moment:", address); }
  }
  function tryIt() {
    if (ui.guide === "done") {
      ui.guide = "";
      return undo();
    }
    edit("zero", marked);
    setTimeout(() => ui.playing || play(), 900);
  }
  /** Another start: where only the cue or its place is another, what was changed and steered stays. */
  function option({ dataset: { option: name }, value }) {
    const other = ["size", "end", "x"].includes(name);
    alter(plan => {
      if (name === "draw") plan.draw = +value || null;
      else plan.options[name] = isNaN(value) ? value : +value;
      if (other) clear(plan);
      const { options } = plan;
      if (name === "size") options.end = options.size - 3;
      if (kind === "memory") options.x = Math.min(options.x, options.end || options.size - 3);
    });
    if (other) go(0);
  }
  function fresh() {
    const draw = () => Math.round(10 * Math.random() - 5) / 100;
    alter(plan => {
      const { seed } = clear(plan).options;
      const start = [draw(), draw(), draw(), draw()];
      Object.assign(plan.options, kind === "maze" ? { seed: seed + 1, x: undefined } : { start });
    });
    go(0);
  }

  /** Start in the cell that was clicked twice. */
  function startAt([x, y]) {
    const { world } = session.life;
    if (world.at(x, y) !== EMPTY || (kind === "memory" && (y !== world.middle || x > world.end))) return;
    alter(plan => Object.assign(clear(plan).options, kind === "memory" ? { x } : { x, y }));
    go(0);
  }

  // ---- buttons and keys
  const steering = { ArrowLeft: 0, ...(session.actions.length > 2 && { ArrowUp: 2 }), ArrowRight: 1 };
  const clicks = { play, undo, link: copyLink,
    first: () => go(0), back: () => go(session.cursor - 1), next: () => go(session.cursor + 1),
    marked: () => choose(marked), all: () => choose(session.agent.zero().keys()), none: () => choose([]),
    try: tryIt, new: fresh, close: () => { ui.guide = ""; changed(); } };
  const keys = { " ": play, ",": clicks.back, ".": clicks.next, Home: clicks.first, End: () => go(session.last()),
    m: clicks.marked, z: () => edit("zero"), f: () => edit("flip"), h: () => edit("hold"), u: undo, Backspace: undo };
  for (const [id, does] of Object.entries(clicks)) $(`l-${id}`).addEventListener("click", does);
  for (const b of all("[data-do]")) b.addEventListener("click", () => edit(b.dataset.do));
  for (const b of all("[data-on]")) b.addEventListener("click", () => { ui.on = Boolean(b.dataset.on); changed(); });
  for (const field of fields) field.addEventListener("change", () => option(field));
  for (const id of ["l-h", "l-c"]) {
    $(id).addEventListener("input", () => {
      ui.sliding = true;
      edit("set", [...ui.chosen], { [id.at(-1)]: +$(id).value });
    });
    $(id).addEventListener("change", () => { ui.sliding = false; });
  }
  $("l-changes").addEventListener("click", e => {
    if (e.target.dataset.n) alter(plan => plan.edits.splice(e.target.dataset.n, 1));
  });
  $("l-steer").addEventListener("click", e => { if (e.target.dataset.a) steer(+e.target.dataset.a); });
  $("l-world").addEventListener("dblclick", e => { if (kind !== "cartpole") startAt($("l-world").cellAt(e)); });
  $("l-slider").addEventListener("input", e => go(+e.target.value));
  units.forEach(canvas => listenToUnits(canvas, ui, changed));
  for (const canvas of [$("l-why"), ...plots.canvases]) {
    const seek = e => go(Math.floor(e.offsetX / canvas.clientWidth * span(session)));
    canvas.addEventListener("pointerdown", seek);
    canvas.addEventListener("pointermove", e => { if (e.buttons && e.pointerType === "mouse") seek(e); });
  }
  addEventListener("keydown", e => {
    if (document.body.dataset.mode !== "live" || e.ctrlKey || e.metaKey || e.altKey) return;
    if (e.target.matches("select, summary") || (e.target.matches("input") && e.key.length > 1)) return; // its own keys
    if (e.key === " " && e.target.matches("button:focus-visible")) return; // the button's own
    if (!(e.key in steering) && !(e.key in keys)) return;
    e.preventDefault();
    if (e.key in steering) steer(steering[e.key]);
    else keys[e.key]();
  });
  addEventListener("change", e => { if (!e.target.matches(":focus-visible")) e.target.blur(); }); // arrows steer again
  addEventListener("resize", () => changed(false));
  dark.addEventListener("change", () => changed(false));

  // ---- what does not change
  const { rows, columns } = unitGrid(session.agent.H), { size, random: anyLength } = session.task;
  const sizes = [...new Set(session.task.view ? [7, 9, 13, 17, 33, 65, 129, 257, size] : [size])].sort((a, b) => a - b);
  all(".memory")[0].classList.toggle("square", columns < 1.5 * rows);
  const here = [kind, kind === "memory" && anyLength ? "random" : ""];
  for (const e of all("[data-for]")) e.hidden = !e.dataset.for.split(" ").some(name => here.includes(name));
  const names = sizes.map(n => `<option value="${n}">S${n}${n === size ? " (this task)" : ""}</option>`);
  all("[data-option=size]")[0].innerHTML = names.join("");
  for (const name of ["first", "back", "next"]) $(`l-${name}`).innerHTML = icon(name);
  $("l-undo").innerHTML = `${icon("undo")}<span>Undo</span>`;
  $("l-link").innerHTML = `${icon("link")}<span>Copy link</span>`;
  $("l-steer").innerHTML = Object.entries(steering).map(([key, a]) => `<button data-a="${a}" title="${key}" ` +
    `aria-label="steer ${session.actions[a]}">${icon(session.actions[a])}</button>`).join("");
  $("l-marked").textContent = `${marked.length} marked`;
  $("l-map-name").textContent = `by ${data.map.name}`;
  $("l-new").textContent = words.fresh || "";
  $("l-world").title = kind === "cartpole" ? "" : "double click a cell to start there";
  const swap = all("[data-do=swap]")[0];
  swap.textContent = words.swap;
  swap.title = `the state of ${words.other} and did the same`;
  if (innerWidth < 640) $("l-setup").open = false;

  /** Go where the address says; without one to the demonstration. */
  function open(address) {
    const shown = address ? fromAddress(address, session) : structuredClone(demo) || { plan: session.defaults(), t: 0 };
    if (address) ui.guide = "";
    pause();
    session.begin(shown.plan, shown.t);
    lookAhead(false);
    changed();
  }
  return { ui, session, open, render, toAddress, fromAddress };
}

/** The page has two modes, live and replay; where the agent cannot live in it, only replay, and it says why. */
(function startPage() {
  const data = JSON.parse($("live-data").textContent), buttons = document.querySelectorAll("#modes button");
  const asked = () => (location.hash.startsWith("#live&") ? location.hash.slice(1) : "");
  let live;
  if (data.why) {
    $("why-not").textContent = `Replay only. ${data.why}`;
    return;
  }
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
  addEventListener("hashchange", () => {
    if (asked()) enter("live", asked());
    else if (location.hash.startsWith("#episode")) enter("replay", "");
  });
  enter(location.hash.startsWith("#episode") ? "replay" : "live", asked());
})();
