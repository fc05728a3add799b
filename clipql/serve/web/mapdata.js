/**
 * The points of a map: asked for, unpacked, and found again by their place. What must stay true: `ids` ascend, and are the
 * numbers of rows; a place is two whole numbers from 0 to 65,535.
 */

import { call, send } from './api.js';
import { whereOf } from './filters.js';
import { requestBody } from './results.js';
import { conditionOf } from './rowset.js';

const FINEST = 65535;
const SIDE = 128; // cells of the index, each way
const KEPT_ROWS = 4000;
const TYPES = { u4: Uint32Array, u2: Uint16Array, u1: Uint8Array, f4: Float32Array };

/** What decides which points there are. */
export function questionOf(state, table) {
  return { database: table.database, table: table.name, column: state.column ?? table.vectors[0]?.column, where: whereOf(state, table), safe: state.safe === 'safe' };
}

/** Points with `xy` (two numbers each), or `{stage}` while there are none better than `betterThan`. Throws ApiError. */
export async function fetchPoints(question, betterThan, signal) {
  const found = await reply({ ...question, better_than: betterThan }, signal);
  return found.stage === undefined ? indexed({ ...found, xy: found.places }) : found;
}

/** What a column has for each row, or how similar each is to the search (`column` null). */
export async function fetchValues(state, table, column, signal) {
  return reply(column === null ? await requestBody(state, table, { by_similarity: true }) : { ...questionOf(state, table), by: column }, signal);
}

async function reply(body, signal) {
  const form = body instanceof FormData;
  const response = await send('/api/projection', { method: 'POST', body: form ? body : JSON.stringify(body), headers: form ? {} : { 'Content-Type': 'application/json' }, signal });
  return response.status === 202 ? response.json() : unpacked(await response.arrayBuffer());
}

/** The header, with its arrays under their names and the rows' numbers as `ids`. */
export function unpacked(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let at = 4 + length;
  for (const { name, type } of head.arrays) {
    const numbers = head.count * (name === 'places' ? 2 : 1);
    head[name] = new TYPES[type](buffer, at, numbers);
    at += Math.ceil(head[name].byteLength / 4) * 4;
  }
  const ids = new Float64Array(head.count);
  let id = Number(head.first);
  for (let i = 0; i < head.count; i++) ids[i] = id += head.rows[i];
  return { ...head, ids };
}

const cellOf = (x, y) => ((y * SIDE) >> 16) * SIDE + ((x * SIDE) >> 16);

/** With which points lie in each cell of the plane. */
function indexed(points) {
  const { xy, count } = points;
  const starts = new Uint32Array(SIDE * SIDE + 1);
  for (let i = 0; i < count; i++) starts[cellOf(xy[2 * i], xy[2 * i + 1]) + 1]++;
  for (let i = 0; i < SIDE * SIDE; i++) starts[i + 1] += starts[i];
  const next = starts.slice();
  const members = new Uint32Array(count);
  for (let i = 0; i < count; i++) members[next[cellOf(xy[2 * i], xy[2 * i + 1])]++] = i;
  return { ...points, starts, members };
}

export const xOf = (points, i) => (points.xy[2 * i] / FINEST) * 2 - 1;
export const yOf = (points, i) => (points.xy[2 * i + 1] / FINEST) * 2 - 1;

/** Calls `each(i)` for the points of a rectangle, in [-1, 1], until it gives false. */
export function eachWithin(points, left, bottom, right, top, each) {
  const whole = (value) => Math.max(0, Math.min(FINEST, Math.floor(((value + 1) / 2) * FINEST)));
  const [x0, x1, y0, y1] = [whole(left), Math.min(FINEST, whole(right) + 1), whole(bottom), Math.min(FINEST, whole(top) + 1)];
  for (let row = (y0 * SIDE) >> 16; row <= (y1 * SIDE) >> 16; row++) {
    for (let column = (x0 * SIDE) >> 16; column <= (x1 * SIDE) >> 16; column++) {
      const cell = row * SIDE + column;
      for (let at = points.starts[cell]; at < points.starts[cell + 1]; at++) {
        const i = points.members[at];
        const [x, y] = [points.xy[2 * i], points.xy[2 * i + 1]];
        if (x >= x0 && x <= x1 && y >= y0 && y <= y1 && each(i) === false) return;
      }
    }
  }
}

/** The number of the point of a row, -1 where it has none. */
export function pointOf(points, id) {
  const wanted = Number(id);
  let [low, high] = [0, points.count - 1];
  while (low <= high) {
    const middle = (low + high) >> 1;
    if (points.ids[middle] === wanted) return middle;
    if (points.ids[middle] < wanted) low = middle + 1;
    else high = middle - 1;
  }
  return -1;
}

/** The points inside a line that is drawn around them, [x, y] in [-1, 1] each, ascending. */
export function inside(points, line) {
  const [xs, ys] = [line.map((one) => one[0]), line.map((one) => one[1])];
  const found = [];
  eachWithin(points, Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys), (i) => {
    const [x, y] = [xOf(points, i), yOf(points, i)];
    let within = false;
    for (let a = 0, b = line.length - 1; a < line.length; b = a++) {
      const [[ax, ay], [bx, by]] = [line[a], line[b]];
      if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) within = !within;
    }
    if (within) found.push(i);
  });
  return found.sort((a, b) => a - b);
}

const rows = new Map(); // of a table: id → row, as the grid has it

/** Rows that are known already, or null. */
export const knownRow = (table, id) => rows.get(table)?.get(String(id)) ?? null;

/** Remembers rows that came another way. */
export function learnRows(table, some) {
  if (!rows.has(table)) {
    rows.clear();
    rows.set(table, new Map());
  }
  const known = rows.get(table);
  if (known.size > KEPT_ROWS) known.clear();
  for (const row of some) known.set(row.id, row);
}

/** Rows by their numbers, in any order; `most`: of one request. */
export async function fetchRows(table, ids, most, signal) {
  const found = ids.map((id) => knownRow(table, id)).filter(Boolean);
  const wanted = ids.filter((id) => !knownRow(table, id));
  for (let at = 0; at < wanted.length; at += most) {
    const part = wanted.slice(at, at + most);
    const body = { database: table.database, table: table.name, where: [conditionOf(part)], safe: false, k: part.length };
    const { rows: fresh } = await call('/api/search', { body, signal });
    found.push(...fresh);
    learnRows(table, fresh);
  }
  return found;
}
