/** The tables of the database that can be searched, as the server describes them. */

import { call } from './api.js';

/** `most`: rows of one search and of a file, as the server allows. */
export const catalog = { tables: [], model: null, most: { search: 1000, file: 1000 }, loaded: false };

/** Asks the server. Throws ApiError. */
export async function loadCatalog() {
  const found = await call('/api/tables');
  // tables that can be searched come first: with pictures, then by words, then the large ones
  const rank = (table) => (table.vectors.length ? 0 : 4) + (table.picture ? 0 : 2) + (table.vectors.some((one) => one.model) ? 0 : 1);
  const tables = [...found.tables].sort((a, b) => rank(a) - rank(b) || b.rows - a.rows);
  Object.assign(catalog, found, { tables, loaded: true });
}

/** The table that a state names, or null. */
export const tableOf = (state) =>
  catalog.tables.find((one) => one.name === state.table && (state.database === null || one.database === state.database)) ?? null;

/** A table as a state names it. */
export const namedIn = (table) => ({ table: table.name, database: table.database === 'default' ? null : table.database });

export const quoted = (name) => (/^[A-Za-z_]\w*$/.test(name) ? name : `\`${name.replace(/[\\`]/g, '\\$&')}\``);

/** The table of a state as SQL names it. */
export const sourceOf = ({ database, table }) => `${database && database !== 'default' ? `${quoted(database)}.` : ''}${quoted(table)}`;

/** Whether there is such a table without vectors, which only SQL can read. */
export async function isPlainTable(state) {
  const text = await call('/?default_format=JSONCompact', { body: `EXISTS TABLE ${sourceOf(state)}` }).catch(() => null);
  return Number(text?.data?.[0]?.[0]) === 1;
}

/** The column that a state searches in. */
export const columnOf = (state, table) => table?.vectors.find((one) => one.column === state.column) ?? table?.vectors[0] ?? null;

/** Whether it can be searched by words, with its own model or the one chosen. */
export const takesWords = (state, table) => Boolean(state.model ?? columnOf(state, table)?.words);
