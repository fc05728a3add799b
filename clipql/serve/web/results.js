/**
 * The search that is shown and its rows, page after page. What must stay true: a reply that is not to the newest search
 * is dropped, and no id is shown twice, however the pages overlap.
 */

import { ApiError, call, send } from './api.js';
import { isAddress } from './dom.js';
import { whereOf } from './filters.js';
import { now, parts } from './state.js';
import { catalog } from './tables.js';
import { pictureFor } from './uploads.js';

const FIRST = 40;
const MORE = 80;
const KEPT_SEARCHES = 10;

/** What is known of the search shown. `rows` holds every row received once, in order. */
export const results = { rows: [], offset: 0, more: false, sql: '', params: {}, plan: [], exact: true, ms: null, state: null, table: null };

const seen = new Set();
const kept = new Map(); // a search's key → its results and how far they were scrolled, for the way back
let controller = null;
let answered = null; // the controller of the search whose rows these are
let running = null;

/** The parts of the state that decide which rows there are; where this stays the same nothing is searched again. */
export function keyOf(state) {
  const { database, table, column, model, words, weight, terms, filters, where, safe, fold, hybrid, score, recall } = state;
  const hidden = safe === 'safe';
  return JSON.stringify([database, table, column, model, words.trim(), weight, terms, filters, where.trim(), hidden, fold, hybrid, score, recall]);
}

/** A picture of the query that this tab does not have: its link came from elsewhere. */
export class MissingPicture extends Error {}

/** The answer is of another table than the one that is known by this name. */
export class ChangedTable extends Error {}

/** An address where words are asked for: no model knows what is behind it. */
export class AddressAsWords extends Error {}

/** The body of POST /api/search: JSON, or a form where pictures go along. */
export async function requestBody(state, table, rest) {
  const form = new FormData();
  const terms = [];
  for (const part of parts(state)) {
    if (part.kind === 'text') {
      if (isAddress(part.text)) throw new AddressAsWords(part.text);
      terms.push({ text: part.text, weight: part.weight });
    }
    else if (part.kind === 'row') terms.push({ id: part.id, weight: part.weight });
    else if (part.kind === 'address') terms.push({ url: part.address, weight: part.weight });
    else {
      const blob = await pictureFor(part.key);
      if (!blob) throw new MissingPicture(part.key);
      form.set(part.key, blob, 'picture');
      terms.push({ upload: part.key, weight: part.weight });
    }
  }
  const query = {
    database: state.database ?? table.database,
    table: table.name,
    column: state.column ?? table.vectors[0]?.column ?? null,
    model: state.model,
    where: whereOf(state, table),
    safe: state.safe === 'safe',
    recall: typeof state.recall === 'number' ? state.recall : null,
    exact: state.recall === 'exact',
    hybrid: wordsToo(state, terms),
    score: scoreIn(state, table),
    fold: wordsToo(state, terms) ? null : state.fold,
    terms,
    ...rest,
  };
  if ([...form.keys()].length === 0) return query;
  form.set('query', JSON.stringify(query));
  return form;
}

/** Whether the words themselves are looked for, too: of one text, which is not weighed against anything. */
function wordsToo(state, terms) {
  return state.hybrid && terms.length === 1 && terms[0].text !== undefined && terms[0].weight === 1;
}

const missing = new Map(); // a column and what is to read words for it → the error that said that no model is at hand
const looked = new Set(); // the ids of tables for which the tables were asked for anew

const lackOf = (state, table) => JSON.stringify([table.database, table.name, state.column, state.model]);

/** A model may be at hand by now. */
export const forgetMissing = () => missing.clear();

/** Of a search that a model must read: what it failed with before, which it would again. Throws ApiError. */
function failAgain(state, table) {
  const error = missing.get(lackOf(state, table));
  if (error && parts(state).some((part) => part.kind !== 'row')) throw error;
}

/** Searches anew. Gives true where its rows are now `results`, false where a newer search has overtaken it. */
export async function search(state, table) {
  controller?.abort();
  const mine = (controller = new AbortController());
  running = null;
  let body;
  try {
    body = await requestBody(state, table, { k: FIRST, offset: 0 });
  } catch (error) {
    if (mine !== controller) return false;
    throw error;
  }
  if (mine !== controller) return false;
  failAgain(state, table);
  let reply;
  try {
    reply = await call('/api/search', { body, signal: mine.signal });
  } catch (error) {
    if (error.model !== undefined) missing.set(lackOf(state, table), error);
    if (mine !== controller) return false;
    throw error;
  }
  if (mine !== controller) return false;
  // once for each: a server of several processes may tell of a table later than it searches it
  if (reply.table_id && reply.table_id !== table.table_id && !looked.has(reply.table_id)) {
    looked.add(reply.table_id);
    throw new ChangedTable(table.name);
  }
  answered = mine;
  seen.clear();
  Object.assign(results, { rows: unseen(reply.rows), offset: reply.rows.length, state, table });
  takeRest(reply);
  return true;
}

