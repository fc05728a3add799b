/**
 * A map of the results: near each other is what is alike. A canvas to pan, zoom and click, and the same rows as a list
 * beside it, which is also the way in for keyboards and screen readers.
 */

import { call } from './api.js';
import { button, byId, el, picture, pictureOf, plural } from './dom.js';
import { isVeiled } from './filters.js';
import { makeCanvas } from './mapcanvas.js';
import { goesOn, keyOf, nextPage, results, shownRows } from './results.js';
import { openRow } from './state.js';

const MOST_WAITS = 100; // of 40 ms
const WANTED = 240; // rows; more than that is a crowd on a screen

let canvas = null;
let list = null;
let said = null;
let drawnKey = null;

function build() {
  const node = el('canvas', { class: 'map-canvas', tabindex: 0, role: 'img', 'aria-label': 'Map of the results. Arrows move it, plus and minus zoom; the list beside it has the same pictures.' });
  const tip = el('div', { class: 'map-tip', hidden: true });
  canvas = makeCanvas(node, tip, { open: openRow, over: (id) => mark(id) });
  said = el('p', { class: 'map-said quiet', role: 'status' });
  list = el('ol', { class: 'map-list', 'aria-label': 'The pictures on the map, the nearest first' });
  byId('view-map').replaceChildren(
    el(
      'div',
      { class: 'map' },
      el(
        'div',
        { class: 'map-field' },
        node,
        tip,
        said,
        el(
          'div',
          { class: 'map-tools' },
          button('Zoom in', { icon: 'plus', onclick: () => canvas.zoom(1.4) }),
          button('Zoom out', { icon: 'minus', onclick: () => canvas.zoom(1 / 1.4) }),
          button('Show all', { icon: 'fit', onclick: () => canvas.fit() }),
        ),
      ),
      list,
    ),
  );
}

function mark(id) {
  for (const item of list.querySelectorAll('.marked')) item.classList.remove('marked');
  const item = id === null ? null : [...list.children].find((one) => one.dataset.id === id);
  item?.classList.add('marked');
  item?.scrollIntoView({ block: 'nearest' });
}

/** Brings the map in line with the results; does nothing while another view is open. */
export async function drawMap(state, table) {
  if (state.view !== 'map' || !results.state || !table) return;
  if (!canvas) build();
  const key = keyOf(results.state) + state.safe + state.cut;
  if (key === drawnKey) {
    canvas.resize();
    return;
  }
  drawnKey = key;
  said.textContent = 'Collecting pictures…';
  let waits = 0;
  try {
    while (goesOn() && results.rows.length < WANTED && drawnKey === key) {
      const fresh = await nextPage(WANTED - results.rows.length);
      if (fresh?.length === 0) break;
      // a page was on its way already, asked for by the grid; or a search is, which will draw the map anew
      if (fresh === null && waits++ > MOST_WAITS) return;
      if (fresh === null) await new Promise((resolve) => setTimeout(resolve, 40));
    }
    const rows = shownRows().slice(0, WANTED);
    if (drawnKey !== key) return;
    if (!rows.length) {
      said.textContent = 'There are no results to map.';
      canvas.show([]);
      list.replaceChildren();
      return;
    }
    const body = { database: table.database, table: table.name, column: state.column ?? table.vectors[0]?.column, ids: rows.map((row) => row.id) };
    const { points } = await call('/api/map', { body });
    if (drawnKey !== key) return;
    place(rows, points, state, table);
  } catch (error) {
    drawnKey = null;
    said.textContent = error.message;
  }
}

function place(rows, points, state, table) {
  const at = new Map(points.map((point) => [point.id, point]));
  const shown = rows.filter((row) => at.has(row.id));
  const veiled = (row) => isVeiled(row, table, state.safe);
  canvas.show(
    shown.map((row) => ({ id: row.id, x: at.get(row.id).x, y: at.get(row.id).y, caption: row.caption, source: veiled(row) ? null : pictureOf(row, 128) })),
  );
  said.textContent = `${plural(shown.length, 'picture')} · drag to move, scroll to zoom, click to open`;
  list.replaceChildren(
    ...shown.map((row) => {
      const thumb = veiled(row) ? null : picture(pictureOf(row, 128), '', { class: 'map-thumb' });
      thumb?.addEventListener('error', () => thumb.classList.add('gone'));
      const go = el('button', { type: 'button', onclick: () => openRow(row.id), onfocus: () => canvas.highlight(row.id) }, thumb, el('span', {}, row.caption || `Row ${row.id}`));
      return el('li', { dataset: { id: row.id }, onpointerenter: () => canvas.highlight(row.id) }, go);
    }),
  );
}
