/** The keys of the grid: arrows go from picture to picture, letters act on the one that has the focus. */

import { whole } from './gridwindow.js';

/** `act`: what `makeGrid` was given. */
export function makeKeys(list, act) {
  list.addEventListener('keydown', (event) => onKey(event, list, act));
}

function step(tile, by) {
  let next = tile;
  do next = by > 0 ? next.nextElementSibling : next.previousElementSibling;
  while (next && (!next.dataset.id || next.offsetWidth === 0));
  if (next) whole(next).querySelector('.open')?.focus();
  next?.scrollIntoView({ block: 'nearest' });
}

/** The tile of the next row up or down that is nearest in the middle. */
function stepRow(tile, by) {
  const from = tile.getBoundingClientRect();
  const middle = from.left + from.width / 2;
  let best = null;
  for (let next = tile; (next = by > 0 ? next.nextElementSibling : next.previousElementSibling); ) {
    if (!next.dataset.id || next.offsetWidth === 0) continue;
    const box = next.getBoundingClientRect();
    if (Math.abs(box.top - from.top) < 4) continue;
    if (best && Math.abs(box.top - best.top) > 4) break;
    const off = Math.abs(box.left + box.width / 2 - middle);
    if (!best || off < best.off) best = { off, top: box.top, node: next };
  }
  if (best) whole(best.node).querySelector('.open').focus();
  best?.node.scrollIntoView({ block: 'nearest' });
}

function onKey(event, list, act) {
  const tile = event.target.closest('.tile');
  if (!tile || event.ctrlKey || event.metaKey || event.altKey) return;
  const id = tile.dataset.id;
  const keys = {
    ArrowRight: () => step(tile, 1),
    ArrowLeft: () => step(tile, -1),
    ArrowDown: () => stepRow(tile, 1),
    ArrowUp: () => stepRow(tile, -1),
    Home: () => {
      const first = list.querySelector('.tile[data-id]:not(.left)');
      if (first) whole(first).querySelector('.open')?.focus();
    },
    x: () => act.pick(id, false),
    X: () => act.pick(id, true),
    m: () => act.like(id),
    '+': () => act.add(id, 1),
    '-': () => act.add(id, -0.5),
  };
  if (!keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
}