/** The next page's new rows; [] at the end, null where a search or a page is on its way already, or one has begun since. */
export async function nextPage(k = MORE) {
  // a page of the search before must not end up among the rows of the one on its way
  if (running || controller !== answered) return null;
  if (!results.more || !results.state) return [];
  const mine = controller;
  const page = (running = Symbol('page'));
  try {
    const body = await requestBody(results.state, results.table, { k, offset: results.offset });
    const reply = await call('/api/search', { body, signal: mine.signal });
    if (mine !== controller) return null;
    const fresh = unseen(reply.rows);
    results.rows.push(...fresh);
    results.offset += reply.rows.length;
    takeRest({ ...reply, sql: fromTheFirst(reply.sql), params: results.params, plan: results.plan, exact: results.exact, ms: results.ms });
    if (reply.rows.length === 0) results.more = false;
    return fresh;
  } catch (error) {
    if (mine !== controller) return null;
    throw error;
  } finally {
    if (running === page) running = null;
  }
}

/** Keeps the search shown, which another is about to replace. `top`: how far it is scrolled. */
export function keep(top) {
  if (!results.state) return;
  const key = keyOf(results.state);
  kept.delete(key);
  kept.set(key, { ...results, top });
  if (kept.size > KEPT_SEARCHES) kept.delete(kept.keys().next().value);
}

/** The rows of searches that were kept may be others by now. */
export const forgetKept = () => kept.clear();

/** Makes a search that was kept the one shown; gives how far it was scrolled, null where it was not kept. */
export function bringBack(state) {
  const found = kept.get(keyOf(state));
  if (!found) return null;
  forget();
  const { top, ...all } = found;
  Object.assign(results, all, { state });
  unseen(all.rows);
  return top;
}

/** Forgets the search, so that none is shown. */
export function forget() {
  controller?.abort();
  answered = controller = new AbortController();
  seen.clear();
  Object.assign(results, { rows: [], offset: 0, more: false, sql: '', params: {}, plan: [], exact: true, ms: null, state: null, table: null });
}

function unseen(rows) {
  return rows.filter((row) => !seen.has(row.id) && seen.add(row.id));
}

function takeRest({ more, sql, params, plan, exact, ms }) {
  Object.assign(results, { more: Boolean(more), sql: sql ?? '', params: params ?? {}, plan: plan ?? [], exact: exact ?? true, ms: ms ?? null });
}

/** The similarity of a row to what is searched for; null where nothing is, or rows are ranked by something else, too. */
export const similarityOf = (row) => (results.state && parts(results.state).length && !rankedByWords(results.state) && !scoreIn(results.state, results.table) && typeof row?.distance === 'number' ? 1 - row.distance : null);

/** The column mixed into the order, where the table has it and words do not rank; else null. */
export function scoreIn(state, table) {
  const column = table?.columns.find((one) => one.name === state.score?.column);
  return column?.kind === 'number' && !rankedByWords(state) ? state.score : null;
}

/** Whether the words themselves are looked for, too: of one text, which is not weighed against anything. */
export function rankedByWords(state) {
  const [first, ...others] = parts(state);
  return state.hybrid && !others.length && first?.kind === 'text' && first.weight === 1;
}

const within = (row) => now.cut === null || (similarityOf(row) ?? 1) >= now.cut;

/** The rows that are as similar as the cut-off asks: as they come nearest first, the first of them. */
export const shownRows = () => results.rows.filter(within);

/** Whether rows to come may be shown. */
export const goesOn = () => results.more && (!results.rows.length || within(results.rows.at(-1)));

/** How many of the rows are not almost the same as one before them. */
export const distinct = () => shownRows().filter((row) => row.duplicate_of === null).length;

/** The most rows that a file of the search shown may have; folding compares every two of them. */
export const mostInFile = () => (results.state?.fold ? catalog.most.search : catalog.most.file);

/** A page's statement as that of all pages up to it. */
const fromTheFirst = (sql) => sql.replace(/ LIMIT (\d+) OFFSET (\d+)((?: SETTINGS .*)?)$/, (_, rows, before, rest) => ` LIMIT ${Number(rows) + Number(before)}${rest}`);

/** The statement that gives the rows shown. */
export const shownSql = () => (now.cut === null ? results.sql : results.sql.replace(/ LIMIT \d+((?: SETTINGS .*)?)$/, ` LIMIT ${shownRows().length}$1`));

/** All rows as JSON, asked for page by page, since one reply has no more than a search may. */
async function downloadJson(state, table, rows) {
  const found = { sql: '', params: {}, rows: [] };
  let more = true;
  for (let offset = 0; more && offset < rows; ) {
    const k = Math.min(catalog.most.search, rows - offset);
    const reply = await call('/api/search', { body: await requestBody(state, table, { k, offset }) });
    Object.assign(found, { sql: fromTheFirst(reply.sql), params: reply.params });
    found.rows.push(...reply.rows.filter((row) => row.duplicate_of === null));
    more = reply.more && reply.rows.length > 0;
    offset += reply.rows.length;
  }
  return new Blob([JSON.stringify(found, null, 1)], { type: 'application/json' });
}

/** The rows of the search shown as a file; of those that are almost the same, where they are folded, the first. Throws ApiError. */
export async function download(format, rows) {
  if (!results.state) throw new ApiError('There is nothing to export yet.', 0);
  if (format === 'JSON') return downloadJson(results.state, results.table, rows);
  const body = await requestBody(results.state, results.table, { k: rows, offset: 0, format });
  const form = body instanceof FormData;
  const response = await send('/api/search', {
    method: 'POST',
    body: form ? body : JSON.stringify(body),
    headers: form ? {} : { 'Content-Type': 'application/json' },
  });
  return response.blob();
}
