// What is said: the words of each task, the guide, and what the agent is about to do. Needs life.js and grid.js.

const WORDS = {
  memory: {
    success: "✓ the matching object", failure: "✗ the wrong object", open: n => `no end within ${n} steps`,
    tells: "the cue", fps: 3,
    swap: "Swap: the other cue", other: "an agent that saw the other cue", thing: plan => plan.options.cue,
    guide: cue => `This agent saw a ${cue} and is about to reach the fork, where nothing shows it which way is right.`,
    dare: "watch it turn the wrong way" },
  maze: {
    success: "✓ the goal", open: n => `no end within ${n} steps`, tells: "where the goal is", fps: 6,
    fresh: "Another maze", swap: "Swap: another goal", other: "an agent in the same maze with another goal",
    thing: () => "goal",
    guide: () => "This agent has to find the green goal, which it sees only from nearby.",
    dare: "watch it lose its way" },
  cartpole: {
    success: "✓ balances to the end", failure: "✗ the pole falls",
    open: n => `a pole that still stands after ${n} steps`,
    tells: "the velocities", fps: 25, fresh: "Another start",
    swap: "Swap: mirrored start", other: "an agent that began mirrored",
    guide: () => "This agent sees where cart and pole are, never how fast they move.", dare: "watch the pole fall" } };

function showGuide({ guide, marked, session }) {
  const { kind } = session.task, words = WORDS[kind], count = `the ${marked.length} marked units`;
  $("l-guide").hidden = !guide;
  $("l-guide").querySelector("p").textContent = {
    try: `${words.guide(session.plan.options.cue)} Zero ${count} and ${words.dare}.`,
    done: "The hollow figure and the dashed lines are its twin, which kept its memory. " +
      "Undo, choose units yourself, or steer with the arrow keys: what would happen is shown at once.",
    free: "This agent lives in this page: let it play, or steer it with the arrow keys. " +
      "Choose units of its memory and change them: what would happen is shown at once." }[guide];
  $("l-try").hidden = guide === "free";
  $("l-try").textContent = guide === "try" ? `Zero ${count}` : "Undo";
  $("l-close").textContent = guide === "try" ? "Not now" : "Got it";
}

/** How a life ends, as far as it is known. */
function fate({ end, steps, task }) {
  const words = WORDS[task.kind];
  if (!end) return words.open(steps.length);
  const tone = end.outcome === "success" ? "good" : "bad";
  return `<b class="${tone}">${words[end.outcome] || `✗ ${end.outcome}`}</b> after ${steps.length} steps`;
}

/** What is in view, what it does next, how it ends, and how its twin. */
function tell({ session }) {
  const { life, twin, cursor, plan, actions } = session, step = session.now(), words = WORDS[session.task.kind];
  const over = life.end && cursor === life.steps.length, beside = session.changed() ? twin.steps[cursor] : null;
  const act = s => `<b>${actions[s.action]}</b>${s.steered ? " (you)" : ` ${Math.round(100 * s.probs[s.action])} %`}`;
  const ago = step.t - life.steps.findLastIndex(s => s.t <= step.t && s.sees);
  const seen = ago > step.t ? "not seen yet" : ago ? `out of view for ${ago} step${ago > 1 ? "s" : ""}` : "in view";
  $("l-sight").innerHTML = words.thing ? `<i class="dot ${ago ? "" : "on"}"></i>${words.thing(plan)}, ${seen}`
    : "it sees position and angle; arrows: the hidden velocities";
  $("l-about").textContent = over ? `the end, step ${cursor}` : `step ${cursor}`;
  const steered = Object.keys(plan.moves).some(t => t >= cursor);
  const comes = over ? "It ended with" : steered ? "By your moves it comes to" : "By itself it comes to";
  const twins = '<span style="color:var(--ghost)">twin</span>';
  const next = over ? "" : `Now ${act(step)}${beside ? `, its twin ${act(beside)}` : ""}. `;
  $("l-fate").innerHTML = `${next}${comes} ${fate(life)}` +
    (session.changed() ? `; its ${twins}, which keeps its memory, to ${fate(twin)}.` : ".");
  $("l-changes").innerHTML = plan.edits.map(({ kind, units, from, on }, n) => {
    const few = units?.length === 1 ? `unit ${units}` : `units ${units?.join(", ")}`;
    const which = !units ? "all" : units.length > 4 ? `${units.length} units` : few;
    const what = `${kind === "keep" ? "forget nothing" : `${kind} ${which}`} ${on ? "from" : "at"} step ${from}`;
    return `<button data-n="${n}" title="take it back">${what}${on ? " on" : ""} ✕</button>`;
  }).join("");
  $("l-world").setAttribute("aria-label", `the world at step ${cursor}`);
}
