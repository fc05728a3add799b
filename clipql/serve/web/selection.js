/**
 * Pictures that are picked, and the tray of what can be done with them. What must stay true: picks are of one table and
 * last through searches, and what is done is done to that table, whichever is open by then; a statement names a picked row
 * by its number and by what the page shows of it, so that a row that has another number by now is left alone; nothing is
 * deleted while it can still be taken back.
 */

import { send } from './api.js';
import { copyButton, openDialog, saveFile } from './dialogs.js';
import { announce, button, count, el, plural, webAddress } from './dom.js';
import { fetchRows } from './mapdata.js';
import { picked, tellPicks } from './picks.js';
import { conditionOf, markOf, markSql } from './rowset.js';
import { change } from './state.js';
import { catalog, isSameTable, loadCatalog, quoted, tellChanged } from './tables.js';

const UNDO_SECONDS = 8;
const MOST_TERMS = 32; // parts of one query
const MOST_NAMED = 200; // rows that a statement names one by one; of more it compares a sum
const FORMATS = { CSV: ['CSVWithNames', 'csv'], JSON: ['JSONEachRow', 'jsonl'], Parquet: ['Parquet', 'parquet'], Arrow: ['Arrow', 'arrow'] };

let list = null;
let table = () => null;
let rowOf = () => null;
let owner = null; // the table that the picks are of
let last = null;
let tray = null;

/** `node`: the grid. `currentTable()`, `row(id)` of those shown. */
export function makeSelection(node, currentTable, row) {
  [list, table, rowOf] = [node, currentTable, row];
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

/**
 * Picks rows by their numbers besides those that are picked already; of many only what tells them from others is fetched.
 * Nothing is picked where another table has been opened meanwhile. Throws ApiError, and a RangeError.
 */
export async function pickIds(ids) {
  takeOwner();
  const of = owner;
  const rows = ids.length <= MOST_NAMED ? await fetchRows(of, ids, catalog.most.search) : await fetchMarks(of, ids);
  if (!isSameTable(of, table())) return;
  takeOwner();
  for (const row of rows) if (!picked.has(row.id)) picked.set(row.id, row);
  draw();
}

/** Of each row that is there: its number and its mark (`rowset.js`). */
async function fetchMarks(of, ids) {
  const column = known(of);
  const mark = column === null ? 'toUInt32(0)' : markSql(quoted(column));
  const reply = await run(`SELECT _row, ${mark} FROM ${source(of)} WHERE ${conditionOf(ids)} ORDER BY _row FORMAT RowBinary`);
  const view = new DataView(await reply.arrayBuffer());
  return Array.from({ length: view.byteLength / 12 }, (_, i) => ({ id: String(view.getBigUint64(12 * i, true)), mark: view.getUint32(12 * i + 8, true) }));
}

/** Picks pictures that are shown, by their ids. */
export function pickShown(ids) {
  takeOwner();
  for (const id of ids) add(id);
  draw();
}

function takeOwner() {
  if (!isSameTable(owner, table())) picked.clear();
  owner = table();
}

/** Marks the tiles that are picked, after others have been shown. */
export function mark() {
  if (picked.size && !isSameTable(owner, table())) draw();
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
    el('div', { class: 'buttons' }, picked.size <= MOST_TERMS ? tool('More like these', 'like', likeThese) : null, tool('Show', 'grid', showThese), tool('Save', 'download', askFile), ...writing),
    button('Pick none', { icon: 'close', onclick: clear }),
  );
}

function likeThese() {
  change({ words: '', weight: 1, terms: [...picked.keys()].map((id) => ({ kind: 'row', id, weight: 1 })), row: null });
}

function showThese() {
  try {
    change({ view: 'pictures', words: '', weight: 1, terms: [], filters: [], where: conditionOf([...picked.keys()]), score: null, row: null });
  } catch (error) {
    openDialog('Show', [el('p', {}, error.message)]);
  }
}

/* ---------- SQL ---------- */

const text = (value) => `'${value.replace(/[\\']/g, '\\$&')}'`;
const source = (of) => `${quoted(of.database)}.${quoted(of.name)}`;

/** The column that tells a row whatever its number: the address of its picture, or its caption. */
const known = (of) => of.picture?.column ?? of.caption ?? null;

