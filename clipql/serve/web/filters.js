/**
 * Filters: from the table's columns to a WHERE. What must stay true: a column's name and a value typed by hand are
 * always quoted, so a filter is one condition whatever it says; only the WHERE field is SQL, and looks like it.
 */

export const SHOWN_OPERATIONS = { ge: '≥', le: '≤', eq: '=', not: '≠', has: 'contains', is: 'is' };

const BY_KIND = {
  number: ['ge', 'le', 'eq', 'not'],
  date: ['ge', 'le', 'eq'],
  text: ['has', 'eq', 'not'],
  bool: ['is'],
};

/** The operations that make sense for a column; none for vectors and arrays. */
export const operationsOf = (column) => BY_KIND[column?.kind] ?? [];

const quoteName = (name) => `\`${name.replace(/\\/g, '\\\\').replace(/`/g, '\\`')}\``;
const quoteText = (text) => `'${text.replace(/\\/g, '\\\\').replace(/'/g, "\\'")}'`;

/** What is wrong with a value, in words, or null. */
export function mistakeIn(filter, column) {
  if (!column) return `there is no column ${filter.column}`;
  if (filter.value === '') return 'a value is missing';
  if (column.kind === 'number' && !/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(filter.value)) return `${filter.value} is not a number`;
  if (column.kind === 'date' && !/^\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}(:\d{2})?)?$/.test(filter.value)) return 'a date looks like 2024-05-31';
  return null;
}

function condition({ op, value }, column) {
  const name = quoteName(column.name);
  if (column.kind === 'bool') return value === 'true' ? name : `NOT ${name}`;
  if (op === 'has') return `positionCaseInsensitiveUTF8(ifNull(${name}, ''), ${quoteText(value)}) > 0`;
  const sign = { ge: '>=', le: '<=', eq: '=', not: '!=', is: '=' }[op];
  return `${name} ${sign} ${column.kind === 'number' ? value : quoteText(value.replace('T', ' '))}`;
}

/**
 * The conditions of a state, all of which are to be met: the filters', and the one that is written in SQL. Filters on
 * columns that this table lacks are left out.
 */
export function whereOf(state, table) {
  const found = [];
  for (const filter of state.filters) {
    const column = table?.columns.find((one) => one.name === filter.column);
    if (column && !mistakeIn(filter, column)) found.push(condition(filter, column));
  }
  if (state.where.trim()) found.push(state.where.trim());
  return found;
}

/** A filter in words, for its pill: "width ≥ 500". */
export function describe(filter) {
  const value = filter.value.length > 40 ? `${filter.value.slice(0, 39)}…` : filter.value;
  return `${filter.column} ${SHOWN_OPERATIONS[filter.op]} ${filter.op === 'has' ? `“${value}”` : value}`;
}

const findName = (table, names) => {
  for (const name of names) {
    const column = table?.columns.find((one) => one.name.toLowerCase() === name && one.kind === 'number');
    if (column) return column.name;
  }
  return null;
};

const columnsOf = new WeakMap(); // of a table: asked for at every picture

/** The names of the columns that many tables have and that are worth a place of their own. */
export function knownColumns(table) {
  if (!table) return { width: null, height: null, similarity: null };
  if (!columnsOf.has(table)) {
    columnsOf.set(table, {
      width: findName(table, ['width', 'original_width']),
      height: findName(table, ['height', 'original_height']),
      similarity: findName(table, ['similarity', 'clip_similarity', 'score']),
    });
  }
  return columnsOf.get(table);
}

/** The vector columns that pictures can be searched by, each with a word for it. */
export function searchable(table) {
  const named = { image: 'Pictures', text: 'Captions' };
  const seen = new Set();
  return (table?.vectors ?? []).map((vector) => {
    const label = seen.has(vector.of) ? vector.column : (named[vector.of] ?? vector.column);
    seen.add(vector.of);
    return { ...vector, label };
  });
}

/** Whether the row's own NSFW value says that it may be shown to anyone. */
export function isSafe(row, table) {
  if (!table?.nsfw) return true;
  const value = row.values?.[table.nsfw];
  if (typeof value === 'boolean') return !value;
  if (typeof value === 'number') return value < 0.5;
  return value === 'UNLIKELY';
}

const uncovered = new Set();
const rowKey = (row, table) => JSON.stringify([table?.database, table?.name, table?.table_id, row.id]);

/**
 * `safe` is the state's: 'safe' hides such rows in results, but a link may still name one. Before the table is known,
 * nobody can say that a picture is safe.
 */
export const isVeiled = (row, table, safe) => safe !== 'all' && !(table && isSafe(row, table)) && !uncovered.has(rowKey(row, table));

/** Shows this one from now on, until the page is closed. */
export const uncover = (row, table) => uncovered.add(rowKey(row, table));
