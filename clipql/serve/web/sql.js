/** The SQL view: an editor with completion, what the statement gives as a table, its plan, and errors where they belong. */

import { call, send } from './api.js';
import { makeCompletion } from './completion.js';
import { copyButton, planOf, saveFile, shortly } from './dialogs.js';
import { button, byId, count, el } from './dom.js';
import { makeHighlighter } from './highlight.js';
import { chartOf } from './sqlchart.js';
import { makeSide, statementsOf } from './sqlside.js';
import { resultTable } from './sqltable.js';
import { change, now } from './state.js';
import { quoted, sourceOf } from './tables.js';

// ids are UInt64, which JavaScript's numbers cannot hold, and nan is not NULL: as text they stay what they are
const SETTINGS = 'default_format=JSONCompact&output_format_json_quote_64bit_integers=1&output_format_json_quote_denormals=1';

const FILES = { CSV: ['CSVWithNames', 'csv'], JSON: ['JSONEachRow', 'jsonl'], Parquet: ['Parquet', 'parquet'], Arrow: ['Arrow', 'arrow'] };
const MOST_SHOWN = 1000; // rows of a result that become pictures or a map
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
  const beside = makeSide(insert, (sql) => {
    area.value = sql;
    area.dispatchEvent(new Event('input', { bubbles: true }));
    area.focus();
  });
  byId('view-sql').replaceChildren(
    beside.side,
    el('div', { class: 'sql' }, editor, given, el('div', { class: 'bar' }, run, plan, copyButton(() => area.value), el('kbd', { class: 'quiet' }, 'Ctrl + Enter'), el('span', { class: 'bar-gap' }), said), error, out),
  );
  parts = { area, paint, error, said, given, out, run, beside, highlight: makeHighlighter(area, paint) };
  document.addEventListener('keydown', (event) => {
    const here = now.view === 'sql' && !document.querySelector('dialog[open]');
    if (here && event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      runIt();
    }
  });
  area.addEventListener('input', drawParams);
  makeCompletion(area, editor, paint, parts.highlight);
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
  if (parts.area.value !== text) {
    if (parts.area.value.trim() !== text.trim()) running?.abort(); // its answer is not one to this text
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

/** The letter of the editor that is at a byte, from 1, of the statement sent, which is what the server counts. */
function placeOf(byte) {
  const all = parts.area.value;
  const before = new TextEncoder().encode(all.trim()).subarray(0, byte - 1);
  return Math.min(all.length, all.length - all.trimStart().length + new TextDecoder().decode(before).length);
}

function fail(error, several = false) {
  parts.error.hidden = false;
  parts.error.replaceChildren(el('pre', {}, error.message));
  const place = /\bposition (\d+)/i.exec(error.message);
  if (place && !several) {
    const at = placeOf(Number(place[1]));
    parts.error.append(
      button('Go to the place', {
        text: 'Go to the place',
        class: 'link',
        onclick: () => {
          parts.area.focus();
          parts.area.setSelectionRange(at, at + 1);
        },
      }),
    );
  }
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
  const sql = parts.area.value.trim();
  const every = statementsOf(sql);
  if (!every.length) return sayNone();
  // the step that led to this view is that of the first statement run in it, too: the way back shows something else
  change({ sql }, now.sql === sql || !now.sql ? 'replace' : 'push');
  const mine = begin();
  const began = performance.now();
  let at = 0;
  const tell = () => {
    const seconds = Math.round((performance.now() - began) / 1000);
    parts.said.textContent = `Running${every.length > 1 ? ` statement ${at + 1} of ${every.length}` : ''}…${seconds ? ` ${seconds} s` : ''}`;
  };
  const clock = setInterval(tell, 1000);
  tell();
  try {
    const extra = usedParams().map(([name, value]) => `&param_${encodeURIComponent(name)}=${encodeURIComponent(typeof value === 'string' ? value : JSON.stringify(value))}`);
    const database = now.database ? `&database=${encodeURIComponent(now.database)}` : '';
    const together = every.length > 1 ? `&session_id=${session}` : '';
    const ask = (body, settings) => send(`/?${settings}${database}${together}${extra.join('')}`, { method: 'POST', body, headers: { 'Content-Type': 'text/plain; charset=utf-8' }, signal: mine.signal });
    let text = '';
    // a single statement goes as it is, so that places in it are those of the editor
    for (; at < every.length; at++) text = await (await ask(every.length > 1 ? every[at] : sql, SETTINGS)).text();
    parts.beside.ran(sql);
    const last = every.at(-1);
    show(text, performance.now() - began, last, (format) => ask(last, `default_format=${format}`));
  } catch (error) {
    if (running !== mine) return;
    parts.said.textContent = mine.signal.aborted ? 'Stopped.' : every.length > 1 ? `Statement ${at + 1} of ${every.length} failed; those before it have been run.` : '';
    if (!mine.signal.aborted) fail(error, every.length > 1);
  } finally {
    clearInterval(clock);
    end(mine);
  }
}

/** `again(format)` runs the statement once more for a file. */
function show(text, milliseconds, sql, again) {
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
    parts.out.replaceChildren(toolsOf(answer, sql, again), resultTable(answer, currentTable, searchBy));
  } else {
    parts.said.textContent = `Done · ${time}`;
    parts.out.replaceChildren(...(text.trim() ? [el('pre', { class: 'plan raw', tabindex: 0 }, text)] : []));
  }
}

