/**
 * The grid of pictures. Rows are justified by the browser: each tile grows by its shape, so a row is filled and all its
 * pictures are equally high, and a tile that goes leaves no hole. What must stay true: a tile belongs to one id and is
 * kept while it is shown, so pictures do not load again while the user types; and what is in view or above it stays where
 * it is, so places of pictures that are gone close only below.
 */

import { archiveLink, isDead, remember } from './dead.js';
import { button, count, el, picture, pictureOf, plural } from './dom.js';
import { factsOf } from './facts.js';
import { isVeiled, knownColumns, uncover } from './filters.js';
import { makeKeys } from './gridkeys.js';
import { makeTools, setCurrent } from './gridtools.js';
import { fillNear, holdBack, makeWindow, whole } from './gridwindow.js';
import { isSameTable } from './tables.js';

export const SMALL_PICTURE = 160; // pixels; enlarged to fill a row, such a picture would only be blurred
const LONGEST_HINT = 400; // characters of a caption that the browser shows beside the pointer
const OWN_TRIES = 2;
const BATCH_MS = 200;
const LATE_MS = 250; // a picture that took longer comes in softly; each that does is a layer of its own meanwhile
const ENOUGH_DEAD = 24; // with no picture among them that loads, the others are not waited for
const NARROWEST = 0.45;
const WIDEST = 2.6;

const tiles = new Map(); // id → {row, node, image}
const shapes = new Map(); // picture's address → width / height, once seen
const folded = new Map(); // id of a row → the rows that are almost the same
let deadCount = 0;
let loadedCount = 0;
let onlyAlive = false; // the user wants no place kept for a picture that is gone
let settling = 0;
let scrolledAt = 0; // pictures below the view are asked for by the browser once they come near
let moreToCome = false; // more rows are to come

let list = null;
let act = null;
let view = { table: null, safe: 'safe', ranked: false, best: null };

/** `actions`: open(id), like(id), add(id, weight), pick(id, range), shown(), deadChanged(count, all): whether none of the pictures loads. */
export function makeGrid(node, actions) {
  list = node;
  act = actions;
  makeKeys(list, act);
  makeWindow(list);
  makeTools(list, act);
  document.addEventListener('scrollend', settleSoon);
  window.addEventListener('scroll', () => (scrolledAt = performance.now()), { passive: true });
  window.addEventListener('resize', () => holdBack(list, moreToCome));
}

/** Shows these rows and no others, or adds them at the end. `more`: whether others will be added to them. */
export function show(rows, context, { append = false, more = false } = {}) {
  // ids are a table's own, and another may have been made under its name
  if (!isSameTable(context.table, view.table) || context.table?.table_id !== view.table?.table_id) clear();
  const held = list.contains(document.activeElement);
  view = context;
  moreToCome = more;
  if (!append) {
    folded.clear();
    deadCount = loadedCount = 0;
    list.classList.remove('captions');
  }
  const nodes = [];
  for (const row of rows) {
    const head = row.duplicate_of;
    if (head !== null && head !== undefined && (tiles.has(head) || rows.some((one) => one.id === head))) {
      folded.set(head, [...(folded.get(head) ?? []), row]);
    } else nodes.push(tileFor(row));
  }
  if (append) list.append(...nodes);
  else {
    const keep = new Set(nodes);
    for (const [id, tile] of tiles) if (!keep.has(tile.node)) drop(id, tile);
    place(nodes);
  }
  releasePictures();
  for (const id of folded.keys()) badge(id);
  if (!append) for (const tile of tiles.values()) tally(tile);
  if (append) for (const node of nodes) if (node.classList.contains('dead')) deadCount++;
  holdBack(list, moreToCome);
  fillNear();
  settleSoon();
  tellDead();
  if (!list.querySelector('.tile[data-current]')) setCurrent(list.firstElementChild);
  // a tile that went, or moved, has lost the focus, and keys would do nothing
  if (held && !list.contains(document.activeElement)) focusTile(list.firstElementChild?.dataset.id, true);
  act.shown();
}

/** Forgets a tile; a picture still on its way must not keep those of the next search waiting. */
function drop(id, tile) {
  tiles.delete(id);
  if (!tile.image.complete) tile.image.removeAttribute('src');
}

