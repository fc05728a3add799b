/**
 * What the points of a map are coloured by, and the legend that says it. What must stay true: the colours that are drawn and
 * the legend are of the same values.
 */

import { count, el } from './dom.js';
import { xOf, yOf } from './mapdata.js';

const TWELVE = ['#4269d0', '#e0a100', '#ef5a44', '#3aa89a', '#3c9b4a', '#ec6fa0', '#9558e6', '#6d9ee8', '#9c6b4e', '#8c8c00', '#127f94', '#b8500f'];
const OTHER = '#98948d';
const LIGHT = ['#d9d2c3', '#eeaa55', '#d1495b', '#7b2d8b', '#27124d']; // low to high, each away from the paper
const DARK = ['#454552', '#6a55a8', '#c94f80', '#f5a04c', '#fff0b3'];
const STEPS = 48;
const MOST_LISTED = 12;

const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

/** Whether the page is dark where a node is. */
export function isDark(node) {
  const [r, g, b] = getComputedStyle(node).color.match(/[\d.]+/g).map(Number);
  return r + g + b > 384;
}

function scaleOf(dark) {
  const stops = (dark ? DARK : LIGHT).map(rgb);
  return Array.from({ length: STEPS }, (_, step) => {
    const at = (step / (STEPS - 1)) * (stops.length - 1);
    const low = Math.min(stops.length - 2, Math.floor(at));
    return stops[low].map((value, i) => Math.round(value + (stops[low + 1][i] - value) * (at - low)));
  });
}

/** The region of each point, by the nearest label of the first level. */
function regions(points) {
  const places = points.labels.filter((label) => label.level === 0).slice(0, TWELVE.length);
  const codes = new Uint8Array(points.count);
  for (let i = 0; i < points.count; i++) {
    const [x, y] = [xOf(points, i), yOf(points, i)];
    let best = Infinity;
    places.forEach((place, at) => {
      const off = (place.x - x) ** 2 + (place.y - y) ** 2;
      if (off < best) [best, codes[i]] = [off, at + 1];
    });
  }
  return { codes, ids: points.ids, names: places.map((place) => place.text), regions: true };
}

/** Values for the points, from a reply about rows: null where a row has none, as it was asked for a moment later. */
function aligned(points, values) {
  const found = new Float64Array(points.count).fill(NaN);
  const given = values.codes ?? values.values;
  let at = 0;
  for (let i = 0; i < points.count; i++) {
    while (at < values.ids.length && values.ids[at] < points.ids[i]) at++;
    if (values.ids[at] === points.ids[i]) found[i] = given[at];
  }
  return found;
}

/** RGBA of each point, Uint8Array (4n). `values`: of the server, or null for regions. */
export function coloursOf(points, values, dark, opaque) {
  const given = values ?? (points.labels?.length ? regions(points) : null);
  const rgba = new Uint8Array(4 * points.count);
  const alpha = Math.round(255 * opaque);
  const other = rgb(OTHER);
  const hues = TWELVE.map(rgb);
  const scale = scaleOf(dark);
  const found = given ? aligned(points, given) : null;
  const width = given?.codes ? 1 : given?.high - given?.low || 1;
  for (let i = 0; i < points.count; i++) {
    let colour = other;
    if (!given) colour = hues[0];
    else if (given.codes) colour = found[i] > 0 ? hues[(found[i] - 1) % hues.length] : other;
    else if (!Number.isNaN(found[i])) colour = scale[Math.max(0, Math.min(STEPS - 1, Math.round(((found[i] - given.low) / width) * (STEPS - 1))))];
    rgba.set(colour, 4 * i);
    rgba[4 * i + 3] = given && (Number.isNaN(found[i]) || (given.codes && !found[i])) ? alpha * 0.6 : alpha;
  }
  return rgba;
}

function shown(number, kind) {
  if (number === null) return '–';
  return kind === 'date' ? new Date(Math.round(number) * 864e5).toISOString().slice(0, 10) : String(Number(number.toPrecision(4)));
}

/** The legend of some values; `filter(name)` for a click on a value, where it can be filtered by. */
export function legendOf(values, dark, filter) {
  if (!values) return [];
  if (!values.codes && values.least === values.most) return [el('p', { class: 'quiet' }, values.least === null ? 'No row has a number there.' : `${shown(values.least, values.kind)} in every row`)];
  if (!values.codes) {
    const bar = el('span', { class: 'map-scale', 'aria-hidden': 'true' });
    bar.style.setProperty('--stops', (dark ? DARK : LIGHT).join(', '));
    const outliers = values.least < values.low || values.most > values.high;
    const note = outliers ? el('p', { class: 'quiet' }, `from ${shown(values.least, values.kind)} to ${shown(values.most, values.kind)} in all`) : null;
    return [el('p', { class: 'map-ends' }, el('span', {}, shown(values.low, values.kind)), bar, el('span', {}, shown(values.high, values.kind))), note];
  }
  const swatch = (colour) => {
    const node = el('span', { class: 'map-swatch', 'aria-hidden': 'true' });
    node.style.setProperty('--swatch', colour);
    return node;
  };
  const line = (name, at) => {
    const content = [swatch(TWELVE[at]), el('span', { class: 'map-value', dir: 'auto' }, name === '' ? 'empty' : name), el('span', { class: 'facet-rows' }, count(values.counts[at]))];
    const can = name !== '' && name !== 'NULL';
    return el('li', {}, can ? el('button', { type: 'button', title: `Only ${name}`, onclick: () => filter(name) }, content) : el('span', {}, content));
  };
  const others = values.others ? el('li', {}, el('span', {}, swatch(OTHER), el('span', { class: 'map-value' }, 'other values'), el('span', { class: 'facet-rows' }, count(values.others)))) : null;
  return [el('ul', { class: 'map-values' }, values.names.slice(0, MOST_LISTED).map(line), others)];
}
