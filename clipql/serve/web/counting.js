/**
 * What is told beside the results and never holds them up: how many rows the search goes through, how many Safe hides, and
 * what similarity words reach by chance. What must stay true: a figure is shown with the search that it belongs to or not
 * at all.
 */

import { call } from './api.js';
import { byId } from './dom.js';
import { whereOf } from './filters.js';
import { parts } from './state.js';

const CALM_MS = 400; // measuring chance takes many searches: only while nobody types
const MOST = 100;

const counted = new Map(); // what was asked → {rows, matching, hidden}
const chances = new Map(); // a column → the similarity that words without a meaning reach
let calm = 0;

const countOf = (state, table) => ({ table: table.name, database: table.database, where: whereOf(state, table), safe: state.safe === 'safe' });
const columnOf = (state, table) => ({ table: table.name, database: table.database, column: state.column ?? table.vectors[0]?.column ?? null, model: state.model });

/** {rows, matching, hidden} of a search, or null where they are not known yet. */
export const countsOf = (state, table) => counted.get(JSON.stringify(countOf(state, table))) ?? null;

async function asked(known, path, body) {
  const key = JSON.stringify(body);
  if (known.has(key)) return;
  known.set(key, null);
  try {
    known.set(key, await call(path, { body }));
  } catch {
    known.delete(key); // without it there is no figure
  }
  if (known.size > MOST) known.delete(known.keys().next().value);
}

/** The only part of a query that is words to be found, or null: chance is known for such alone. */
function onlyWords(state) {
  const [part, ...others] = parts(state);
  return part?.kind === 'text' && part.weight > 0 && !others.length ? part.text : null;
}

/** Asks for what is not known of a search; `known()` is called when it is. */
export function askFigures(state, table, known) {
  clearTimeout(calm);
  asked(counted, '/api/count', countOf(state, table)).then(known);
  if (onlyWords(state) === null) return;
  const ask = () => asked(chances, '/api/chance', columnOf(state, table)).then(known);
  calm = setTimeout(ask, CALM_MS);
}

/** Says that the best match is none, where words without a meaning get as near; null takes the line away. */
export function drawWeak(state, table, rows) {
  const line = byId('weak');
  const words = state && table ? onlyWords(state) : null;
  const chance = words === null ? null : chances.get(JSON.stringify(columnOf(state, table)))?.similarity;
  const best = rows.length && typeof rows[0].distance === 'number' ? 1 - rows[0].distance : null;
  const weak = typeof chance === 'number' && best !== null && best <= chance;
  line.hidden = !weak;
  line.textContent = weak ? `Weak matches: nothing here is nearer to “${words}” than random letters get by chance (similarity ${best.toFixed(3)}; chance reaches ${chance.toFixed(3)}).` : '';
}