/** Our server's pictures that are still on their way make way for a search that begins. */
export function holdPictures() {
  for (const tile of tiles.values()) {
    if (tile.held || tile.loaded || tile.dead || !tile.source?.startsWith('./') || tile.image.complete) continue;
    tile.held = true;
    tile.image.removeAttribute('src');
  }
}

/** Pictures that were held and are still shown are asked for again. */
export function releasePictures() {
  for (const tile of tiles.values()) {
    if (!tile.held) continue;
    tile.held = false;
    ask(tile);
  }
}

/** Puts the nodes in order, moving only those out of place: what stays keeps its focus. */
function place(nodes) {
  const keep = new Set(nodes);
  for (const node of [...list.children]) if (!keep.has(node)) node.remove();
  nodes.forEach((node, i) => {
    if (list.children[i] !== node) list.insertBefore(node, list.children[i] ?? null);
  });
}

/** Empty shapes while the first results are on their way. */
export function showSkeletons() {
  tiles.clear();
  const wide = [1.5, 0.8, 1.2, 1, 1.7, 0.7, 1.3, 1, 0.9, 1.6, 1.1, 0.75, 1.4, 1, 1.2, 0.85, 1.5, 1];
  place(
    wide.map((shape) => {
      const node = el('li', { class: 'tile skeleton', 'aria-hidden': 'true' }, el('div', { class: 'frame' }), el('p', { class: 'caption' }));
      node.style.setProperty('--shape', shape);
      return node;
    }),
  );
}

export function clear() {
  tiles.clear();
  place([]);
}

/** The ids in the order shown, for going from one to the next in the details. */
export const shownIds = () => [...list.querySelectorAll('.tile[data-id]')].filter((node) => node.checkVisibility()).map((node) => node.dataset.id);

/** A row of a table by its id, where it is shown; else null. */
export function rowOf(id, table) {
  if (!isSameTable(table, view.table)) return null;
  const tile = tiles.get(id);
  if (tile) return tile.row;
  for (const rows of folded.values()) for (const row of rows) if (row.id === id) return row;
  return null;
}

/** `still`: nothing is scrolled for it. */
export function focusTile(id, still = false) {
  const node = (id && tiles.get(id)?.node) || list.querySelector('.tile[data-current]') || list.firstElementChild;
  if (node) whole(node);
  node?.querySelector('.open')?.focus({ preventScroll: still });
}

/** What becomes of the places of pictures that are gone: 'below' the view they close, or 'none' is kept, or 'all' are shown. */
export function keepPlaces(which) {
  onlyAlive = which === 'none';
  list.classList.toggle('show-dead', which === 'all');
  settleLayout();
}

function settleSoon() {
  settling ||= setTimeout(settleLayout, BATCH_MS);
}

/** Places close and guessed shapes become the true ones, many at once and only where nobody looks. */
function settleLayout() {
  clearTimeout(settling);
  settling = 0;
  const all = [...tiles.values()];
  // half a screen further, as a scroll may be on its way that the page has not heard of
  const unseen = (node) => node.getBoundingClientRect().top > window.innerHeight * 1.5;
  // what begins the first such row stays as it is: something smaller in its place would fit into the row above
  const first = [...list.children].find(unseen);
  const below = ({ node }) => node !== first && unseen(node);
  const closing = list.classList.contains('captions') ? [] : all.filter((tile) => tile.dead && !tile.node.classList.contains('left') && (onlyAlive || below(tile)));
  const shaping = all.filter((tile) => tile.shape && below(tile));
  for (const { node } of closing) node.classList.add('left');
  for (const tile of shaping) {
    tile.node.style.setProperty('--shape', tile.shape);
    tile.node.classList.remove('guessed');
    tile.shape = null;
  }
  if (closing.length || shaping.length) holdBack(list, moreToCome);
  fillNear();
}

/** How similar a row is beside the best one, 0 to 1, as the length of a bar. */
function measure(node, row) {
  const share = view.best > 0 && typeof row.distance === 'number' ? (1 - row.distance) / view.best : 0;
  node.style.setProperty('--share', Math.max(0, Math.min(1, share)).toFixed(3));
}

