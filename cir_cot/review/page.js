"use strict";
// The page of a review. Rows come in pages of twenty; all text is set as text, never as markup.

const PARTS = ["caption", "reasoning", "conclusion"];
const element = (id) => document.getElementById(id);
// `queue` is what the rows are of; `edited` names the chains that were typed in and not saved.
const state = { queue: "open", turn: 0, rows: [], at: 0, next: 0, done: false, choice: "A", edited: new Set() };
// A key acts on the row that is seen: none counts while one is "deciding" or rows are "loading".
let busy = "";

async function ask(path, body) {
  const options = body ? { method: "POST", body: JSON.stringify(body) } : {};
  const response = await fetch(path, options);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error || response.statusText);
  return answer;
}

function make(name, text, parent, kind) {
  const made = document.createElement(name);
  made.textContent = text;
  if (kind) made.className = kind;
  parent.append(made);
  return made;
}

async function load(start) {
  const turn = state.turn;
  const answer = await ask(`data/rows?state=${state.queue}&start=${start}`);
  if (turn !== state.turn) return 0; // another queue was chosen meanwhile
  if (!element("state").options.length) {
    for (const name of answer.states) make("option", name, element("state"));
  }
  element("who").textContent = answer.reviewer;
  count(answer.counts);
  const known = new Set(state.rows.map((row) => row.number));
  state.rows.push(...answer.rows.filter((row) => !known.has(row.number)));
  state.next = answer.next;
  state.done = answer.next >= answer.counts.all;
  return answer.rows.length;
}

function count(counts) {
  const decided = counts.all - counts.open;
  element("counts").textContent =
    `${decided} of ${counts.all} decided: ${counts.accept} accepted, ${counts.edit} edited, ` +
    `${counts.reject} rejected, ${counts.again} to ask again`;
}

// Flagged rows may be far apart: look on until one is found, or another queue is chosen.
async function more() {
  const turn = state.turn;
  while (turn === state.turn && !state.done && !(await load(state.next))) {
    if (turn === state.turn && !state.done) say(`looked at ${state.next} rows`);
  }
}

function say(text) {
  element("message").textContent = text;
}

function show() {
  const row = state.rows[state.at];
  say("");
  element("empty").hidden = Boolean(row);
  document.querySelector("main").hidden = !row;
  for (const button of document.querySelectorAll("footer [data-do]")) {
    const moves = ["earlier", "later"].includes(button.dataset.do);
    button.disabled = moves ? false : !row;
  }
  if (!row) return;
  state.edited.clear();
  element("place").textContent = `row ${row.number + 1}, query ${row.id}`;
  element("verdict").textContent = row.decision
    ? `${row.decision.decision} by ${row.decision.reviewer}` : "";
  element("text").textContent = row.text;
  element("quarantined").textContent = row.quarantined ? `quarantined: ${row.quarantined.reason}` : "";
  element("answer").hidden = !(row.quarantined && row.quarantined.answer);
  element("raw").textContent = row.quarantined ? row.quarantined.answer : "";
  element("reference").src = `data/picture/${row.number}/reference`;
  element("shown").hidden = !row.target;
  if (row.target) element("target").src = `data/picture/${row.number}/target`;
  const chains = Object.keys(row.chains).length ? row.chains : { "": { cot: {}, teacher: "", findings: {} } };
  element("chains").replaceChildren();
  for (const [name, chain] of Object.entries(chains)) showChain(row, name, chain);
  const names = Object.keys(chains);
  choose(row.decision && names.includes(row.decision.choice) ? row.decision.choice : names[0]);
}

function showChain(row, name, chain) {
  const box = make("article", "", element("chains"), "chain");
  box.dataset.name = name;
  const title = make("h2", name ? `Chain ${name}` : "No chain yet", box);
  make("small", (chain.teacher || "") + (chain.seen_target ? ", saw the target" : ""), title);
  // An edited chain is shown where it came from.
  const edited = row.decision && row.decision.cot && row.decision.choice === name;
  for (const part of PARTS) {
    const label = make("label", part, box);
    const area = document.createElement("textarea");
    area.dataset.part = part;
    area.value = (edited ? row.decision.cot : chain.cot)[part] || "";
    area.addEventListener("input", () => state.edited.add(name));
    label.append(area);
  }
  for (const [filter, what] of Object.entries(chain.findings)) make("p", `${filter}: ${what}`, box, "finding");
  box.addEventListener("focusin", () => choose(name));
  box.addEventListener("click", () => choose(name));
}

function choose(name) {
  state.choice = name;
  for (const box of document.querySelectorAll(".chain")) box.classList.toggle("chosen", box.dataset.name === name);
}

