/**
 * Facets: the values that the rows which match now have, and histograms of their numbers; a click or a brush filters. What
 * must stay true: what is drawn belongs to the newest question.
 */

import { call } from './api.js';
import { openDialog } from './dialogs.js';
import { byId, count, el, plural } from './dom.js';
import { whereOf } from './filters.js';
import { change, now, watch } from './state.js';

const CALM_MS = 200;
const lookedFor = new Map(); // of a column of many values, what was typed

let place = null;
let currentTable = () => null;
let newest = null;
let asked = null;

/** `table()` gives what is known of the table shown. */
export function makeFacets(table) {
  currentTable = table;
  watch(() => place?.isConnected && ask());
}

/** Opens the panel, which follows the search while it is open. */
export function openFacets() {
  place = el('div', { class: 'facets' }, el('p', { class: 'quiet' }, 'Counting…'));
  asked = null;
  change({}, 'step');
  byId('facets').setAttribute('aria-expanded', 'true');
  openDialog('Facets', [place], { style: 'side', onclose: () => byId('facets').setAttribute('aria-expanded', 'false') });
  ask();
}

async function ask() {
  const table = currentTable();
  if (!table) return;
  const body = { table: table.name, database: table.database, where: whereOf(now, table), safe: now.safe === 'safe' };
  if (JSON.stringify(body) === asked) return;
  asked = JSON.stringify(body);
  const mine = (newest = Symbol('facets'));
  let found;
  try {
    found = await call('/api/facets', { body });
  } catch (error) {
    if (mine !== newest) return;
    asked = null; // what failed is asked again
    place.replaceChildren(el('p', { class: 'filter-error' }, error.message));
    return;
  }
  if (mine !== newest) return;
  const focused = place.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  place.replaceChildren(
    el('p', { class: 'quiet', role: 'status' }, `${count(found.matching)} of ${plural(found.rows, 'row')} match${found.hidden ? `, ${count(found.hidden)} hidden by Safe` : ''}`),
    ...found.columns.map((facet) => drawn(facet, table)).filter(Boolean),
    ...(found.many ?? []).map((name) => searched(name, body)),
    ...(found.columns.length || found.many?.length ? [] : [el('p', { class: 'quiet' }, 'No column of this table has values by which rows could be told apart in groups.')]),
  );
  if (focused) [...place.querySelectorAll('button, input')].find((node) => node.dataset.key === focused)?.focus();
}

function drawn(facet, table) {
  const column = table.columns.find((one) => one.name === facet.name);
  if (!column) return null;
  const content = facet.bins ? histogram(facet, column) : values(facet, column);
  return el('section', { class: 'facet', 'aria-label': facet.name }, el('h3', {}, facet.name), content);
}

/** Of a column of many values those that contain what is typed. */
function searched(name, body) {
  const key = JSON.stringify([body.database, body.table, name]);
  const lines = el('div', { class: 'facet', role: 'group', 'aria-label': `Values of ${name}` });
  const field = el('input', { type: 'search', value: lookedFor.get(key) ?? '', placeholder: 'Find a value', 'aria-label': `Find a value of ${name}`, autocomplete: 'off', spellcheck: 'false', dataset: { key: `${name}?` } });
  let calm = 0;
  let latest = null;
  const find = async () => {
    const mine = (latest = Symbol('values'));
    const part = field.value.trim();
    if (!part) return lines.replaceChildren();
    try {
      const { columns } = await call('/api/facets', { body: { ...body, values_of: name, containing: part } });
      const column = currentTable()?.columns.find((one) => one.name === name);
      if (mine !== latest || !column) return;
      lines.replaceChildren(...(columns[0].values.length ? values(columns[0], column).flat().filter(Boolean) : [el('p', { class: 'quiet', role: 'status' }, 'No value has that in it.')]));
    } catch (error) {
      if (mine === latest) lines.replaceChildren(el('p', { class: 'filter-error' }, error.message));
    }
  };
  field.addEventListener('input', () => {
    lookedFor.set(key, field.value); // kept at once: the panel may be drawn anew meanwhile
    clearTimeout(calm);
    calm = setTimeout(find, CALM_MS);
  });
  if (field.value) find();
  return el('section', { class: 'facet', 'aria-label': name }, el('h3', {}, name), field, lines);
}

const without = (column, ops) => now.filters.filter((filter) => !(filter.column === column.name && ops.includes(filter.op)));

