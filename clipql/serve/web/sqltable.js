/** The result of a statement as a table; pictures are shown where a column holds their addresses. */

import { button, count, el, picture, webAddress, webLink } from './dom.js';
import { tableBehind } from './sqlrows.js';

const AT_ONCE = 200; // rows; the rest on request, so that a long result does not stop the page
const LONGEST_TEXT = 400;
const FOLDED = 16; // numbers, from which on a list is shown as a vector

const NUMBER = /^(Nullable\()?(U?Int|Float|Decimal|BFloat)/;
const PICTURE_NAME = /url|image|picture|photo|thumb|src/i;
const PICTURE_END = /\.(jpe?g|png|webp|gif|avif|svg)([?#]|$)/i;

/** `searchBy(vector, origin)` is what a folded vector offers. `answer` is ClickHouse's JSONCompact; `origins`: what its columns come from. */
export function resultTable(answer, origins, searchBy) {
  const kinds = answer.meta.map((column, i) => kindOf(column, i, answer.data));
  const thumbs = answer.meta.map((_, i) => thumbnailsOf(i, origins));
  const body = el('tbody');
  const head = el('tr', {}, answer.meta.map((column, i) => el('th', { scope: 'col', class: kinds[i] === 'number' ? 'number' : null, title: column.type }, button(column.name, { text: column.name, class: 'sort', title: `${column.type}; sort by it`, onclick: () => sort(i) }))));
  const place = el('div', { class: 'sql-table', tabindex: 0, role: 'region', 'aria-label': 'Result' }, el('table', {}, el('thead', {}, head), body));
  const whole = el('div', {}, place);
  let shown = 0;
  let data = answer.data;
  const rest = button('Show more rows', { text: 'Show more rows', class: 'tool', onclick: more });
  function more() {
    const rows = data.slice(shown, shown + AT_ONCE);
    body.append(...rows.map((row) => el('tr', {}, row.map((value, i) => cell(value, kinds[i], thumbs[i]?.(row), (vector) => searchBy(vector, origins[i]))))));
    shown += rows.length;
    if (shown >= answer.data.length) rest.remove();
    else {
      rest.textContent = `Show more of ${count(answer.data.length)} rows`;
      whole.append(rest);
    }
  }
  /** Up, then down, then as they came. */
  function sort(i) {
    const heads = [...head.children];
    const way = { undefined: 'ascending', ascending: 'descending' }[heads[i].getAttribute('aria-sort') ?? undefined];
    for (const one of heads) one.removeAttribute('aria-sort');
    if (way) heads[i].setAttribute('aria-sort', way);
    data = way ? [...answer.data].sort((a, b) => compare(a[i], b[i], kinds[i], way === 'ascending' ? 1 : -1)) : answer.data;
    body.replaceChildren();
    shown = 0;
    more();
  }
  more();
  if (!answer.data.length) whole.append(el('p', { class: 'quiet' }, 'No rows.'));
  return whole;
}

/** A number as it is compared: ids are text, as numbers of 64 bits, and so are inf and nan. */
const numberOf = (value) => (typeof value === 'string' && /^-?\d+$/.test(value) ? BigInt(value) : Number(String(value).replace(/inf$/i, 'Infinity')));

/** `way`: 1 or -1. NULLs and NaN come last in either. */
function compare(a, b, kind, way) {
  const of = (value) => (kind === 'number' ? numberOf(value) : typeof value === 'object' ? JSON.stringify(value) : String(value));
  const missing = (value) => (value === null ? 2 : Number.isNaN(of(value)) ? 1 : 0);
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  const [x, y] = [of(a), of(b)];
  return x < y ? -way : x > y ? way : 0;
}

function kindOf(column, i, data) {
  if (NUMBER.test(column.type)) return 'number';
  const sample = data.slice(0, 20).map((row) => row[i]).filter((value) => webAddress(value));
  if (sample.length && (PICTURE_NAME.test(column.name) || sample.some((value) => PICTURE_END.test(value)))) return 'picture';
  return 'text';
}

/** What gives the server's thumbnail for a column of picture files, where the result has the numbers of the same rows; null for any other column. */
function thumbnailsOf(i, origins) {
  const origin = origins[i];
  const picture = tableBehind(origin)?.picture;
  if (picture?.kind !== 'file' || picture.column !== origin.name) return null;
  const id = origins.findIndex((one) => one?.name === '_row' && one.source === origin.source);
  if (id < 0) return null;
  const folder = `./api/thumbnail/${encodeURIComponent(origin.database)}/${encodeURIComponent(origin.table)}`;
  return (row) => `${folder}/${encodeURIComponent(row[id])}?size=128&of=${encodeURIComponent(origin.table_id)}`;
}

function cell(value, kind, thumbnail, searchBy) {
  if (value === null) return el('td', {}, el('i', { class: 'quiet' }, 'NULL'));
  if (Array.isArray(value) && value.length > FOLDED && value.every((one) => typeof one === 'number')) {
    const search = button('Search by this vector', { text: 'search by this', class: 'link', onclick: () => searchBy(value) });
    return el('td', { title: value.slice(0, 8).join(', ') }, `[${count(value.length)} numbers]`, ' · ', search);
  }
  const address = kind === 'picture' ? webAddress(value) : null;
  const source = thumbnail ?? address;
  if (source) {
    const image = picture(source, '');
    const node = el('td', { class: 'cell-picture' }, image, webLink(value, value, { title: value }));
    image.addEventListener('error', () => image.remove());
    return node;
  }
  if (typeof value === 'string' && webAddress(value)) return el('td', {}, webLink(value));
  const text = typeof value === 'object' ? JSON.stringify(value) : String(value);
  const short = text.length > LONGEST_TEXT;
  return el('td', { class: kind === 'number' ? 'number' : null, dir: 'auto', title: short ? text.slice(0, 4000) : null }, short ? `${text.slice(0, LONGEST_TEXT)}…` : text);
}