function written() {
  const box = document.querySelector(".chain.chosen");
  const cot = {};
  for (const area of box.querySelectorAll("textarea")) cot[area.dataset.part] = area.value;
  return cot;
}

async function decide(verdict) {
  const row = state.rows[state.at];
  if (!row) return;
  // What was typed is never lost: accepting an edited chain saves the edit.
  if (verdict === "accept" && state.edited.has(state.choice)) verdict = "edit";
  if (!mayDrop(verdict === "edit" ? state.choice : null)) return;
  const body = { number: row.number, decision: verdict, choice: state.choice, state: state.queue };
  if (verdict === "edit") body.cot = written();
  const answer = await ask("data/decide", body);
  state.rows[state.at] = answer.row;
  state.edited.clear();
  count(answer.counts);
  await move(1);
}

// Ask before typed text is dropped; the chain named `saved` is about to be saved.
function mayDrop(saved) {
  const lost = [...state.edited].some((name) => name !== saved);
  return !lost || window.confirm("Go on without saving what you wrote?");
}

async function move(step) {
  const turn = state.turn;
  if (step > 0 && state.at + 1 >= state.rows.length) await more();
  if (turn !== state.turn) return;
  const to = state.at + step;
  if (to < 0 || to >= state.rows.length) {
    show();
    if (state.rows.length) say(`This was the ${step > 0 ? "last" : "first"} row of this queue.`);
    return;
  }
  state.at = to;
  show();
  freshen(to, turn).catch((error) => say(error.message));
}

// Somebody else may have decided since the row was loaded. What is being written here stays.
async function freshen(at, turn) {
  const before = state.rows[at];
  const row = await ask(`data/row/${before.number}?state=${state.queue}`);
  if (turn !== state.turn || state.rows[at] !== before) return;
  state.rows[at] = row;
  const same = JSON.stringify(row.decision) === JSON.stringify(before.decision);
  if (state.at === at && !same && !state.edited.size && busy !== "deciding") show();
}

async function act(what) {
  if (busy) return;
  const step = { later: 1, earlier: -1 }[what];
  if (step && !mayDrop(null)) return;
  await doing(step ? "loading" : "deciding", () => (step ? move(step) : decide(what)));
}

// Show the rows of the chosen queue. Loading is given up for it, a decision and typed text are not.
async function change() {
  const select = element("state");
  if (busy === "deciding" || !mayDrop(null)) {
    select.value = state.queue;
    return;
  }
  const queue = select.value || "open";
  Object.assign(state, { queue, turn: state.turn + 1, rows: [], at: 0, next: 0, done: false });
  const turn = state.turn;
  await doing("loading", async () => {
    await more();
    if (turn === state.turn) show();
  });
}

async function doing(what, action) {
  const turn = state.turn;
  busy = what;
  try {
    await action();
  } catch (error) {
    if (turn === state.turn) say(error.message);
  }
  if (turn === state.turn) busy = "";
}

async function agreement() {
  const found = await ask("data/agreement");
  const box = element("numbers");
  const said = (value) => (value === null ? "cannot be said" : value.toFixed(2));
  box.replaceChildren();
  make("p", `${found.rows} rows were decided by several reviewers.`, box);
  make("p", `Krippendorff's alpha: ${said(found.alpha)}`, box);
  for (const [pair, kappa] of Object.entries(found.kappa)) make("p", `Cohen's kappa of ${pair}: ${said(kappa)}`, box);
  for (const [name, times] of Object.entries(found.chosen)) make("p", `chain ${name} kept ${times} times`, box);
  element("agreement").showModal();
}

for (const button of document.querySelectorAll("footer [data-do]")) {
  make("kbd", button.dataset.key, button);
  button.addEventListener("click", () => act(button.dataset.do));
}
element("state").addEventListener("change", change);
element("agree").addEventListener("click", () => agreement().catch((error) => say(error.message)));
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("textarea, select");
  if (typing && event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); act("edit"); return; }
  if (typing && event.key === "Escape") { event.target.blur(); return; }
  if (typing || event.ctrlKey || event.metaKey || event.altKey || element("agreement").open) return;
  const button = document.querySelector(`footer [data-key="${CSS.escape(event.key)}"]`);
  if (button) { event.preventDefault(); act(button.dataset.do); }
  else if (event.key === "e") {
    const area = document.querySelector(".chain.chosen textarea[data-part=conclusion]");
    if (area) { event.preventDefault(); area.focus(); }
  } else if (["1", "2"].includes(event.key)) {
    const box = document.querySelectorAll(".chain")[Number(event.key) - 1];
    if (box) choose(box.dataset.name);
  }
});
change();
