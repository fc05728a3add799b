/** The SQL view: an editor with completion, what the statement gives as a table, its plan, and errors where they belong. */

import { call, send } from './api.js';
import { makeCompletion } from './completion.js';
import { copyButton, planOf, saveFile, shortly } from './dialogs.js';
import { button, byId, count, el } from './dom.js';
import { makeHighlighter } from './highlight.js';
import { chartOf } from './sqlchart.js';
import { watchProgress } from './sqlprogress.js';
import { originsOf, tableBehind, waysToRows } from './sqlrows.js';
import { makeSide } from './sqlside.js';
import { resultTable } from './sqltable.js';
import { placed, statementsOf } from './sqltext.js';
import { change, now } from './state.js';
import { quoted, sourceOf } from './tables.js';

// ids are UInt64, which JavaScript's numbers cannot hold, and nan is not NULL: as text they stay what they are
const SETTINGS = 'default_format=JSONCompact&output_format_json_quote_64bit_integers=1&output_format_json_quote_denormals=1';

const FILES = { CSV: ['CSVWithNames', 'csv'], JSON: ['JSONEachRow', 'jsonl'], Parquet: ['Parquet', 'parquet'], Arrow: ['Arrow', 'arrow'] };
const session = `page-${crypto.getRandomValues(new Uint32Array(4)).join('-')}`; // several statements go on from each other

let parts = null;
let params = {}; // those of the statement that "Show SQL" handed over; they are not in the address
let running = null;
let shown = false;
let currentTable = null;

/** Opens a statement, with its parameters, in the SQL view. */
export function openInSql(sql, given = {}) {
  params = given;
  change({ view: 'sql', sql, row: null });
}

function build() {
  const area = el('textarea', {
    id: 'sql',
    spellcheck: 'false',
    autocapitalize: 'off',
    autocomplete: 'off',
    wrap: 'off',
    rows: 9,
    'aria-label': 'SQL statement',
  });
  const paint = el('pre', { class: 'sql-paint', 'aria-hidden': 'true' });
  const editor = el('div', { class: 'sql-editor' }, paint, area);
  const error = el('div', { class: 'sql-error', role: 'alert', hidden: true });
  const said = el('span', { class: 'status', role: 'status' });
  const given = el('p', { class: 'quiet sql-params', hidden: true });
  const out = el('div', { class: 'sql-out' });
  const run = button('Run', { icon: 'play', text: 'Run', class: 'tool primary', title: 'Ctrl + Enter', onclick: () => (running ? running.abort() : runIt()) });
  const plan = button('Explain', { icon: 'plan', text: 'Explain', class: 'tool', onclick: explainIt });
  const insert = (name) => {
    area.focus();
    area.setRangeText(name, area.selectionStart, area.selectionEnd, 'end');
    area.dispatchEvent(new Event('input', { bubbles: true }));
  };
  const open = (sql, values = params) => {
    params = values;
    area.value = sql;
    area.dispatchEvent(new Event('input', { bubbles: true }));
    area.focus();
  };
  const beside = makeSide(insert, open, () => ({ sql: area.value, params: Object.fromEntries(usedParams()) }));
  const share = el('progress', { class: 'sql-share', max: 1, 'aria-label': 'Share of the rows that is read', hidden: true });
  byId('view-sql').replaceChildren(
    beside.side,
    el('div', { class: 'sql' }, editor, given, el('div', { class: 'bar' }, run, plan, copyButton(() => area.value), el('kbd', { class: 'quiet' }, 'Ctrl + Enter'), el('span', { class: 'bar-gap' }), said), share, error, out),
  );
  parts = { area, paint, error, said, share, given, out, run, beside, highlight: makeHighlighter(area, paint) };
  document.addEventListener('keydown', (event) => {
    const here = now.view === 'sql' && !document.querySelector('dialog[open]');
    if (here && event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      runIt();
    }
  });
  area.addEventListener('input', drawParams);
  makeCompletion(area, editor, paint, parts.highlight, beside.tables);
  // the words of the language come from the server, so that they are this engine's
  call('/api/complete').then(
    (words) => parts.highlight.learn(words),
    () => {},
  );
}

/** A statement to begin with, about the table that is open. */
const example = (table) => {
  if (!table) return "SELECT name, total_rows\nFROM system.tables\nWHERE database = 'default'";
  const files = table.picture?.kind === 'file'; // the server's small pictures go by the row's number
  const shown = [files ? '_row' : null, table.picture?.column, table.caption, table.nsfw].filter(Boolean).map(quoted);
  const vector = table.vectors.find((one) => one.model);
  if (vector) shown.push(`cosineDistance(${quoted(vector.column)}, encode_text('a red heart')) AS distance`);
  const source = sourceOf({ database: table.database, table: table.name });
  return `SELECT ${shown.length ? shown.join(', ') : '*'}\nFROM ${source}${vector ? '\nORDER BY distance' : ''}\nLIMIT 20`;
};

