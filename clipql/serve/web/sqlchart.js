/** A chart of a statement's result: bars, a line, points, or how often values of a column come. Drawn as SVG. */

import { count, el } from './dom.js';

const [WIDE, HIGH, LEFT, LOW] = [760, 320, 64, 40]; // of the picture, and its margins for the axes
const MOST = { Bars: 60, Line: 5000, Points: 5000, Histogram: Infinity };
const BINS = 30;
const SVG = 'http://www.w3.org/2000/svg';

const numbersOf = (answer, i) => answer.data.map((row) => (row[i] === null || row[i] === '' ? NaN : Number(row[i])));
const isNumber = (answer, i) => answer.data.length > 0 && /^(Nullable\()?(U?Int|Float|Decimal|BFloat|Bool)/.test(answer.meta[i].type);
const isRow = (answer, i) => answer.meta[i].name === '_row';
const isTime = (answer, i) => /^(Nullable\()?(Date|DateTime)/.test(answer.meta[i].type);

/** The chart with its choices, or null where no column is a number. */
export function chartOf(answer) {
  const columns = answer.meta.map((_, i) => i);
  const numbers = columns.filter((i) => isNumber(answer, i));
  if (!numbers.length || answer.data.length < 2) return null;
  const others = columns.filter((i) => !numbers.includes(i));
  const told = (i) => new Set(answer.data.slice(0, MOST.Bars).map((row) => shortened(String(row[i])))).size;
  const named = [...others].sort((a, b) => told(b) - told(a)); // paths of files, cut off, are all alike
  const times = columns.filter((i) => isTime(answer, i));
  const first = times.length ? 'Line' : others.length ? 'Bars' : numbers.length > 1 ? 'Points' : 'Histogram';
  const option = (i) => el('option', { value: i }, answer.meta[i].name);
  const kind = el('select', { 'aria-label': 'Kind of chart' }, Object.keys(MOST).map((name) => el('option', { value: name }, name)));
  const x = el('select', { 'aria-label': 'Across' }, columns.map(option));
  const y = el('select', { 'aria-label': 'Up' }, numbers.map(option));
  kind.value = first;
  // a row's number is a number last of all: a chart of it says nothing
  const measured = [...numbers].sort((a, b) => isRow(answer, a) - isRow(answer, b));
  x.value = (times[0] ?? named[0] ?? numbers.find((i) => isRow(answer, i)) ?? numbers[0]).toString();
  y.value = (measured.find((i) => String(i) !== x.value) ?? numbers[0]).toString();
  const place = el('div', { class: 'chart', tabindex: 0, role: 'group', 'aria-label': 'Chart' }); // on a phone it is scrolled, by keys too
  const draw = () => {
    x.hidden = kind.value === 'Histogram';
    const most = MOST[kind.value];
    const part = answer.data.length > most ? el('p', { class: 'quiet' }, `The first ${count(most)} of ${count(answer.data.length)} rows`) : '';
    place.replaceChildren(picture(answer, kind.value, Number(x.value), Number(y.value)), part);
  };
  for (const choice of [kind, x, y]) choice.addEventListener('change', draw);
  draw();
  return el('figure', { class: 'sql-chart' }, el('div', { class: 'bar' }, kind, x, y), place);
}

function node(name, properties, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(properties)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const shortly = (value) => (Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3) ? value.toExponential(1) : String(Number(value.toFixed(3))));

function picture(answer, kind, x, y) {
  const values = numbersOf(answer, y);
  const { marks, low, high, names } = kind === 'Histogram' ? histogram(values) : kind === 'Bars' ? bars(answer, x, values) : points(answer, kind, x, values);
  const said = `${kind} of ${answer.meta[y].name}${kind === 'Histogram' ? '' : ` by ${answer.meta[x].name}`}`;
  const text = (place, anchor, words) => node('text', { ...place, 'text-anchor': anchor, class: 'chart-text' }, words);
  return node(
    'svg',
    { viewBox: `0 0 ${WIDE} ${HIGH}`, role: 'img', 'aria-label': `${said}, from ${shortly(low)} to ${shortly(high)}` },
    node('line', { x1: LEFT, x2: WIDE - 8, y1: HIGH - LOW, y2: HIGH - LOW, class: 'chart-axis' }),
    ...marks,
    text({ x: LEFT - 8, y: HIGH - LOW + 4 }, 'end', shortly(low)),
    text({ x: LEFT - 8, y: 18 }, 'end', shortly(high)),
    ...names.map(({ at, words, anchor = 'middle' }) => text({ x: at, y: HIGH - LOW + 18 }, anchor, shortened(words))),
  );
}

const shortened = (words) => (words.length > 14 ? `${words.slice(0, 13)}…` : words);

const scale = (low, high, from, to) => (value) => (high === low ? (from + to) / 2 : from + ((value - low) / (high - low)) * (to - from));

function column(at, width, top, title) {
  return node('rect', { x: at, y: top, width: Math.max(1, width), height: Math.max(0, HIGH - LOW - top), class: 'chart-bar' }, node('title', {}, title));
}

function bars(answer, x, all) {
  const values = all.slice(0, MOST.Bars);
  const finite = values.filter(Number.isFinite);
  const [low, high] = [Math.min(0, ...finite), Math.max(0, ...finite)];
  const [up, step] = [scale(low, high, HIGH - LOW, 12), (WIDE - LEFT - 8) / values.length];
  const nameOf = (i) => String(answer.data[i][x]);
  const marks = values.map((value, i) => (Number.isFinite(value) ? column(LEFT + i * step + step * 0.12, step * 0.76, up(value), `${nameOf(i)}: ${value}`) : node('g', {})));
  const each = Math.ceil(values.length / 8);
  const names = values.flatMap((_, i) => (i % each ? [] : [{ at: LEFT + (i + 0.5) * step, words: nameOf(i) }]));
  return { marks, low, high, names };
}

function histogram(all) {
  const values = all.filter(Number.isFinite);
  const [from, to] = values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
  const counts = new Array(BINS).fill(0);
  for (const value of values) counts[Math.min(BINS - 1, Math.floor(((value - from) / (to - from || 1)) * BINS))]++;
  const high = Math.max(...counts);
  const [up, step] = [scale(0, high, HIGH - LOW, 12), (WIDE - LEFT - 8) / BINS];
  const edge = (i) => from + ((to - from) * i) / BINS;
  const marks = counts.map((count, i) => column(LEFT + i * step + 1, step - 2, up(count), `${shortly(edge(i))} to ${shortly(edge(i + 1))}: ${count}`));
  return { marks, low: 0, high, names: values.length ? ends(from, to) : [] };
}

const ends = (from, to, say = shortly) => [{ at: LEFT, words: say(from), anchor: 'start' }, { at: WIDE - 8, words: say(to), anchor: 'end' }];

function points(answer, kind, x, values) {
  const time = isTime(answer, x);
  const across = time ? answer.data.map((row) => Date.parse(`${String(row[x]).replace(' ', 'T')}Z`)) : isNumber(answer, x) ? numbersOf(answer, x) : values.map((_, i) => i);
  const all = values.map((value, i) => [across[i], value]).filter((one) => one.every(Number.isFinite)).slice(0, MOST[kind]);
  if (kind === 'Line') all.sort((a, b) => a[0] - b[0]);
  const [xs, ys] = [all.map((one) => one[0]), all.map((one) => one[1])];
  const [from, to, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const [right, up] = [scale(from, to, LEFT, WIDE - 8), scale(low, high, HIGH - LOW, 12)];
  const at = all.map(([a, b]) => `${right(a).toFixed(1)},${up(b).toFixed(1)}`);
  const marks = kind === 'Line' ? [node('polyline', { points: at.join(' '), class: 'chart-line' })] : at.map((one) => node('circle', { cx: one.split(',')[0], cy: one.split(',')[1], r: 2.5, class: 'chart-bar' }));
  const say = time ? (value) => new Date(value).toISOString().slice(0, 10) : shortly;
  return { marks, low: all.length ? low : 0, high: all.length ? high : 0, names: all.length ? ends(from, to, say) : [] };
}
