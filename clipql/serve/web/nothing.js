/** What stands in the place of pictures where there are none: why, and the ways on. */

import { call } from './api.js';
import { button, el, icon, notice } from './dom.js';
import { change, parts } from './state.js';
import { catalog, sourceOf } from './tables.js';

/** For a search without results. */
export function nothingFound(state, table) {
  const ways = [];
  const filtered = state.filters.length || state.where.trim();
  if (filtered) ways.push(button('Without the filters', { text: 'Without the filters', class: 'tool', onclick: () => change({ filters: [], where: '' }) }));
  if (state.safe === 'safe' && table?.nsfw) ways.push(button('With pictures that may not be safe, blurred', { text: 'With pictures that may not be safe, blurred', class: 'tool', onclick: () => change({ safe: 'blur' }) }));
  if (parts(state).length) ways.push(button('Look at all of the table', { text: 'Look at all of the table', class: 'tool', onclick: () => change({ words: '', terms: [], weight: 1 }) }));
  return el('div', { class: 'empty' }, icon('picture'), el('h2', {}, 'No pictures here'), el('p', {}, filtered ? 'No row meets all the filters.' : 'This table has no rows to show.'), el('div', { class: 'buttons' }, ways));
}

/** For a cut-off that no row comes up to. */
export function nothingNear(best, cut) {
  const all = button('Show any similarity', { text: 'Show any similarity', class: 'tool', onclick: () => change({ cut: null }) });
  return el('div', { class: 'empty' }, icon('picture'), el('h2', {}, 'No picture is similar enough'), el('p', {}, `Only a similarity of ${cut.toFixed(3)} or more is shown. The nearest picture has ${(1 - best.distance).toFixed(3)}.`), el('div', { class: 'buttons' }, all));
}

/** For a database without tables to search. */
export function emptyDatabase() {
  return el(
    'div',
    { class: 'empty' },
    icon('picture'),
    el('h2', {}, 'Nothing to search yet'),
    el('p', {}, 'This database has no table with picture or caption vectors. Make one from pictures, then take it in:'),
    el('pre', { class: 'statement' }, 'clipql embed images PICTURES parts/\nclipql ingest parts/ --table pictures'),
  );
}

/** Whether there is such a table without vectors, which only SQL can read. */
async function isPlainTable(state) {
  const text = await call('/?default_format=JSONCompact', { body: `EXISTS TABLE ${sourceOf(state)}` }).catch(() => null);
  return Number(text?.data?.[0]?.[0]) === 1;
}

/** For an address of a table that is not among those that can be searched: the line and its ways on, for `notice`. */
export async function noTable(state, openTable) {
  const { table } = state;
  const first = catalog.tables[0];
  const ways = first ? [button(`Open ${first.name}`, { text: `Open ${first.name}`, class: 'link', onclick: () => openTable(first) })] : [];
  if (!(await isPlainTable(state))) return [`There is no table ${table} here.`, ...ways];
  const look = () => {
    notice(null);
    change({ view: 'sql', sql: `SELECT *\nFROM ${sourceOf(state)}\nLIMIT 20` });
  };
  return [`The table ${table} has no vectors, so it can be read with SQL but not searched by meaning.`, button('Open it in SQL', { text: 'Open it in SQL', class: 'link', onclick: look }), ...ways];
}
