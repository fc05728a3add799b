/**
 * What stands below the grid: whether more is to come, and what is there where nothing is; above it how many pictures are
 * gone, and what becomes of their places, which is to be known before one reads on.
 */

import { announce, button, byId, el, plural } from './dom.js';
import { keepPlaces } from './grid.js';
import { later } from './later.js';
import { goesOn, results, shownRows } from './results.js';
import { now } from './state.js';
import { catalog } from './tables.js';

const nothing = later(() => import('./nothing.js'));

let dead = 0;
let allDead = false;
let places = 'below'; // what becomes of the places of pictures that are gone
let shownTable = null;

/** How many pictures do not load, and whether that is all of them. */
export function takeDead(count, all) {
  [dead, allDead] = [count, all];
}

/** Draws it anew; `table`: the one that is searched. */
export function drawBelow(table) {
  shownTable = table;
  const place = byId('after');
  const children = [];
  if (results.state && !results.rows.length) children.push(inItsPlace((part) => part.nothingFound(results.state, table)));
  else if (results.state && !shownRows().length) children.push(inItsPlace((part) => part.nothingNear(results.rows[0], now.cut)));
  else if (catalog.loaded && !catalog.tables.length) children.push(inItsPlace((part) => part.emptyDatabase()));
  // in a line that is there already, so that nothing moves under the pointer
  tellGone();
  if (goesOn()) children.push(el('p', { class: 'loading' }, el('span', { class: 'spinner', 'aria-hidden': 'true' }), 'More pictures'));
  else if (shownRows().length > 20) children.push(el('p', { class: 'quiet end' }, 'That is all of them.'));
  place.replaceChildren(...children);
}

/** Calls `more()`, which gives whether more has come, whenever the end comes near; `early()`: milliseconds for which it waits. */
export function watchEnd(more, early, calm) {
  const end = byId('after');
  // pages are fetched before their place is reached, so that scrolling does not stop
  const seen = new IntersectionObserver(
    async (entries) => {
      if (!entries.some((entry) => entry.isIntersecting) || now.view !== 'pictures') return;
      seen.unobserve(end);
      // while somebody types, only the first page matters: the next waits until the search stands still
      const wait = early();
      let came = false;
      if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait));
      else {
        end.classList.add('coming');
        came = await more().finally(() => end.classList.remove('coming'));
      }
      setTimeout(() => seen.observe(end), came ? 30 : calm);
    },
    { rootMargin: '1200px' },
  );
  seen.observe(end);
}

/** A place for what a part that may still have to be fetched makes. */
function inItsPlace(make) {
  const place = el('div', {});
  nothing((part) => place.replaceWith(make(part)));
  return place;
}

let told = ''; // what stands above the grid of pictures that are gone

function tellGone() {
  const say = allDead ? 'all' : dead > 0 ? `${dead} ${places}` : '';
  if (say === told) return;
  told = say;
  const place = byId('gone');
  const held = place.contains(document.activeElement);
  if (allDead) place.replaceChildren('None of these pictures loads: only their captions are shown.');
  else place.replaceChildren(...(dead > 0 ? deadNote() : []));
  if (held) place.querySelector('button')?.focus();
  if (allDead) announce(place.textContent);
}

/** How many pictures are gone, and what becomes of their places. */
function deadNote() {
  const ways = { below: 'Keep their places in view', none: 'Only those that load', all: 'Show their captions' };
  const turn = (which) => {
    places = which;
    keepPlaces(which);
    drawBelow(shownTable);
  };
  const others = Object.entries(ways).filter(([which]) => which !== places);
  return [
    `${plural(dead, 'picture')} that no longer load${dead === 1 ? 's' : ''}`,
    ...others.flatMap(([which, text]) => [' · ', button(text, { text, class: 'link', onclick: () => turn(which) })]),
  ];
}