function tileFor(row) {
  const known = tiles.get(row.id);
  if (known) {
    known.row = row;
    measure(known.node, row);
    whole(known.node);
    known.node.querySelector('.facts').replaceWith(factsOf(row, view.table, view.ranked));
    if (known.dead) markDead(known);
    known.node.querySelector('.alike')?.remove();
    veil(known);
    return known.node;
  }
  const source = pictureOf(row);
  const image = picture(null, row.caption || 'Picture without a caption');
  const open = el('button', { type: 'button', class: 'open', tabindex: -1, onclick: (event) => press(row.id, event) }, image);
  const node = el(
    'li',
    { class: 'tile', dataset: { id: row.id } },
    el('div', { class: 'frame' }, open),
    el('p', { class: 'caption', dir: 'auto', title: row.caption?.slice(0, LONGEST_HINT) || null }, row.caption || ' '),
    factsOf(row, view.table, view.ranked),
  );
  // shape: the true one, where another was guessed and is still shown
  const tile = { row, node, image, source, dead: false, loaded: false, held: false, shape: null, tries: 0, asked: 0 };
  tiles.set(row.id, tile);
  whole(node);
  measure(node, row);
  node.draggable = true;
  node.addEventListener('dragstart', (event) => event.dataTransfer.setData('application/x-clipql-row', row.id));
  node.style.setProperty('--shape', clamp(shapes.get(source) ?? shapeOf(row) ?? 1));
  const size = sizeOf(row);
  if (size) takeSize(node, ...size);
  veil(tile);
  if (isDead(source)) {
    markDead(tile);
    if (!list.classList.contains('captions')) node.classList.add('left');
  } else load(tile);
  return node;
}

const clamp = (shape) => Math.max(NARROWEST, Math.min(WIDEST, shape));

function sizeOf(row) {
  const { width, height } = knownColumns(view.table);
  const [w, h] = [Number(row.values?.[width]), Number(row.values?.[height])];
  return w > 0 && h > 0 ? [w, h] : null;
}

function shapeOf(row) {
  const size = sizeOf(row);
  return size && size[0] / size[1];
}

/** Small pictures are shown small, and a grid that begins with them has lower rows. */
function takeSize(node, w, h) {
  const small = Math.max(w, h) <= SMALL_PICTURE;
  node.classList.toggle('small', small);
  if (small) list.classList.add('icons');
  else if (node === list.firstElementChild) list.classList.remove('icons');
}

function load(tile) {
  const { image, node, source } = tile;
  if (!source) {
    node.classList.add('wordy');
    tile.node.querySelector('.open').replaceChildren(el('span', { class: 'words-only', dir: 'auto' }, tile.row.caption || `Row ${tile.row.id}`));
    return;
  }
  image.addEventListener('load', () => {
    if (tiles.get(tile.row.id) !== tile) return; // of a search before
    const [w, h] = [image.naturalWidth, image.naturalHeight];
    node.classList.toggle('late', performance.now() - Math.max(tile.asked, scrolledAt) > LATE_MS);
    node.classList.add('loaded');
    if (!tile.loaded) loadedCount++;
    tile.loaded = true;
    if (!w || !h) return;
    const known = shapes.has(source) || shapeOf(tile.row);
    shapes.set(source, w / h);
    node.classList.toggle('small', Math.max(w, h) <= SMALL_PICTURE);
    if (known) return;
    tile.shape = clamp(w / h);
    node.classList.add('guessed');
    settleSoon();
  });
  image.addEventListener('error', () => {
    if (!image.getAttribute('src')) return;
    // our own server may only be busy; the web's pictures are taken at their word
    if (source.startsWith('./') && tile.tries < OWN_TRIES) setTimeout(() => tiles.get(tile.row.id) === tile && (image.src = `${source}&again=${tile.tries}`), 700 * 3 ** tile.tries++);
    else die(tile);
  });
  ask(tile);
}

function ask(tile) {
  tile.asked = performance.now();
  tile.image.src = tile.source;
}

/** The server was gone and is back: its pictures that could not be had are asked for again. */
export function revive() {
  for (const tile of tiles.values()) {
    if (!tile.dead || !tile.source.startsWith('./')) continue;
    Object.assign(tile, { dead: false, tries: 0 });
    whole(tile.node).classList.remove('dead', 'left');
    tile.node.removeAttribute('title');
    veil(tile);
    ask(tile);
    deadCount--;
  }
  tellDead();
}