/** One bar can be reached with Tab; arrows go to the others. */
function stepBar(event, bars) {
  const at = bars.indexOf(event.target);
  const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: bars.length - 1 }[event.key];
  if (at < 0 || !bars[to]) return;
  event.preventDefault();
  bars[at].tabIndex = -1;
  bars[to].tabIndex = 0;
  bars[to].focus();
}

/** A value a line, with a bar; pressed again, it is free again. */
function values(facet, column) {
  const op = column.kind === 'bool' ? 'is' : 'eq';
  const most = Math.max(1, ...facet.values.map((one) => one.rows));
  const lines = facet.values.map(({ value, rows }) => {
    const text = value === null ? 'NULL' : value === '' ? 'empty' : String(value);
    const isOn = () => now.filters.some((filter) => filter.column === column.name && filter.op === op && filter.value === String(value));
    const toggle = () => change({ filters: isOn() ? without(column, [op]) : [...without(column, [op]), { column: column.name, op, value: String(value) }] }, 'replace');
    const line = el(
      'button',
      { type: 'button', class: 'facet-value', 'aria-pressed': String(isOn()), disabled: value === null || value === '', onclick: toggle, dataset: { key: `${column.name}=${text}` } },
      el('span', { class: 'facet-name', dir: 'auto' }, text),
      el('span', { class: 'facet-rows' }, count(rows)),
    );
    line.style.setProperty('--part', rows / most);
    return line;
  });
  return [lines, facet.others ? el('p', { class: 'quiet' }, facet.more ? 'and many others' : `and ${plural(facet.others, 'other value')}`) : null];
}

/** Bars that a pointer is drawn over, or that are pressed one by one; the range between the ends is the filter. */
function histogram(facet, column) {
  const { least, most, bins } = facet;
  const width = (most - least) / bins.length;
  const edge = (i) => (i === 0 ? least : i === bins.length ? most : Number((least + i * width).toPrecision(7)));
  const shown = (number, up) => (column.kind === 'date' ? new Date((up ? Math.ceil(number) : Math.floor(number)) * 864e5).toISOString().slice(0, 10) : String(number));
  // what is read is short, what filters is exact
  const told = (number, up) => (column.kind === 'date' || Number.isInteger(number) ? shown(number, up) : String(Number(number.toPrecision(4))));
  const set = (from, to) => {
    const [low, high] = [Math.min(from, to), Math.max(from, to) + 1];
    const ends = [{ column: column.name, op: 'ge', value: shown(edge(low), false) }, { column: column.name, op: 'le', value: shown(edge(high), true) }];
    change({ filters: [...without(column, ['ge', 'le']), ...ends] }, 'replace');
  };
  const highest = Math.max(1, ...bins);
  let from = null;
  const bars = bins.map((rows, i) => {
    const label = `${column.name} from ${told(edge(i), false)} to ${told(edge(i + 1), true)}: ${plural(rows, 'row')}`;
    const bar = el('button', { type: 'button', class: 'facet-bar', title: label, 'aria-label': label, tabindex: i === 0 ? 0 : -1, onclick: (event) => event.detail === 0 && set(i, i), dataset: { key: `${column.name}#${i}` } });
    bar.style.setProperty('--part', rows / highest);
    bar.addEventListener('pointerdown', (event) => {
      from = i;
      bar.releasePointerCapture(event.pointerId); // a finger would keep it, and the end of the brush is another bar
    });
    bar.addEventListener('pointerenter', () => from !== null && bars.forEach((one, n) => one.classList.toggle('brushed', n >= Math.min(from, i) && n <= Math.max(from, i))));
    bar.addEventListener('pointerup', () => {
      if (from !== null) set(from, i);
      from = null;
    });
    return bar;
  });
  const free = without(column, ['ge', 'le']).length !== now.filters.length ? el('button', { type: 'button', class: 'link', onclick: () => change({ filters: without(column, ['ge', 'le']) }, 'replace'), dataset: { key: `${column.name}#all` } }, 'all') : null;
  return [el('div', { class: 'facet-bars', role: 'group', 'aria-label': `Histogram of ${column.name}`, onkeydown: (event) => stepBar(event, bars) }, bars), el('p', { class: 'quiet facet-ends' }, el('span', {}, told(least, false)), free, el('span', {}, told(most, true)))];
}