/** Brings the view in line with the state. */
export function drawSql(state, table) {
  currentTable = table;
  const entered = state.view === 'sql' && !shown;
  shown = state.view === 'sql';
  if (!shown) return;
  if (!parts) build();
  // a touch screen would cover half of the page with its keyboard
  if (entered && matchMedia('(hover: hover)').matches) parts.area.focus({ preventScroll: true });
  const offered = parts.area.value === parts.example; // by the page, before it knew the table or another was chosen
  const text = state.sql || (offered ? '' : parts.area.value) || (parts.example = example(table));
  if (parts.area.value.trim() !== text.trim()) {
    running?.abort(); // its answer is not one to this text
    parts.area.value = text;
    parts.highlight.draw();
    clear();
  }
  drawParams();
}

const usedParams = () => Object.entries(params).filter(([name]) => parts.area.value.includes(`{${name}:`));

function drawParams() {
  const used = usedParams();
  parts.given.hidden = !used.length;
  parts.given.textContent = used.map(([name, value]) => `${name} = ${shortly(value)}`).join('   ');
}

function clear() {
  parts.error.hidden = true;
  parts.said.textContent = '';
  parts.out.replaceChildren();
}

/** Says what went wrong with a statement of the editor, {sql, at}, and its whole text; null: with what was made of a result. */
function fail(error, statement = null, text = '', several = false) {
  const { message, place } = statement ? placed(error, text, statement) : { message: error.message, place: null };
  parts.error.hidden = false;
  parts.error.replaceChildren(el('pre', {}, message));
  const go = (label, from, to) =>
    button(label, {
      text: label,
      class: 'link',
      onclick: () => {
        parts.area.focus();
        if (parts.area.value === text) parts.area.setSelectionRange(from, to);
        else parts.said.textContent = 'The text has been changed since.';
      },
    });
  if (place !== null) parts.error.append(go('Go to the place', place, place + 1));
  else if (several) parts.error.append(go('Go to the statement', statement.at, statement.at + statement.sql.length));
}

/** One statement runs, or is explained, at a time: the one before is stopped, and what it still answers is not shown. */
function begin() {
  running?.abort();
  running = new AbortController();
  clear();
  parts.run.lastChild.textContent = 'Stop';
  return running;
}

function end(mine) {
  if (running !== mine) return;
  running = null;
  parts.share.hidden = true;
  parts.run.lastChild.textContent = 'Run';
}

/** There is none in the editor: what one before it gave is not shown as its result. */
function sayNone() {
  running?.abort();
  end(running);
  clear();
  parts.said.textContent = 'There is no statement to run.';
}

async function runIt() {
  const text = parts.area.value;
  const sql = text.trim();
  const every = statementsOf(text);
  if (!every.length) return sayNone();
  const several = every.length > 1;
  if (!several) every[0] = { sql, at: text.indexOf(sql) }; // as it is
  // the step that led to this view is that of the first statement run in it, too: the way back shows something else
  change({ sql }, now.sql === sql || !now.sql ? 'replace' : 'push');
  const mine = begin();
  const began = performance.now();
  let at = 0;
  const progress = watchProgress(mine.signal, (read) => {
    const seconds = Math.round((performance.now() - began) / 1000);
    parts.said.textContent = `Running${several ? ` statement ${at + 1} of ${every.length}` : ''}…${seconds ? ` ${seconds} s` : ''}${read ? ` · ${read.text}` : ''}`;
    parts.share.hidden = !read || read.share === null;
    if (read?.share) parts.share.value = read.share;
  });
  try {
    const extra = usedParams().map(([name, value]) => `&param_${encodeURIComponent(name)}=${encodeURIComponent(typeof value === 'string' ? value : JSON.stringify(value))}`);
    const database = now.database ? `&database=${encodeURIComponent(now.database)}` : '';
    const together = several ? `&session_id=${session}` : '';
    const ask = (body, settings, id = null) => send(`/?${settings}${database}${together}${extra.join('')}${id ? `&query_id=${id}` : ''}`, { method: 'POST', body, headers: { 'Content-Type': 'text/plain; charset=utf-8', 'X-Clipql-Tell': 'progress, origins' }, signal: mine.signal });
    let result = '';
    let origins = [];
    for (; at < every.length; at++) {
      const reply = await ask(every[at].sql, SETTINGS, progress.of(session));
      [result, origins] = [await reply.text(), originsOf(reply)];
    }
    parts.beside.ran(sql);
    const last = every.at(-1).sql;
    show(result, performance.now() - began, last, origins, (format) => ask(last, `default_format=${format}`));
  } catch (error) {
    if (running !== mine) return;
    parts.said.textContent = mine.signal.aborted ? 'Stopped.' : several ? `Statement ${at + 1} of ${every.length} failed; those before it have been run.` : '';
    if (!mine.signal.aborted) fail(error, every[at], text, several);
  } finally {
    progress.end();
    end(mine);
  }
}