/** What can be done with a result: a file, a chart, and its rows as pictures or on the map. */
function toolsOf(answer, sql, again) {
  const place = el('div', { class: 'sql-extra' });
  const save = async (format, ending) => {
    try {
      saveFile(await (await again(format)).blob(), `result.${ending}`);
    } catch (error) {
      fail(error, true);
    }
  };
  const reads = /^\s*(\(|SELECT|WITH|FROM|SHOW|DESC|EXPLAIN)/i.test(sql);
  const files = reads ? Object.entries(FILES).map(([name, [format, ending]]) => button(`Download ${name}`, { icon: 'download', text: name, class: 'tool', title: `Run it again for a ${name} file`, onclick: () => save(format, ending) })) : [];
  const chart = () => place.replaceChildren(...(place.firstChild ? [] : [chartOf(answer) ?? el('p', { class: 'quiet' }, 'A chart needs two rows or more and a column of numbers.')]));
  const ids = answer.data.map((row) => row[answer.meta.findIndex((column) => column.name === '_row')]).filter((id) => id !== undefined);
  const shows = ids.length && currentTable && sql.includes(currentTable.name);
  const rows = (view) => change({ view, words: '', weight: 1, terms: [], filters: [], where: `_row IN (${ids.slice(0, MOST_SHOWN).join(', ')})`, score: null, row: null });
  const ways = shows ? [button('As pictures', { icon: 'grid', text: 'As pictures', class: 'tool', onclick: () => rows('pictures') }), button('On the map', { icon: 'map', text: 'On the map', class: 'tool', onclick: () => rows('map') })] : [];
  return el('div', {}, el('div', { class: 'buttons' }, button('Chart', { icon: 'bars', text: 'Chart', class: 'tool', onclick: chart }), ...ways, ...files), place);
}

/** A statement that searches the open table by a vector of a result. */
function searchBy(vector) {
  const column = currentTable?.vectors.find((one) => one.dimension === vector.length);
  if (!column) {
    parts.said.textContent = `No vector column of the table chosen has ${count(vector.length)} numbers.`;
    return;
  }
  const plain = ['_row', currentTable.picture?.column, currentTable.caption].filter(Boolean).map(quoted);
  const source = sourceOf({ database: currentTable.database, table: currentTable.name });
  const sql = `SELECT ${plain.join(', ')}, cosineDistance(${quoted(column.column)}, {vector:Array(Float32)}) AS distance\nFROM ${source}\nORDER BY distance\nLIMIT 20`;
  openInSql(sql, { vector });
  parts.area.value = sql;
  parts.highlight.draw();
  runIt();
}

async function explainIt() {
  const sql = parts.area.value.trim();
  if (!statementsOf(sql).length) return sayNone();
  const mine = begin();
  try {
    const body = { sql, database: now.database ?? 'default', params: Object.fromEntries(usedParams()) };
    const { plan } = await call('/api/explain', { body, signal: mine.signal });
    parts.out.replaceChildren(el('h3', {}, 'How it is run'), planOf(plan));
  } catch (error) {
    if (running !== mine) return;
    if (mine.signal.aborted) parts.said.textContent = 'Stopped.';
    else fail(error);
  } finally {
    end(mine);
  }
}
