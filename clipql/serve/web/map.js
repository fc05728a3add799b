/**
 * The map: a point for every row of the table that meets the filters, near each other where they are alike, with the
 * results and what is picked marked on it. The results are also a list beside it, which is, with the list of regions, the
 * way in for keyboards and screen readers. What must stay true: points, colours and legend are of one question.
 */

import { button, byId, count, el, picture, pictureOf, plural } from './dom.js';
import { isVeiled } from './filters.js';
import { makeCanvas } from './mapcanvas.js';
import { coloursOf, isDark, legendOf } from './mapcolours.js';
import { fetchPoints, fetchRows, fetchValues, inside, knownRow, learnRows, questionOf } from './mapdata.js';
import { picked, watchPicks } from './picks.js';
import { goesOn, keyOf, nextPage, results, shownRows } from './results.js';
import { conditionOf } from './rowset.js';
import { change, now, openRow, parts } from './state.js';

const MOST_WAITS = 100; // of 40 ms
const WANTED = 240; // results that are listed and marked
const LOOK_MS = 900; // between two questions whether a map is there
const HOVER_MS = 90;
const MOST_SEEN = 120; // rows that are fetched for their pictures
const FEW_POINTS = 3000; // of which some are shown as pictures from the beginning
const SIMILARITY = 'similarity to the search';

let canvas = null;
let nodes = null;
let act = null;
let table = null;
let points = null;
let values = null; // what the points are coloured by
let asked = { points: null, colours: null, list: null };
let looking = 0;
let going = null; // aborts what is asked for
let better = null;
let hover = 0;
let pointed = null; // the newest point that the pointer was on

/** `actions`: pickIds(ids): a promise of the picks, which throws where there are none. */
export function makeMap(actions) {
  act = actions;
}

function build() {
  const below = el('canvas', { class: 'map-points', 'aria-hidden': 'true' });
  const node = el('canvas', { class: 'map-canvas', tabindex: 0, role: 'img', 'aria-label': 'Map of the table. Arrows move it, plus and minus zoom, Enter opens the picture in the middle; the lists beside it lead to regions and results.' });
  const lasso = button('Lasso', { icon: 'lasso', 'aria-pressed': 'false', onclick: () => toggle(lasso) });
  const sparse = button('Pictures among the points', { icon: 'picture', 'aria-pressed': 'false', onclick: () => toggle(sparse) });
  nodes = {
    node,
    lasso,
    sparse,
    tip: el('div', { class: 'map-tip', hidden: true }),
    said: el('p', { class: 'map-said quiet', role: 'status' }),
    chosen: el('div', { class: 'map-chosen', role: 'group', 'aria-label': 'Chosen on the map', hidden: true }),
    colour: el('select', { 'aria-label': 'Colour by', onchange: () => change({ colour: nodes.colour.value || null }, 'replace') }),
    legend: el('div', { class: 'map-legend', role: 'group', 'aria-label': 'Legend' }),
    regions: el('ul', { class: 'map-regions', 'aria-label': 'Regions' }),
    list: el('ol', { class: 'map-list', 'aria-label': 'The results, the nearest first' }),
  };
  canvas = makeCanvas(below, node, {
    open: openRow,
    over,
    lassoed: chooseInside,
    lassoing: () => isOn(lasso),
    sparse: () => isOn(sparse),
    pictureOf: (id) => sourceOf(knownRow(table, id)),
    seen,
  });
  byId('view-map').replaceChildren(
    el(
      'div',
      { class: 'map' },
      el(
        'div',
        { class: 'map-field' },
        below,
        node,
        nodes.tip,
        nodes.said,
        nodes.chosen,
        el('label', { class: 'choice map-key' }, el('span', { class: 'unseen' }, 'Colour by'), nodes.colour),
        el(
          'div',
          { class: 'map-tools' },
          button('Zoom in', { icon: 'plus', onclick: () => canvas.zoom(1.4) }),
          button('Zoom out', { icon: 'minus', onclick: () => canvas.zoom(1 / 1.4) }),
          button('Show all', { icon: 'fit', onclick: () => canvas.fit() }),
          sparse,
          lasso,
          button('Choose all in view', { icon: 'pick', onclick: () => points && chooseInside(canvas.around()) }),
        ),
      ),
      el('div', { class: 'map-side' }, nodes.legend, nodes.regions, nodes.list),
    ),
  );
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Escape' && now.view === 'map' && !document.querySelector('dialog[open]')) choose([]);
  });
  watchPicks(() => now.view === 'map' && mark());
  new MutationObserver(recolour).observe(document.documentElement, { attributes: true, attributeFilter: ['data-theme'] });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', recolour);
}

