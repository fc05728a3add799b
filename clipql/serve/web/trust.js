/**
 * How far the results can be trusted: what an index found is compared with what a comparison of all rows finds, and a
 * cut-off leaves out what is not similar enough. What must stay true: a check is shown with its own search or not at all,
 * and one that reads much is made only where somebody asks for it.
 */

import { call } from './api.js';
import { button, byId, count, el } from './dom.js';
import { keyOf, requestBody, results, similarityOf } from './results.js';
import { change, now } from './state.js';

const CALM_MS = 800; // while somebody types nothing is checked
const MOST_ROWS = 2_000_000; // of a table that is compared as a whole without being asked to
const MOST = 50; // checks that are remembered
const CHECKED = 40; // rows
const STEP = 0.005;

const checks = new Map(); // a search's key → {right, of}, or null while it runs
let calm = 0;
let redraw = () => {};
let slider = null;
let alike = null;

/** `drawn()` is called when a check has come. */
export function makeTrust(drawn) {
  redraw = drawn;
}

/** The rows may be others than before. */
export const forgetChecks = () => checks.clear();

/** Draws the check and the cut-off of the search shown. `outdated`: what is shown is not what was asked for. */
export function drawTrust(outdated) {
  const place = byId('trust');
  const best = similarityOf(results.rows[0]);
  place.hidden = outdated || !results.state || (best === null && now.fold === null);
  clearTimeout(calm);
  if (place.hidden) return;
  place.replaceChildren(...(best === null ? [] : [...checkOf(), cutOff(best)]), ...(now.fold === null ? [] : [alikeness()]));
}

function checkOf() {
  if (results.exact) return [el('span', { title: 'Every row that the filters leave was compared' }, 'exact')];
  const key = keyOf(results.state);
  if (!checks.has(key)) {
    const { rows } = results.table;
    if (rows <= MOST_ROWS) calm = setTimeout(check, CALM_MS, key);
    return rows <= MOST_ROWS ? [] : [button('Check exactly', { text: 'Check exactly', class: 'link', title: `Compares all ${count(rows)} rows`, onclick: () => check(key) })];
  }
  const found = checks.get(key);
  if (found === null) return [el('span', {}, 'checking…')];
  const text = `checked exactly: ${count(found.right)} of ${count(found.of)}`;
  const say = el('span', { title: 'So many of the nearest rows, found by comparing all, were found by the index too' }, text);
  const all = () => change({ recall: 'exact' });
  return found.right === found.of ? [say] : [say, button('Show the exact ones', { text: 'Show the exact ones', class: 'link', onclick: all })];
}

/** Runs the same search without the index, and counts which of its nearest rows are among those shown. */
async function check(key) {
  if (!results.state || keyOf(results.state) !== key || checks.has(key)) return;
  const { state, table, rows } = results;
  const shown = new Set(rows.map((row) => row.id));
  checks.set(key, null);
  redraw();
  try {
    const reply = await call('/api/search', { body: await requestBody({ ...state, recall: 'exact' }, table, { k: Math.min(CHECKED, rows.length), offset: 0 }) });
    if (!checks.has(key)) return; // forgotten meanwhile
    checks.set(key, { right: reply.rows.filter((row) => shown.has(row.id)).length, of: reply.rows.length });
    if (checks.size > MOST) checks.delete(checks.keys().next().value);
  } catch {
    checks.delete(key); // without it nothing is said
    return;
  }
  redraw();
}

/** The slider of the least similarity shown; one node, as it is drawn anew while it is dragged. */
function cutOff(best) {
  slider ??= makeSlider('Least similarity shown', { min: 0 }, 'input', (value) => change({ cut: value || null }, 'replace'));
  const [input, said] = slider.children;
  input.max = Math.max(STEP, Math.ceil(best / STEP) * STEP, now.cut ?? 0).toFixed(3);
  if (document.activeElement !== input || now.cut === null) input.value = now.cut ?? 0;
  input.setAttribute('aria-valuetext', now.cut === null ? 'any similarity' : now.cut.toFixed(3));
  said.textContent = now.cut === null ? 'any similarity' : `similarity ≥ ${now.cut.toFixed(3)}`;
  return slider;
}

/** The slider of how alike pictures must be to be shown once; it searches anew when it is let go. */
function alikeness() {
  alike ??= makeSlider('How alike pictures are that are shown once', { min: 0.8, max: 0.995 }, 'change', (value) => change({ fold: value }));
  const [input, said] = alike.children;
  if (document.activeElement !== input) input.value = now.fold;
  said.textContent = `alike ≥ ${now.fold.toFixed(3)}`;
  return alike;
}

function makeSlider(label, ends, event, does) {
  const input = el('input', { type: 'range', step: STEP, 'aria-label': label, ...ends });
  input.addEventListener(event, () => does(Number(input.value)));
  return el('label', { class: 'cut' }, input, el('span', {}));
}
