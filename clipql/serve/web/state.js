/**
 * What the page is asked to show, as one plain object and as an address, and the one way to change it. What must stay
 * true: everything that decides what is seen is here and in the address, so a link shows the same and the back button goes
 * back.
 */

export const NEAR_DUPLICATE = 0.96; // cosine of two pictures that a person would call the same

export const DEFAULTS = Object.freeze({
  view: 'pictures', // pictures | map | sql
  database: null,
  table: null,
  column: null, // the vector column searched; null: the table's first
  model: null, // the one that turns words into vectors; null: the column's own
  words: '',
  weight: 1,
  terms: [], // {kind: 'text', text} | {kind: 'row', id} | {kind: 'picture', key} | {kind: 'address', address}, each with a weight
  filters: [], // {column, op, value}
  where: '',
  safe: 'safe', // safe | blur | all
  fold: null, // the least cosine of pictures that are almost the same, which are shown once; null: each is shown
  hybrid: false, // whether one text is looked for as words, too
  score: null, // {column, weight}: numbers mixed into the order; null: by similarity alone
  cut: null, // the least similarity that is shown; null: any
  recall: null, // null: the server's own choice; a number below 1; or 'exact'
  colour: null, // what the map's points are coloured by: a column, or how similar they are
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

function tellAll(before, fromAddress) {
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
  tellAll(before, false);
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
  tellAll(before, true);
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

/** Opens the details of a row, as a step of its own. */
export function openRow(id) {
  change({ row: id }, now.row === null ? 'push' : 'replace');
  history.replaceState({ ...history.state, opened: true }, '');
}

const VIEWS = ['pictures', 'map', 'sql'];
const SAFE = ['safe', 'blur', 'all'];
const KINDS = { with: 'text', like: 'row', picture: 'picture', at: 'address' };
const NAMES = { text: ['with', 'text'], row: ['like', 'id'], picture: ['picture', 'key'], address: ['at', 'address'] };
export const OPERATIONS = ['ge', 'le', 'eq', 'has', 'not', 'is'];

export function toHash(state) {
  const out = new URLSearchParams();
  const put = (name, value, usual) => {
    if (value !== usual && value !== null && value !== '') out.append(name, String(value));
  };
  put('db', state.database, 'default');
  put('table', state.table, null);
  put('column', state.column, null);
  put('model', state.model, null);
  put('q', state.words, '');
  put('weight', state.weight, 1);
  for (const term of state.terms) {
    const [name, field] = NAMES[term.kind];
    out.append(name, `${term.weight}~${term[field]}`);
  }
  for (const { column, op, value } of state.filters) out.append('filter', `${op}~${column}~${value}`);
  put('where', state.where, '');
  put('safe', state.safe, 'safe');
  put('fold', state.fold, null);
  put('hybrid', state.hybrid ? 1 : '', '');
  put('score', state.score && `${state.score.weight}~${state.score.column}`, null);
  put('cut', state.cut, null);
  put('recall', state.recall, null);
  put('colour', state.view === 'map' ? state.colour : null, null);
  put('row', state.row, null);
  put('sql', state.view === 'sql' ? state.sql : '', '');
  const text = out.toString();
  return `#${state.view}${text ? `?${text}` : ''}`;
}

export function fromHash(hash) {
  const [view, text = ''] = splitOnce(hash.replace(/^#/, ''), '?');
  const state = { terms: [], filters: [] };
  if (VIEWS.includes(view)) state.view = view;
  for (const [name, value] of new URLSearchParams(text)) {
    if (name === 'db') state.database = value;
    else if (name === 'table' || name === 'column' || name === 'model' || name === 'where' || name === 'colour' || name === 'row' || name === 'sql') state[name] = value;
    else if (name === 'q') state.words = value;
    else if (name === 'weight') state.weight = weightOf(value);
    else if (name in KINDS) putTerm(state.terms, KINDS[name], value);
    else if (name === 'filter') addFilter(state.filters, value);
    else if (name === 'safe' && SAFE.includes(value)) state.safe = value;
    else if (name === 'fold') state.fold = foldOf(value);
    else if (name === 'hybrid') state.hybrid = value === '1';
    else if (name === 'score') state.score = scoreOf(value);
    else if (name === 'cut') state.cut = cutOf(value);
    else if (name === 'recall') state.recall = value === 'exact' ? 'exact' : recallOf(value);
  }
  return state;
}

function putTerm(terms, kind, text) {
  const [weight, value] = splitOnce(text, '~');
  if (value) terms.push({ kind, [NAMES[kind][1]]: value, weight: weightOf(weight) });
}

function addFilter(filters, text) {
  const [op, rest = ''] = splitOnce(text, '~');
  const [column, value] = splitOnce(rest, '~');
  if (OPERATIONS.includes(op) && column && value !== undefined) filters.push({ column, op, value });
}

function splitOnce(text, mark) {
  const at = text.indexOf(mark);
  return at < 0 ? [text, undefined] : [text.slice(0, at), text.slice(at + mark.length)];
}

function weightOf(text) {
  const weight = Number(text);
  return Number.isFinite(weight) && weight !== 0 ? Math.max(-2, Math.min(2, weight)) : 1;
}

/** Older addresses have 1 for the usual. */
function foldOf(text) {
  const least = Number(text);
  return text === '1' ? NEAR_DUPLICATE : least >= 0.5 && least < 1 ? least : null;
}

function scoreOf(text) {
  const [weight, column] = splitOnce(text, '~');
  return column && isWeight(weight) ? { column, weight: Number(weight) } : null;
}

export const isWeight = (text) => text.trim() !== '' && Math.abs(Number(text)) <= 1e9;

function cutOf(text) {
  const cut = Number(text);
  return cut > 0 && cut <= 1 ? cut : null;
}

function recallOf(text) {
  const recall = Number(text);
  return recall > 0 && recall < 1 ? recall : null;
}