const isOn = (tool) => tool.getAttribute('aria-pressed') === 'true';

function toggle(tool, on = !isOn(tool)) {
  tool.setAttribute('aria-pressed', String(on));
  nodes.node.classList.toggle('lassoing', isOn(nodes.lasso));
  canvas.redraw();
}

const sourceOf = (row) => (row && !isVeiled(row, table, now.safe) ? pictureOf(row, 128) : null);

/** Brings the map in line with the state; does nothing while another view is open. */
export async function drawMap(state, current) {
  if (state.view !== 'map') return;
  if (!current) {
    if (canvas) empty(); // nothing of another table is left
    return;
  }
  if (!canvas) build();
  table = current;
  canvas.resize();
  await Promise.all([drawPoints(state), drawList(state)]);
}

function empty() {
  going?.abort();
  clearTimeout(looking);
  pointed = null;
  points = values = better = null;
  asked = { points: null, colours: null, list: null };
  canvas.show(null, false);
  for (const node of [nodes.regions, nodes.legend, nodes.list]) node.replaceChildren();
  nodes.said.textContent = '';
  choose([]);
}

function fail(error) {
  if (error.name === 'AbortError') return;
  nodes.said.textContent = error.message;
}

/* ---------- points and their colours ---------- */

async function drawPoints(state) {
  const question = questionOf(state, table);
  const key = JSON.stringify(question);
  if (key === asked.points && table === asked.table) return drawColours(state); // a table that is described anew has changed
  const sameMap = points !== null && asked.map === JSON.stringify([question.database, question.table, question.column]);
  Object.assign(asked, { points: key, table, map: JSON.stringify([question.database, question.table, question.column]) });
  going?.abort();
  going = new AbortController();
  better = null;
  if (!sameMap) {
    points = values = null;
    canvas.show(null, false);
    nodes.regions.replaceChildren();
    nodes.legend.replaceChildren();
  }
  choose([]);
  tell();
  await look(question, null, going, sameMap);
}

/** Asks for points until there are some, and then for better ones until no better are on their way. */
async function look(question, than, mine, same) {
  clearTimeout(looking);
  let found;
  try {
    found = await fetchPoints(question, than, mine.signal);
  } catch (error) {
    if (mine !== going || mine.signal.aborted) return;
    asked.points = null; // what failed is asked again
    return fail(error);
  }
  if (mine !== going || mine.signal.aborted) return;
  better = found.stage === undefined ? found.better : found.stage;
  if (found.stage === undefined) {
    points = found;
    asked.colours = null;
    if (!same) toggle(nodes.sparse, points.count <= FEW_POINTS);
    canvas.show(points, same && than === null);
    drawRegions();
    mark();
    await drawColours(now);
    if (mine !== going || mine.signal.aborted) return;
  }
  tell();
  if (better && now.view === 'map') looking = setTimeout(() => look(question, points?.method ?? null, mine, false), LOOK_MS);
  else if (better) asked.points = null; // it is looked at again when the map is
}

