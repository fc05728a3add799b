/**
 * The rows of tables that a result is of, as the server says of each of its columns (X-Clipql-Origins): they are opened
 * as pictures or on the map. What must stay true: what is opened are rows of the table that the statement read them from.
 */

import { button, count, el } from './dom.js';
import { conditionOf } from './rowset.js';
import { change, now } from './state.js';
import { catalog, namedIn, tellChanged } from './tables.js';

const IN_ORDER = 1000; // rows that are listed by number, which the grid shows in the order of the list

/** What a reply says of the columns of its result: for each {database, table, table_id, source, name}, or null. */
export function originsOf(response) {
  try {
    const { sources, columns } = JSON.parse(response.headers.get('X-Clipql-Origins'));
    return columns.map((one) => one && { ...sources[one[0]], source: one[0], name: one[1] });
  } catch {
    return []; // it says nothing
  }
}

/** The table that a column of a result comes from, as the page knows it; null where it knows none, or another of its name. */
export const tableBehind = (origin) => (origin && catalog.tables.find((one) => one.table_id === origin.table_id && one.name === origin.table && one.database === origin.database)) ?? null;

/** Buttons that open the rows of a result, and what is to be said of them. `tell(text)` says what went wrong. */
export function waysToRows(answer, origins, tell) {
  const columns = answer.meta.map((column, at) => ({ at, called: column.name, origin: origins[at] })).filter(({ origin }) => origin?.name === '_row');
  const found = columns.map((column) => ({ ...column, ids: [...new Set(answer.data.map((row) => row[column.at]))] })).filter(({ ids }) => ids.length);
  const view = async (name, { origin, ids }, pressed) => {
    await tellChanged(); // the table may have been made a moment ago, or replaced
    if (!pressed.isConnected || now.view !== 'sql') return; // something else is shown by now
    const table = tableBehind(origin);
    if (!table) return tell(`The table ${origin.table} is not the one any more that the statement has read: run it again.`);
    try {
      change({ view: name, ...namedIn(table), column: null, model: null, words: '', weight: 1, terms: [], filters: [], where: conditionOf(ids), fold: null, cut: null, score: null, row: null });
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      tell(error.message);
    }
  };
  const buttons = found.flatMap((one) => {
    const { database, table } = one.origin;
    const of = database === 'default' ? table : `${database}.${table}`;
    const which = found.length > 1 ? `: ${found.filter((other) => other.origin.table_id === one.origin.table_id).length > 1 ? one.called : of}` : '';
    const title = `Rows of ${of}${one.ids.length > IN_ORDER ? ', by their numbers' : ''}`;
    const way = (text, icon, name) => button(`${text}${which}`, { icon, text: `${text}${which}`, class: 'tool', title, onclick: (event) => view(name, one, event.currentTarget) });
    return [way('As pictures', 'grid', 'pictures'), way('On the map', 'map', 'map')];
  });
  const many = found.some(({ ids }) => ids.length > IN_ORDER);
  return { buttons, said: many ? el('p', { class: 'quiet' }, `More than ${count(IN_ORDER)} rows are shown as pictures in the order of their numbers, not of the result.`) : null };
}
