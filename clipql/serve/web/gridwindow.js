/**
 * Which tiles of the grid have their content in the document: those near the view. The others are empty places of the same
 * size, so that ten thousand cost the browser little. And which of the last row are shown: while more is to come, what is
 * added to a row that is seen would stretch and move it. What must stay true: a place is as large empty as full, and the
 * tile that has the focus, or would get it, is never emptied.
 */

const NEAR = 3000; // pixels above and below the view

let tilesList = null;
let waiting = 0;
const full = new Set(); // the tiles that have their content
const contents = new WeakMap(); // an emptied tile → its children

export function makeWindow(node) {
  tilesList = node;
  window.addEventListener('scroll', soon, { passive: true });
  window.addEventListener('resize', soon);
}

function soon() {
  waiting ||= requestAnimationFrame(() => {
    waiting = 0;
    fillNear();
  });
}

/** The tile with its content, wherever it is. */
export function whole(node) {
  const children = contents.get(node);
  if (children) {
    contents.delete(node);
    node.classList.remove('hollow');
    node.replaceChildren(...children);
  }
  full.add(node);
  return node;
}

function hollowOut(node) {
  full.delete(node);
  if (!node.isConnected) return;
  contents.set(node, [...node.childNodes]);
  node.classList.add('hollow');
  node.replaceChildren();
}

const needed = (node) => node.dataset.current !== undefined || node.contains(document.activeElement);

/** The number of the first tile that ends below a line; tiles that take no place count as the next that does. */
function firstBelow(tiles, line) {
  let [low, high] = [0, tiles.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    let shown = middle;
    while (shown < high && tiles[shown].offsetParent === null) shown++;
    if (shown < high && tiles[shown].offsetTop + tiles[shown].offsetHeight < line) low = shown + 1;
    else high = middle;
  }
  return low;
}

/** Fills what is near the view, and empties what is not. */
export function fillNear() {
  if (!tilesList.offsetParent) return; // another view is shown
  const tiles = tilesList.children;
  const top = window.scrollY - NEAR;
  const first = firstBelow(tiles, top);
  let behind = firstBelow(tiles, window.scrollY + window.innerHeight + NEAR);
  while (behind < tiles.length && tiles[behind].offsetParent === null) behind++; // held back, or closed: may be shown next
  const near = new Set();
  for (let i = first; i < behind; i++) near.add(tiles[i]);
  for (const node of [...full]) if (!near.has(node) && !needed(node)) hollowOut(node);
  for (const node of near) whole(node);
}

/** Holds the tiles of the last row back, unless it is the only one; with `more` false, all are shown. */
export function holdBack(list, more) {
  for (const node of list.querySelectorAll('.held')) node.classList.remove('held');
  list.classList.remove('going-on');
  if (!more || list.classList.contains('captions')) return;
  const last = [];
  let node = list.lastElementChild;
  for (; node; node = node.previousElementSibling) {
    if (!node.checkVisibility()) continue;
    if (last.length && node.offsetTop !== last[0].offsetTop) break;
    last.push(node);
  }
  if (!node) return;
  for (const one of last) one.classList.add('held');
  list.classList.add('going-on');
}
