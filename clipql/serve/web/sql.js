/** The SQL view: an editor with completion, what the statement gives as a table, its plan, and errors where they belong. */

import { call, send } from './api.js';
import { makeCompletion } from './completion.js';
import { copyButton, shortly } from './dialogs.js';
import { button, byId, count, el } from './dom.js';
import { makeHighlighter } from './highlight.js';
import { resultTable } from './sqltable.js';
import { change, now } from './state.js';
import { quoted, sourceOf } from './tables.js';

// ids are UInt64, which JavaScript's numbers cannot hold: as text they stay what they are
const SETTINGS = 'default_format=JSONCompact&output_format_json_quote_64bit_integers=1';

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
  byId('view-sql').replaceChildren(
    el('div', { class: 'sql' }, editor, given, el('div', { class: 'bar' }, run, plan, copyButton(() => area.value), el('kbd', { class: 'quiet' }, 'Ctrl + Enter'), el('span', { class: 'bar-gap' }), said), error, out),
  );
  parts = { area, paint, error, said, given, out, run, highlight: makeHighlighter(area, paint) };
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

function fail(error) {
  parts.error.hidden = false;
  parts.error.replaceChildren(el('pre', {}, error.message));
  const place = /\bposition (\d+)/i.exec(error.message);
  if (place) {
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

async function runIt() {
  const sql = parts.area.value.trim();
  if (!sql) return;
  running?.abort();
  const mine = (running = new AbortController());
  change({ sql }, now.sql === sql ? 'replace' : 'push');
  clear();
  parts.said.textContent = 'Running…';
  parts.run.lastChild.textContent = 'Stop';
  const began = performance.now();
  try {
    const extra = usedParams().map(([name, value]) => `&param_${encodeURIComponent(name)}=${encodeURIComponent(typeof value === 'string' ? value : JSON.stringify(value))}`);
    const database = now.database ? `&database=${encodeURIComponent(now.database)}` : '';
    const response = await send(`/?${SETTINGS}${database}${extra.join('')}`, { method: 'POST', body: sql, headers: { 'Content-Type': 'text/plain; charset=utf-8' }, signal: mine.signal });
    show(await response.text(), performance.now() - began);
  } catch (error) {
    parts.said.textContent = mine.signal.aborted ? 'Stopped.' : '';
    if (!mine.signal.aborted) fail(error);
  } finally {
    if (running === mine) {
      running = null;
      parts.run.lastChild.textContent = 'Run';
    }
  }
}

function show(text, milliseconds) {
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
    parts.out.replaceChildren(resultTable(answer, currentTable));
  } else {
    parts.said.textContent = `Done · ${time}`;
    parts.out.replaceChildren(...(text.trim() ? [el('pre', { class: 'plan', tabindex: 0 }, text)] : []));
  }
}

async function explainIt() {
  const sql = parts.area.value.trim();
  if (!sql) return;
  clear();
  try {
    const body = { sql, database: now.database ?? 'default', params: Object.fromEntries(usedParams()) };
    const { plan } = await call('/api/explain', { body });
    parts.out.replaceChildren(el('h3', {}, 'How it is run'), el('pre', { class: 'plan', tabindex: 0 }, plan.join('\n')));
  } catch (error) {
    fail(error);
  }
}
