/**
 * Pictures that are picked, and the tray of what can be done with them. What must stay true: picks are of one table and
 * last through searches; a statement names a picked row by its number and by what the page shows of it, so that a row
 * that has another number by now is left alone; nothing is deleted while it can still be taken back.
 */

import { call, send } from './api.js';
import { copyButton, openDialog, saveFile } from './dialogs.js';
import { announce, byId, button, count, el, plural, webAddress } from './dom.js';
import { picked, tellPicks } from './picks.js';
import { change } from './state.js';
import { catalog, loadCatalog, quoted } from './tables.js';

const UNDO_SECONDS = 8;
const MOST_TERMS = 32; // parts of one query
const FORMATS = { CSV: ['CSVWithNames', 'csv'], JSON: ['JSONEachRow', 'jsonl'], Parquet: ['Parquet', 'parquet'], Arrow: ['Arrow', 'arrow'] };

let list = null;
let table = () => null;
let rowOf = () => null;
let changed = () => {};
let owner = null; // the table that the picks are of
let last = null;
let tray = null;

/** `node`: the grid. `currentTable()`, `row(id)` of those shown, `anew()`: rows are others than before. */
export function makeSelection(node, currentTable, row, anew) {
  [list, table, rowOf, changed] = [node, currentTable, row, anew];
  tray = el('section', { class: 'tray', id: 'tray', 'aria-label': 'Picked pictures', hidden: true });
  document.body.append(tray);
}

/** Picks a picture, or takes the pick back. `range`: and all from the last one to it. */
export function pick(id, range = false) {
  takeOwner();
  const ids = [...list.querySelectorAll('.tile[data-id]')].map((tile) => tile.dataset.id);
  const [from, to] = [ids.indexOf(last), ids.indexOf(id)].sort((a, b) => a - b);
  if (range && from >= 0) for (const one of ids.slice(from, to + 1)) add(one);
  else if (!picked.delete(id)) add(id);
  last = id;
  draw();
}

function add(id) {
  const row = rowOf(id);
  if (row) picked.set(id, row);
}

/** Picks rows besides those that are picked already. */
export function pickRows(rows) {
  takeOwner();
  for (const row of rows) picked.set(row.id, row);
  draw();
}

/** Picks pictures that are shown, by their ids. */
export function pickShown(ids) {
  takeOwner();
  for (const id of ids) add(id);
  draw();
}

function takeOwner() {
  if (owner === table()) return;
  picked.clear();
  owner = table();
}

/** Marks the tiles that are picked, after others have been shown. */
export function mark() {
  if (picked.size && owner !== table()) draw();
  list.classList.toggle('picking', picked.size > 0);
  for (const tile of list.querySelectorAll('.tile[data-id]')) {
    const is = picked.has(tile.dataset.id);
    if (tile.classList.contains('picked') === is) continue;
    tile.classList.toggle('picked', is);
    tile.querySelector('.open')?.setAttribute('aria-pressed', String(is));
  }
}

function clear() {
  picked.clear();
  last = null;
  draw();
}

function draw() {
  takeOwner();
  tray.hidden = picked.size === 0;
  document.body.classList.toggle('with-tray', picked.size > 0);
  mark();
  tellPicks();
  if (tray.hidden) return;
  const tool = (label, icon, onclick) => button(label, { icon, text: label, class: 'tool', onclick });
  const writing = catalog.write ? [tool('Tag', 'plus', askTag), tool('Save as a table', 'stack', askTable), tool('Delete', 'minus', deleteSoon)] : [];
  tray.replaceChildren(
    el('span', { class: 'tray-count', role: 'status' }, `${count(picked.size)} picked`),
    el('div', { class: 'buttons' }, picked.size <= MOST_TERMS ? tool('More like these', 'like', likeThese) : null, tool('Save', 'download', askFile), ...writing),
    button('Pick none', { icon: 'close', onclick: clear }),
  );
}

function likeThese() {
  change({ words: '', weight: 1, terms: [...picked.keys()].map((id) => ({ kind: 'row', id, weight: 1 })), row: null });
}

/* ---------- SQL ---------- */

const text = (value) => `'${value.replace(/[\\']/g, '\\$&')}'`;
const source = () => `${quoted(owner.database)}.${quoted(owner.name)}`;

/** The column that tells a row whatever its number: the address of its picture, or its caption. */
const known = () => owner.picture?.column ?? owner.caption ?? null;

/** WHERE of some rows. */
function these(rows) {
  const column = known();
  const named = column && rows.every((row) => typeof row.values?.[column] === 'string');
  if (!named) return `_row IN (${rows.map((row) => row.id).join(', ')})`;
  return `(_row, ${quoted(column)}) IN (${rows.map((row) => `(${row.id}, ${text(row.values[column])})`).join(', ')})`;
}

async function run(sql, settings = '') {
  return send(`/?wait_end_of_query=1${settings}`, { method: 'POST', body: sql, headers: { 'Content-Type': 'text/plain; charset=utf-8' } });
}

