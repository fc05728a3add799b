/**
 * The state as the part of the address behind '#', and back. It stays in the browser: what is searched is in no server's
 * log. What must stay true: fromHash(toHash(state)) is the state again, and nonsense in an address is left out.
 */

const VIEWS = ['pictures', 'map', 'sql'];
const SAFE = ['safe', 'blur', 'all'];
const KINDS = { with: 'text', like: 'row', picture: 'picture' };
const NAMES = { text: ['with', 'text'], row: ['like', 'id'], picture: ['picture', 'key'] };
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
  put('fold', state.fold ? 1 : '', '');
  put('recall', state.recall, null);
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
    else if (name === 'table' || name === 'column' || name === 'model' || name === 'where' || name === 'row' || name === 'sql') state[name] = value;
    else if (name === 'q') state.words = value;
    else if (name === 'weight') state.weight = weightOf(value);
    else if (name in KINDS) addTerm(state.terms, KINDS[name], value);
    else if (name === 'filter') addFilter(state.filters, value);
    else if (name === 'safe' && SAFE.includes(value)) state.safe = value;
    else if (name === 'fold') state.fold = value === '1';
    else if (name === 'recall') state.recall = value === 'exact' ? 'exact' : recallOf(value);
  }
  return state;
}

function addTerm(terms, kind, text) {
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

function recallOf(text) {
  const recall = Number(text);
  return recall > 0 && recall < 1 ? recall : null;
}
