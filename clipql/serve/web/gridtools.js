/**
 * The tile of the grid that keys and the pointer are at: one of all can be reached with Tab, and one set of buttons goes to
 * the tile that is pointed at or has the focus. What must stay true: a pointer that only passes by takes the buttons from
 * nobody who uses them by keys.
 */

import { button, el } from './dom.js';
import { whole } from './gridwindow.js';

let tilesOfTools = null;
let tileTools = null;

/** `node`: the grid; `act`: what the buttons do, by the id of their tile. */
export function makeTools(node, act) {
  tilesOfTools = node;
  const id = () => tileTools.closest('.tile').dataset.id;
  const one = (label, name, run) => button(label, { icon: name, onclick: run });
  tileTools = el(
    'div',
    { class: 'actions' },
    one('Pick', 'pick', () => act.pick(id(), false)),
    one('More like this', 'like', () => act.like(id())),
    one('Add to the search', 'plus', () => act.add(id(), 1)),
    one('Take away from the search', 'minus', () => act.add(id(), -0.5)),
  );
  tilesOfTools.addEventListener('focusin', (event) => {
    const tile = event.target.closest('.tile');
    setCurrent(tile);
    takeTools(tile);
  });
  tilesOfTools.addEventListener('pointerover', (event) => takeTools(event.target.closest('.tile')));
}

function takeTools(tile) {
  // a button that was clicked has the focus, too, and the pointer goes on to the next picture
  if (!tile?.dataset.id || tileTools.parentElement?.parentElement === tile || tileTools.querySelector(':focus-visible')) return;
  whole(tile).querySelector('.frame').append(tileTools);
}

/** One tile can be reached with Tab, with its buttons; arrows go to the others. */
export function setCurrent(tile) {
  if (!tile || tile.dataset.current !== undefined || !tile.dataset.id) return;
  for (const old of tilesOfTools.querySelectorAll('.tile[data-current]')) {
    delete old.dataset.current;
    for (const node of old.querySelectorAll('.open, .facts a')) node.tabIndex = -1;
  }
  tile.dataset.current = '';
  for (const node of tile.querySelectorAll('.open, .facts a')) node.tabIndex = 0;
}
