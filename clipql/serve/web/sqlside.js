/** Beside the SQL editor: the tables with their columns, and the statements that were saved and run in this browser. */

import { send } from './api.js';
import { button, count, el } from './dom.js';
import { watchKept } from './kept.js';
import { makeSaved } from './sqlsaved.js';
import { statementsOf } from './sqltext.js';
import { quoted, tellChanged } from './tables.js';

const KEPT = 'clipql:statements';
const MOST = 100;
const COLUMNS =
  "SELECT c.database, c.table, c.name, c.type, t.total_rows FROM system.columns AS c JOIN system.tables AS t ON t.database = c.database AND t.name = c.table WHERE c.database NOT IN ('system', 'INFORMATION_SCHEMA', 'information_schema') ORDER BY c.database, c.table, c.position";

/** `insert(text)` puts a name into the editor, `open(sql, params)` a statement in the place of what is there; `held()` gives what is there so. */
export function makeSide(insert, open, held) {
  const tables = el('div', { class: 'sql-tree' });
  const past = el('ul', { class: 'sql-past' });
  const side = el('aside', { class: 'sql-side', 'aria-label': 'Tables and statements' }, el('details', { open: matchMedia('(min-width: 1000px)').matches }, el('summary', {}, 'Tables'), tables), el('details', {}, el('summary', {}, 'Saved statements'), makeSaved(held, open)), el('details', {}, el('summary', {}, 'Earlier statements'), past));
  let known = []; // the tables, with their columns
  const none = () => el('li', {}, el('span', { class: 'quiet' }, 'None was run in this browser yet'));
  const of = (sql) => el('li', {}, button(sql, { text: sql.replace(/\s+/g, ' ').slice(0, 90), class: 'link', title: sql.slice(0, 600), onclick: () => open(sql) }));
  const drawPast = () => {
    const all = earlier();
    past.replaceChildren(...(all.length ? all.map(of) : [none()]));
  };
  let newest = null;
  const drawTables = async () => {
    const mine = (newest = Symbol('tables'));
    try {
      const reply = await send('/?default_format=JSONCompact', { method: 'POST', body: COLUMNS, headers: { 'Content-Type': 'text/plain' } });
      const { data } = await reply.json();
      if (mine !== newest) return;
      known = tablesOf(data);
      tables.replaceChildren(...tree(known, insert));
    } catch (error) {
      if (mine === newest) tables.replaceChildren(el('p', { class: 'quiet' }, error.message));
    }
  };
  drawPast();
  drawTables();
  watchKept(KEPT, drawPast);
  return {
    side,
    /** The tables as the server has them: {database, table, total, columns: [[name, type]]}. */
    tables: () => known,
    /** After a statement: it is kept, and may have changed the tables. */
    ran(sql) {
      remember(sql);
      drawPast();
      if (statementsOf(sql).every(({ sql: one }) => /^\s*(\(|SELECT|WITH|FROM|EXPLAIN|SHOW|DESC|EXISTS|USE|SET)\b/i.test(one))) return;
      drawTables();
      tellChanged();
    },
  };
}

function tablesOf(rows) {
  const tables = new Map();
  for (const [database, table, name, type, total] of rows) {
    const key = `${database}.${table}`;
    if (!tables.has(key)) tables.set(key, { database, table, total, columns: [] });
    tables.get(key).columns.push([name, type]);
  }
  return [...tables.values()];
}

function tree(tables, insert) {
  return tables.map(({ database, table, total, columns }) => {
    const name = database === 'default' ? quoted(table) : `${quoted(database)}.${quoted(table)}`;
    const shown = database === 'default' ? table : `${database}.${table}`;
    return el(
      'details',
      {},
      el('summary', {}, el('span', {}, shown), total === null ? null : el('small', {}, count(Number(total)))),
      el('ul', {}, el('li', {}, button(`Insert ${name}`, { text: 'insert its name', class: 'link', onclick: () => insert(name) })), columns.map(([column, type]) => el('li', {}, button(`Insert ${column}`, { text: column, class: 'link', onclick: () => insert(quoted(column)) }), el('small', {}, type)))),
    );
  });
}

function earlier() {
  try {
    const found = JSON.parse(localStorage.getItem(KEPT) ?? '[]');
    return Array.isArray(found) ? found.filter((one) => typeof one === 'string') : [];
  } catch {
    return [];
  }
}

function remember(sql) {
  try {
    localStorage.setItem(KEPT, JSON.stringify([sql, ...earlier().filter((one) => one !== sql)].slice(0, MOST)));
  } catch {
    // the browser keeps nothing for the page
  }
}