async function drawColours(state) {
  if (!points) return;
  drawChooser(state);
  const similar = state.colour === SIMILARITY;
  const key = JSON.stringify([asked.points, points.method, state.colour, similar && results.state && keyOf(results.state)]);
  if (key === asked.colours) return;
  asked.colours = key;
  values = null;
  let found = null;
  try {
    if (similar ? parts(state).length : state.colour) found = await fetchValues(state, table, similar ? null : state.colour, going.signal);
  } catch (error) {
    if (key !== asked.colours || error.name === 'AbortError') return;
    recolour();
    nodes.legend.replaceChildren(el('p', { class: 'filter-error', role: 'status' }, error.message));
    return;
  }
  if (key !== asked.colours) return;
  values = found;
  recolour();
}

function recolour() {
  if (!points || now.view !== 'map') return;
  const dark = isDark(nodes.node);
  canvas.paint(coloursOf(points, values, dark, points.count > 20000 ? 0.7 : 0.85));
  const filter = (name) => change({ filters: [...now.filters.filter((one) => one.column !== now.colour), { column: now.colour, op: kindOf(now.colour) === 'bool' ? 'is' : 'eq', value: name }] });
  nodes.legend.replaceChildren(...legendOf(values, dark, filter).filter(Boolean));
}

const kindOf = (name) => table.columns.find((column) => column.name === name)?.kind;

function drawChooser(state) {
  const names = table.columns.filter((column) => ['number', 'date', 'text', 'bool'].includes(column.kind) && column.name !== table.caption && column.name !== table.picture?.column).map((column) => column.name);
  const options = ['', ...(parts(state).length ? [SIMILARITY] : []), ...names];
  if (state.colour && state.colour !== SIMILARITY && !options.includes(state.colour)) options.push(state.colour);
  const first = points.labels.length ? 'Colour: regions' : 'One colour';
  nodes.colour.replaceChildren(...options.map((name) => el('option', { value: name }, name === '' ? first : `Colour: ${name}`)));
  nodes.colour.value = options.includes(state.colour) ? state.colour : ''; // without a search nothing is similar to it
}

function drawRegions() {
  const found = points.labels.filter((label) => label.level === 0);
  nodes.regions.replaceChildren(...found.map((label) => el('li', {}, button(`Go to the region ${label.text}`, { text: label.text, class: 'link', onclick: () => canvas.goTo(label.x, label.y, 4) }))));
}

function tell() {
  if (!points) {
    nodes.said.textContent = `Laying out the map${better ? `: ${stageOf(better)}` : '…'}`;
    return;
  }
  const sample = points.step > 1 ? ` of every ${points.step}` : '';
  const ways = matchMedia('(hover: none)').matches ? 'drag to move, pinch to zoom, tap to open, lasso to choose' : 'drag to move, scroll to zoom, click to open, Shift and drag to choose';
  const said = points.count ? `${plural(points.count, 'picture')}${sample} · ${ways}` : 'There are no results to map.';
  nodes.said.textContent = better ? `${said} · a better map is being made: ${stageOf(better)}` : said;
}

const stageOf = ({ name, done, total }) => (total ? `${name}, ${Math.min(100, 5 * Math.floor((20 * done) / total))} %` : name);

/* ---------- hover, and the pictures in view ---------- */

function over(id, x, y) {
  markListed(id);
  clearTimeout(hover);
  nodes.tip.hidden = true;
  const mine = (pointed = Symbol('point'));
  if (id === null) return;
  const shown = (row) => {
    if (!row || mine !== pointed) return;
    const source = sourceOf(row);
    const image = source ? picture(source, '', { loading: 'eager' }) : null;
    image?.addEventListener('error', () => image.remove());
    nodes.tip.replaceChildren(image ?? '', el('span', { dir: 'auto' }, row.caption || `Row ${row.id}`));
    nodes.tip.hidden = false;
    const { clientWidth, clientHeight } = nodes.node;
    nodes.tip.style.left = `${Math.max(110, Math.min(clientWidth - 110, x))}px`;
    nodes.tip.classList.toggle('above', y > clientHeight / 2);
    nodes.tip.style.top = `${y + (y > clientHeight / 2 ? -16 : 16)}px`;
  };
  const row = knownRow(table, id);
  if (row) shown(row);
  else hover = setTimeout(() => fetchRows(table, [id], 1, going?.signal).then((rows) => shown(rows[0]), () => {}), HOVER_MS);
}