/** `again(format)` runs the statement once more for a file; `origins`: what its columns come from. */
function show(text, milliseconds, sql, origins, again) {
  const time = milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
  let answer = null;
  try {
    answer = JSON.parse(text);
  } catch {
    // a FORMAT of the statement's own, or a statement without rows
  }
  if (answer && Array.isArray(answer.meta) && Array.isArray(answer.data)) {
    const { rows = answer.data.length, statistics } = answer;
    const read = statistics?.rows_read ? ` · ${count(statistics.rows_read)} read` : '';
    parts.said.textContent = `${count(rows)} ${rows === 1 ? 'row' : 'rows'} · ${time}${read}`;
    parts.out.replaceChildren(toolsOf(answer, origins, sql, again), resultTable(answer, origins, searchBy));
  } else {
    parts.said.textContent = `Done · ${time}`;
    parts.out.replaceChildren(...(text.trim() ? [el('pre', { class: 'plan raw', tabindex: 0 }, text)] : []));
  }
}

/** What can be done with a result: a file, a chart, and its rows as pictures or on the map. */
function toolsOf(answer, origins, sql, again) {
  const place = el('div', { class: 'sql-extra' });
  const save = async (format, ending) => {
    try {
      saveFile(await (await again(format)).blob(), `result.${ending}`);
    } catch (error) {
      fail(error);
    }
  };
  const reads = /^\s*(\(|SELECT|WITH|FROM|SHOW|DESC|EXPLAIN)/i.test(sql);
  const files = reads ? Object.entries(FILES).map(([name, [format, ending]]) => button(`Download ${name}`, { icon: 'download', text: name, class: 'tool', title: `Run it again for a ${name} file`, onclick: () => save(format, ending) })) : [];
  const chart = () => place.replaceChildren(...(place.firstChild ? [] : [chartOf(answer) ?? el('p', { class: 'quiet' }, 'A chart needs two rows or more and a column of numbers.')]));
  const ways = waysToRows(answer, origins, (text) => (parts.said.textContent = text));
  return el('div', {}, el('div', { class: 'buttons' }, button('Chart', { icon: 'bars', text: 'Chart', class: 'tool', onclick: chart }), ...ways.buttons, ...files), ways.said, place);
}

/** A statement that searches by a vector of a result: in the column that it comes from, or else in the open table. */
function searchBy(vector, origin) {
  const own = tableBehind(origin)?.vectors.find((one) => one.column === origin.name);
  const table = own ? tableBehind(origin) : currentTable;
  const column = own ?? table?.vectors.find((one) => one.dimension === vector.length);
  if (!column) {
    parts.said.textContent = `No vector column of the table chosen has ${count(vector.length)} numbers.`;
    return;
  }
  const plain = ['_row', table.picture?.column, table.caption].filter(Boolean).map(quoted);
  const source = sourceOf({ database: table.database, table: table.name });
  const sql = `SELECT ${plain.join(', ')}, cosineDistance(${quoted(column.column)}, {vector:Array(Float32)}) AS distance\nFROM ${source}\nORDER BY distance\nLIMIT 20`;
  openInSql(sql, { vector });
  parts.area.value = sql;
  parts.highlight.draw();
  runIt();
}

async function explainIt() {
  const text = parts.area.value;
  const sql = text.trim();
  if (!statementsOf(sql).length) return sayNone();
  const mine = begin();
  try {
    const body = { sql, database: now.database ?? 'default', params: Object.fromEntries(usedParams()) };
    const { plan } = await call('/api/explain', { body, signal: mine.signal });
    parts.out.replaceChildren(el('h3', {}, 'How it is run'), planOf(plan));
  } catch (error) {
    if (running !== mine) return;
    if (mine.signal.aborted) parts.said.textContent = 'Stopped.';
    else fail(error, { sql, at: text.indexOf(sql) }, text);
  } finally {
    end(mine);
  }
}