/** A dialog with a field and a button; `does(value)` gives what to say when it is done. */
function ask(title, label, placeholder, does, more = []) {
  const field = el('input', { type: 'text', required: true, placeholder, autocomplete: 'off', spellcheck: 'false' });
  const said = el('p', { class: 'quiet', role: 'status' });
  const go = el('button', { type: 'submit', class: 'tool primary' }, title);
  const form = el('form', { class: 'ask' }, el('label', { class: 'field' }, `${label} `, field), go);
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    go.disabled = true;
    said.textContent = 'Working…';
    try {
      said.textContent = await does(field.value.trim());
    } catch (error) {
      said.textContent = error.message;
    }
    go.disabled = false;
  });
  openDialog(`${title}: ${plural(picked.size, 'picture')}`, [form, ...more, said]);
  field.focus();
}

function askTag() {
  const has = owner.columns.find((column) => column.name === 'tags');
  if (has && has.type !== 'Array(String)') {
    openDialog('Tag', [el('p', {}, `The table has a column tags of ${has.type} already, where tags would be Array(String).`)]);
    return;
  }
  const rows = [...picked.values()];
  ask('Tag', 'A word for them', 'keep', async (tag) => {
    if (!has) await run(`ALTER TABLE ${source()} ADD COLUMN IF NOT EXISTS tags Array(String)`);
    await run(`ALTER TABLE ${source()} UPDATE tags = arrayDistinct(arrayPushBack(tags, ${text(tag)})) WHERE ${these(rows)}`, '&mutations_sync=2');
    await anew();
    return `${plural(rows.length, 'picture')} tagged “${tag}”: the filter has(tags, ${text(tag)}) finds them.`;
  }, [el('p', { class: 'quiet' }, 'Tags are kept in the column tags of the table.')]);
}

function askTable() {
  const rows = [...picked.values()];
  ask('Save as a table', 'Its name', 'picked', async (name) => {
    await run(`CREATE TABLE ${quoted(owner.database)}.${quoted(name)} ENGINE = MergeTree ORDER BY tuple() AS SELECT * FROM ${source()} WHERE ${these(rows)}`);
    await anew();
    return `The table ${name} has ${plural(rows.length, 'row')}, with their vectors.`;
  });
}

function askFile() {
  const rows = [...picked.values()];
  const vectors = el('input', { type: 'checkbox', checked: true });
  const said = el('p', { class: 'quiet', role: 'status' });
  const save = (name, [format, ending]) =>
    button(name, {
      icon: 'download',
      text: name,
      class: 'tool',
      onclick: async () => {
        said.textContent = 'Collecting the rows…';
        const plain = owner.columns.filter((column) => vectors.checked || column.kind !== 'vector').map((column) => quoted(column.name));
        try {
          const reply = await run(`SELECT ${plain.join(', ')} FROM ${source()} WHERE ${these(rows)} ORDER BY _row FORMAT ${format}`);
          saveFile(await reply.blob(), `${owner.name}-picked.${ending}`);
          said.textContent = 'Saved.';
        } catch (error) {
          said.textContent = error.message;
        }
      },
    });
  const addresses = rows.map((row) => row.picture).filter((address) => webAddress(address));
  const all = addresses.join('\n');
  openDialog(`Save ${plural(rows.length, 'picture')}`, [
    el('label', { class: 'field' }, vectors, ' with their vectors'),
    el('div', { class: 'buttons' }, Object.entries(FORMATS).map(([name, form]) => save(name, form))),
    addresses.length ? el('div', { class: 'buttons' }, copyButton(() => all, `Copy ${plural(addresses.length, 'address', 'addresses')}`), button('As a list', { icon: 'download', text: 'As a list', class: 'tool', onclick: () => saveFile(new Blob([`${all}\n`], { type: 'text/plain' }), `${owner.name}-picked.txt`) })) : null,
    said,
  ]);
}

async function anew() {
  await loadCatalog();
  owner = catalog.tables.find((one) => one.name === owner.name && one.database === owner.database) ?? owner;
  changed();
}

/** Deletes what is picked when some seconds have gone by in which it can be taken back. */
function deleteSoon() {
  const [rows, where] = [[...picked.values()], these([...picked.values()])];
  const from = source();
  clear();
  for (const row of rows) list.querySelector(`.tile[data-id="${CSS.escape(row.id)}"]`)?.classList.add('going');
  let left = UNDO_SECONDS;
  const said = el('span', {});
  const box = el('section', { class: 'tray', 'aria-label': 'Deleting' }, said, button('Undo', { text: 'Undo', class: 'tool primary', onclick: () => end(false) }));
  const tick = setInterval(() => (left -= 1) > 0 ? say() : end(true), 1000);
  const say = () => (said.textContent = `${plural(rows.length, 'picture')} will be deleted from ${owner.name} in ${left} s.`);
  async function end(really) {
    clearInterval(tick);
    box.remove();
    for (const tile of list.querySelectorAll('.going')) tile.classList.remove('going');
    if (!really) return;
    try {
      await run(`DELETE FROM ${from} WHERE ${where}`);
      announce(`${plural(rows.length, 'picture')} deleted`);
    } catch (error) {
      openDialog('Nothing was deleted', [el('p', {}, error.message)]);
    }
    await anew();
  }
  say();
  document.body.append(box);
}