async function seen(ids) {
  const wanted = ids.filter((id) => !knownRow(table, id)).slice(0, MOST_SEEN);
  if (!wanted.length || now.view !== 'map' || !table.picture) return;
  await fetchRows(table, wanted, MOST_SEEN, going?.signal).then(canvas.redraw, () => {});
}

/* ---------- what is chosen ---------- */

const chooseInside = (line) => choose(inside(points, line).map((i) => points.ids[i]), line);

/** `line`: around them, as it stays to be seen. */
function choose(ids, line = null) {
  toggle(nodes.lasso, false);
  canvas.outline(ids.length ? line : null);
  nodes.chosen.hidden = ids.length === 0;
  if (!ids.length) return;
  const tool = (label, name, onclick) => button(label, { icon: name, text: label, class: 'tool', onclick });
  const said = el('b', { role: 'status' }, `${count(ids.length)} chosen${points.step > 1 ? `, of every ${points.step}` : ''}`);
  const pick = async () => {
    const box = nodes.chosen.firstChild;
    try {
      await act.pickIds(ids);
    } catch (error) {
      said.textContent = error.message;
      return;
    }
    if (nodes.chosen.firstChild === box) choose([]); // another choice may have been made meanwhile
  };
  const show = () => {
    try {
      change({ view: 'pictures', row: null, where: conditionOf(ids) });
    } catch (error) {
      said.textContent = error.message;
    }
  };
  nodes.chosen.replaceChildren(
    said,
    tool(ids.length === 1 ? 'Pick it' : `Pick these ${count(ids.length)}`, 'pick', pick),
    tool(ids.length === 1 ? 'Show it' : `Show these ${count(ids.length)}`, 'grid', show),
    button('Choose none', { icon: 'close', onclick: () => choose([]) }),
  );
}

function mark() {
  if (points) canvas.mark(parts(now).length || now.where.trim() ? shownRows().slice(0, WANTED).map((row) => row.id) : [], picked.keys());
}

/* ---------- the results beside it ---------- */

function markListed(id) {
  for (const item of nodes.list.querySelectorAll('.marked')) item.classList.remove('marked');
  const item = id === null ? null : [...nodes.list.children].find((one) => one.dataset.id === id);
  item?.classList.add('marked');
  item?.scrollIntoView({ block: 'nearest' });
}

async function drawList(state) {
  if (!results.state) return;
  const key = keyOf(results.state) + state.safe + state.cut;
  if (key === asked.list) return;
  asked.list = key;
  let waits = 0;
  try {
    while (goesOn() && results.rows.length < WANTED && asked.list === key) {
      const fresh = await nextPage(WANTED - results.rows.length);
      if (fresh?.length === 0) break;
      // a page was on its way already, asked for by the grid; or a search is, which will draw the map anew
      if (fresh === null && waits++ > MOST_WAITS) return;
      if (fresh === null) await new Promise((resolve) => setTimeout(resolve, 40));
    }
  } catch (error) {
    if (asked.list !== key) return;
    asked.list = null;
    fail(error);
    return;
  }
  if (asked.list !== key) return;
  const rows = shownRows().slice(0, WANTED);
  learnRows(table, rows);
  mark();
  canvas.redraw();
  nodes.list.replaceChildren(
    ...rows.map((row) => {
      const thumb = isVeiled(row, table, state.safe) ? null : picture(pictureOf(row, 128), '', { class: 'map-thumb' });
      thumb?.addEventListener('error', () => thumb.classList.add('gone'));
      const go = el('button', { type: 'button', onclick: () => openRow(row.id), onfocus: () => canvas.highlight(row.id) }, thumb, el('span', { dir: 'auto' }, row.caption || `Row ${row.id}`));
      return el('li', { dataset: { id: row.id }, onpointerenter: () => canvas.highlight(row.id) }, go);
    }),
  );
}