/**
 * The picked rows as they are now. `where`: their condition; of many it is true of all of them or, where one of them has
 * another number by now, of none. `check()` gives how many of them are there, as they were; it throws an Error where none
 * is, or where of many not all are. Throws a RangeError.
 */
function chosen() {
  const [rows, of] = [[...picked.values()], owner];
  const column = known(of);
  const named = column !== null && rows.every((row) => typeof row.values?.[column] === 'string');
  if (named && rows.length <= MOST_NAMED) {
    const where = `(_row, ${quoted(column)}) IN (${rows.map((row) => `(${row.id}, ${text(row.values[column])})`).join(', ')})`;
    return { rows, of, where, check: () => countOf(of, where) };
  }
  const set = conditionOf(rows.map((row) => row.id));
  if (column === null || !rows.every((row) => row.mark !== undefined || typeof row.values?.[column] === 'string')) return { rows, of, where: set, check: () => countOf(of, set) };
  const sum = rows.reduce((found, row) => found + (row.mark ?? markOf(row.id, row.values[column])), 0);
  const same = `(SELECT count() = ${rows.length} AND sum(${markSql(quoted(column))}) = ${sum} FROM ${source(of)} WHERE ${set})`;
  const check = async () => {
    const reply = await run(`SELECT ${same}`);
    if ((await reply.text()).trim() !== '1') throw new Error(`The table ${of.name} has changed since these rows were picked, and some of them have another number or are gone. Pick them again.`);
    return rows.length;
  };
  return { rows, of, where: `${set} AND ${same}`, check };
}

/** How many rows meet a condition. Throws an Error where none does, and ApiError. */
async function countOf(of, where) {
  const reply = await run(`SELECT count() FROM ${source(of)} WHERE ${where}`);
  const found = Number(await reply.text());
  if (!found) throw new Error(`None of these rows is in the table ${of.name} any more, or each has another number. Pick them again.`);
  return found;
}

/** "3 pictures", and which of those picked it is not. */
const those = (there, rows, name = 'picture') => (there === rows.length ? plural(there, name) : `${count(there)} of ${plural(rows.length, name)} (the others are gone, or have another number)`);

async function run(sql, settings = '') {
  return send(`/?wait_end_of_query=1${settings}`, { method: 'POST', body: sql, headers: { 'Content-Type': 'text/plain; charset=utf-8' } });
}

/** A dialog with a field and a button; `does(value, chosen, there)` gives what to say when it is done. */
function ask(title, label, placeholder, does, more = []) {
  const field = el('input', { type: 'text', required: true, placeholder, autocomplete: 'off', spellcheck: 'false' });
  const said = el('p', { class: 'quiet', role: 'status' });
  const go = el('button', { type: 'submit', class: 'tool primary' }, title);
  const form = el('form', { class: 'ask' }, el('label', { class: 'field' }, `${label} `, field), go);
  const size = picked.size;
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    go.disabled = true;
    said.textContent = 'Working…';
    try {
      const these = chosen();
      const there = await these.check();
      said.textContent = await does(field.value.trim(), these, there);
    } catch (error) {
      said.textContent = error.message;
    }
    go.disabled = false;
  });
  openDialog(`${title}: ${plural(size, 'picture')}`, [form, ...more, said]);
  field.focus();
}

function askTag() {
  const has = owner.columns.find((column) => column.name === 'tags');
  if (has && has.type !== 'Array(String)') {
    openDialog('Tag', [el('p', {}, `The table has a column tags of ${has.type} already, where tags would be Array(String).`)]);
    return;
  }
  ask('Tag', 'A word for them', 'keep', async (tag, { rows, of, where }, there) => {
    if (!has) await run(`ALTER TABLE ${source(of)} ADD COLUMN IF NOT EXISTS tags Array(String)`);
    await run(`ALTER TABLE ${source(of)} UPDATE tags = arrayDistinct(arrayPushBack(tags, ${text(tag)})) WHERE ${where}`, '&mutations_sync=2');
    // the rows shown stay where they are, and have the tag
    for (const { values } of rows) if (values) values.tags = [...new Set([...(values.tags ?? []), tag])];
    await loadCatalog();
    return `${those(there, rows)} tagged “${tag}”: the filter has(tags, ${text(tag)}) finds them.`;
  }, [el('p', { class: 'quiet' }, 'Tags are kept in the column tags of the table.')]);
}

