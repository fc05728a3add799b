/** The tables of the database that can be searched, as the server describes them. */

import { call } from './api.js';

/** `most`: rows of one search and of a file, as the server allows; `fetches`: whether it fetches pictures at addresses. */
export const catalog = { tables: [], model: null, fetches: false, most: { search: 1000, file: 1000 }, loaded: false };

let newestCatalog = null;

/** Asks the server. What is asked for last is what stays, whichever answer comes last. Throws ApiError. */
export async function loadCatalog() {
  const mine = (newestCatalog = Symbol('catalog'));
  const found = await call('/api/tables');
  if (mine !== newestCatalog) return;
  // tables that can be searched come first: with pictures, then by words, then the large ones
  const rank = (table) => (table.vectors.length ? 0 : 4) + (table.picture ? 0 : 2) + (table.vectors.some((one) => one.model) ? 0 : 1);
  const tables = [...found.tables].sort((a, b) => rank(a) - rank(b) || b.rows - a.rows);
  Object.assign(catalog, found, { tables, loaded: true });
}

/** Whether two are the same table, though one may be described as it was before. */
export const isSameTable = (a, b) => a?.name === b?.name && a?.database === b?.database;

let onChange = async () => {};

/** Calls `listener()` when a statement may have changed tables or their rows. */
export function watchChanges(listener) {
  onChange = listener;
}

/** Says so. Gives a promise: the tables are known anew. */
export const tellChanged = () => onChange();

/** The table that a state names, or null. */
export const tableOf = (state) =>
  catalog.tables.find((one) => one.name === state.table && (state.database === null || one.database === state.database)) ?? null;

/** A table as a state names it. */
export const namedIn = (table) => ({ table: table.name, database: table.database === 'default' ? null : table.database });

export const quoted = (name) => (/^[A-Za-z_]\w*$/.test(name) ? name : `\`${name.replace(/[\\`]/g, '\\$&')}\``);

/** The table of a state as SQL names it. */
export const sourceOf = ({ database, table }) => `${database && database !== 'default' ? `${quoted(database)}.` : ''}${quoted(table)}`;

/** The column that a state searches in. */
export const columnOf = (state, table) => table?.vectors.find((one) => one.column === state.column) ?? table?.vectors[0] ?? null;

/** Whether it can be searched by words, with its own model or the one chosen. */
export const takesWords = (state, table) => Boolean(state.model ?? columnOf(state, table)?.words);