function tellDead() {
  const none = deadCount > 0 && loadedCount === 0 && (deadCount === tiles.size || deadCount >= ENOUGH_DEAD);
  if (none && !list.classList.contains('captions')) becomeCaptions();
  act.deadChanged(deadCount, list.classList.contains('captions'));
}

/** A list of captions instead of a grid of nothing. Its nodes are new ones, so none of them jumps. */
function becomeCaptions() {
  const focused = document.activeElement?.closest('.tile')?.dataset.id;
  const rows = [...list.querySelectorAll('.tile[data-id]')].map((node) => tiles.get(node.dataset.id).row);
  list.classList.add('captions');
  tiles.clear();
  place(rows.map(tileFor));
  deadCount = loadedCount = 0;
  for (const tile of tiles.values()) tally(tile);
  for (const id of folded.keys()) badge(id);
  if (focused) focusTile(focused);
  else setCurrent(list.firstElementChild);
}

function tally(tile) {
  deadCount += tile.dead;
  loadedCount += tile.loaded;
}

function markDead(tile) {
  tile.dead = true;
  whole(tile.node).classList.add('dead');
  tile.node.title = 'This picture no longer loads';
  veil(tile);
  const link = archiveLink(tile.row);
  const facts = tile.node.querySelector('.facts');
  // in a grid there is room for one fact, often, and this is the one that is of use
  if (link) list.classList.contains('captions') ? facts.append(link) : facts.prepend(link);
}

/** A picture that does not load keeps its place while it is in view, or above it. */
function die(tile) {
  if (tiles.get(tile.row.id) !== tile || tile.dead) return;
  remember(tile.source);
  markDead(tile);
  deadCount++;
  promote(tile);
  settleSoon();
  tellDead();
}

/** What was folded under a picture that is gone may still be there: the next of them takes its place. */
function promote(tile) {
  whole(tile.node);
  const [next, ...others] = folded.get(tile.row.id) ?? [];
  if (!next) return;
  folded.delete(tile.row.id);
  tile.node.querySelector('.alike')?.remove();
  const heir = tileFor(next);
  heir.style.setProperty('--shape', tile.node.style.getPropertyValue('--shape')); // it takes the place as it is
  tile.node.after(heir);
  tile.node.classList.add('left');
  if (!others.length) return;
  folded.set(next.id, others);
  badge(next.id);
}

function unfold(tile) {
  const rows = folded.get(tile.row.id);
  folded.delete(tile.row.id);
  whole(tile.node).querySelector('.alike')?.remove();
  tile.node.after(...rows.map(tileFor));
}

function veil(tile) {
  const veiled = isVeiled(tile.row, view.table, view.safe);
  tile.node.classList.toggle('veiled', veiled);
  const open = whole(tile.node).querySelector('.open');
  if (veiled) open.setAttribute('aria-label', 'Picture that may not be safe: show it');
  else if (tile.dead) open.setAttribute('aria-label', tile.image.alt); // the picture that had it is not shown
  else open.removeAttribute('aria-label');
}

function press(id, event) {
  const tile = tiles.get(id);
  // a click picks while others are picked; a key opens, as it has one for picking
  const picking = event.ctrlKey || event.metaKey || event.shiftKey || (event.detail > 0 && list.classList.contains('picking'));
  if (picking) act.pick(id, event.shiftKey);
  else if (tile?.node.classList.contains('veiled')) {
    uncover(tile.row, view.table);
    veil(tile);
  } else act.open(id);
}

function badge(id) {
  const tile = tiles.get(id);
  if (!tile) return;
  whole(tile.node).querySelector('.alike')?.remove();
  const rows = folded.get(id);
  if (tile.dead) {
    promote(tile);
    return;
  }
  const open = () => {
    unfold(tile);
    focusTile(id);
  };
  tile.node
    .querySelector('.frame')
    .append(button(`Show ${plural(rows.length, 'picture')} almost like this one`, { icon: 'stack', text: `+${count(rows.length)}`, class: 'alike', onclick: open }));
}
