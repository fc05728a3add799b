/**
 * When our server's pictures are asked for: those in view at once, the others a moment later, and none while a search is on
 * its way, which would wait behind them. What must stay true: every picture that is shown is asked for in the end.
 */

const OTHERS_MS = 200; // longer than between two keys: while somebody types, only what is seen is asked for

let askingSoon = false;
let others = 0;

const isOurs = (tile) => tile.source?.startsWith('./');
const isSeen = ({ node }) => node.checkVisibility() && node.getBoundingClientRect().top < window.innerHeight;

function ask(tile) {
  tile.held = false;
  tile.image.src = tile.source;
}

/** Has a tile's picture asked for; `tiles`: all that are shown, by their ids. */
export function askFor(tile, tiles) {
  if (!isOurs(tile)) {
    ask(tile);
    return;
  }
  tile.held = true;
  askSoon(tiles);
}

/** Has those that were held back asked for, once all tiles are in their places. */
export function askSoon(tiles) {
  if (askingSoon) return;
  askingSoon = true;
  queueMicrotask(() => {
    askingSoon = false;
    const held = [...tiles.values()].filter((tile) => tile.held);
    const seen = held.filter(isSeen); // before any is asked for: to look at places and to change things in turns is slow
    seen.forEach(ask);
    clearTimeout(others);
    if (seen.length < held.length) others = setTimeout(() => [...tiles.values()].filter((tile) => tile.held).forEach(ask), OTHERS_MS);
  });
}

/** What is still on its way makes way. */
export function holdBackPictures(tiles) {
  clearTimeout(others);
  for (const tile of tiles.values()) {
    if (tile.held || tile.loaded || tile.dead || !isOurs(tile) || tile.image.complete) continue;
    tile.held = true;
    tile.image.removeAttribute('src');
  }
}
