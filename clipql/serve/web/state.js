/**
 * What the page is asked to show, as one plain object, and the one way to change it. What must stay true: everything
 * that decides what is seen is here and in the address, so a link shows the same and the back button goes back.
 */

import { fromHash, toHash } from './url.js';

export const DEFAULTS = Object.freeze({
  view: 'pictures', // pictures | map | sql
  database: null,
  table: null,
  column: null, // the vector column searched; null: the table's first
  words: '',
  weight: 1,
  terms: [], // {kind: 'text', text} | {kind: 'row', id} | {kind: 'picture', key}, each with a weight
  filters: [], // {column, op, value}
  where: '',
  safe: 'safe', // safe | blur | all
  fold: false,
  recall: null, // null: the server's own choice; a number below 1; or 'exact'
  row: null, // the row whose details are open
  sql: '',
});

/** The state as it is; replaced, never changed in place. */
export let now = { ...DEFAULTS };

const listeners = new Set();

/** Calls `listener(now, before)` after every change. */
export function watch(listener) {
  listeners.add(listener);
}

function tell(before) {
  for (const listener of listeners) listener(now, before);
}

/**
 * Changes some of the state. `how` is 'push' for a step that the back button takes back, 'replace' for a detail, 'step'
 * for a step even where nothing differs yet, so that the details to come can be taken back together.
 */
export function change(patch, how = 'push') {
  const before = now;
  now = { ...now, ...patch };
  const hash = toHash(now);
  if (how === 'replace') history.replaceState(history.state, '', hash);
  else if (how === 'step' || hash !== toHash(before)) history.pushState({ inside: true }, '', hash);
  tell(before);
}

/** Takes the state from the address: at the start, and when the back button or a hand has changed it. */
export function takeAddress() {
  const before = now;
  now = { ...DEFAULTS, ...fromHash(location.hash) };
  tell(before);
}

/** The parts of the query, the words first; empty where the table is only browsed. */
export function parts(state = now) {
  const spoken = spokenParts(state.words, state.weight);
  return [...spoken, ...state.terms];
}

/**
 * Words with " + " or " - " between them are several phrases: "cat + heart", "face - smile". Spaces on both sides are
 * needed, so "t-shirt" and "3+1" stay words.
 */
export function spokenParts(words, weight = 1) {
  const pieces = words.trim().split(/\s+([+\-\u2212])(?:\s+|$)/);
  const found = [];
  let sign = 1;
  for (const [i, piece] of pieces.entries()) {
    if (i % 2) sign = piece === '+' ? 1 : -1;
    else if (piece.trim()) found.push({ kind: 'text', text: piece.trim(), weight: sign * (i === 0 ? weight : 1) });
  }
  return found;
}
