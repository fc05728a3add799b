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
  model: null, // the one that turns words into vectors; null: the column's own
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

/** Calls `listener(now, before, fromAddress)` after every change; fromAddress: the back button or a hand made it. */
export function watch(listener) {
  listeners.add(listener);
}

function tell(before, fromAddress) {
  for (const listener of listeners) listener(now, before, fromAddress);
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
  tell(before, false);
}

/**
 * Takes the state from the address: at the start, and when the back button or a hand has changed it. An address without
 * a table is about the one that is open.
 */
export function takeAddress() {
  const before = now;
  const given = fromHash(location.hash);
  const open = given.table ? {} : { database: before.database, table: before.table };
  now = { ...DEFAULTS, ...open, ...given };
  if (!given.table && now.table !== null) history.replaceState(history.state, '', toHash(now));
  tell(before, true);
}

/** The parts of the query, the words first; empty where the table is only browsed. */
export function parts(state = now) {
  const spoken = spokenParts(state.words, state.weight);
  return [...spoken, ...state.terms];
}

/**
 * Words with " + " or " - " between them are several phrases: "cat + heart", "face - smile". Spaces on both sides are
 * needed, so "t-shirt" and "3+1" stay words; at the beginning one behind is enough: "- smile".
 */
export function spokenParts(words, weight = 1) {
  const [, leading, rest] = /^(?:([+\-\u2212])\s+)?(.*)$/s.exec(words.trim());
  const pieces = rest.split(/\s+([+\-\u2212])(?:\s+|$)/);
  const found = [];
  let sign = leading === undefined || leading === '+' ? 1 : -1;
  for (const [i, piece] of pieces.entries()) {
    if (i % 2) sign = piece === '+' ? 1 : -1;
    else if (piece.trim()) found.push({ kind: 'text', text: piece.trim(), weight: sign * (i === 0 ? weight : 1) });
  }
  return found;
}