function askTable() {
  ask('Save as a table', 'Its name', 'picked', async (name, { rows, of, where }, there) => {
    await run(`CREATE TABLE ${quoted(of.database)}.${quoted(name)} ENGINE = MergeTree ORDER BY tuple() AS SELECT * FROM ${source(of)} WHERE ${where}`);
    await tellChanged();
    return `The table ${name} has ${those(there, rows, 'row')}, with their vectors.`;
  });
}

function askFile() {
  const [size, of] = [picked.size, owner];
  const vectors = el('input', { type: 'checkbox', checked: true });
  const said = el('p', { class: 'quiet', role: 'status' });
  /** A file of what `columns` are of the picked rows. */
  const collect = async (columns, format, ending) => {
    said.textContent = 'Collecting the rows…';
    try {
      const these = chosen();
      const there = await these.check();
      const reply = await run(`SELECT ${columns.map(quoted).join(', ')} FROM ${source(of)} WHERE ${these.where} ORDER BY _row FORMAT ${format}`);
      saveFile(await reply.blob(), `${of.name}-picked.${ending}`);
      said.textContent = there === these.rows.length ? 'Saved.' : `Saved: ${those(there, these.rows)}.`;
    } catch (error) {
      said.textContent = error.message;
    }
  };
  const plain = () => of.columns.filter((column) => vectors.checked || column.kind !== 'vector').map((column) => column.name);
  const save = (name, [format, ending]) => button(name, { icon: 'download', text: name, class: 'tool', onclick: () => collect(plain(), format, ending) });
  const rows = [...picked.values()];
  const addresses = rows.map((row) => row.picture).filter((address) => webAddress(address));
  const all = addresses.join('\n');
  const whole = rows.every((row) => row.values);
  const asList = () => (whole ? saveFile(new Blob([`${all}\n`], { type: 'text/plain' }), `${of.name}-picked.txt`) : collect([of.picture.column], 'TSVRaw', 'txt'));
  const listed = whole ? addresses.length > 0 : of.picture?.kind === 'url';
  openDialog(`Save ${plural(size, 'picture')}`, [
    el('label', { class: 'field' }, vectors, ' with their vectors'),
    el('div', { class: 'buttons' }, Object.entries(FORMATS).map(([name, form]) => save(name, form))),
    listed ? el('div', { class: 'buttons' }, whole ? copyButton(() => all, `Copy ${plural(addresses.length, 'address', 'addresses')}`) : null, button('Addresses as a list', { icon: 'download', text: 'Addresses as a list', class: 'tool', onclick: asList })) : null,
    said,
  ]);
}

/** Deletes what is picked when some seconds have gone by in which it can be taken back. */
function deleteSoon() {
  let these;
  try {
    these = chosen();
  } catch (error) {
    openDialog('Nothing was deleted', [el('p', {}, error.message)]);
    return;
  }
  const { rows, of, where, check } = these;
  clear();
  const going = new Set(rows.map((row) => row.id));
  for (const tile of list.querySelectorAll('.tile[data-id]')) tile.classList.toggle('going', going.has(tile.dataset.id));
  let left = UNDO_SECONDS;
  const said = el('span', {});
  const box = el('section', { class: 'tray', 'aria-label': 'Deleting' }, said, button('Undo', { text: 'Undo', class: 'tool primary', onclick: () => end(false) }));
  const tick = setInterval(() => (left -= 1) > 0 ? say() : end(true), 1000);
  const say = () => (said.textContent = `${plural(rows.length, 'picture')} will be deleted from ${of.name} in ${left} s.`);
  async function end(really) {
    clearInterval(tick);
    box.remove();
    for (const tile of list.querySelectorAll('.going')) tile.classList.remove('going');
    if (!really) return;
    try {
      const there = await check();
      await run(`DELETE FROM ${source(of)} WHERE ${where}`);
      announce(`${those(there, rows)} deleted`);
    } catch (error) {
      openDialog('Nothing was deleted', [el('p', {}, error.message)]);
    }
    await tellChanged();
  }
  say();
  document.body.append(box);
}
