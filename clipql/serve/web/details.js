/**
 * The details of one row: the picture at its size, every value, and what can be done with it. The row is in the address,
 * so it can be shared, and the back button closes it.
 */

import { addTerm, whenKnown } from './chips.js';
import { cover } from './cover.js';
import { archiveLink } from './dead.js';
import { copyButton } from './dialogs.js';
import { announce, button, el, icon, originalOf, picture, pictureOf, webLink } from './dom.js';
import { factsOf } from './facts.js';
import { isVeiled, uncover } from './filters.js';
import { SMALL_PICTURE, focusTile, shownIds } from './grid.js';
import { change, now } from './state.js';

const LARGE = 768;
const LONG = 2.4; // a picture so many times as wide as high, or as high as wide, is scrolled rather than made a strip

let dialog = null;
let body = null;
let shown = null;
let filled = null; // what else than the row decides how it is shown
let filling = null; // the newest of what has been asked for
let currentTable = () => null;

/** `table()` gives what is known of the table shown. */
export function makeDetails(table) {
  currentTable = table;
}

/** Opens, changes or closes the dialog, as the state says. */
export function drawDetails(state) {
  if (state.row === null || state.view === 'sql') {
    shown = null;
    dialog?.close();
    return;
  }
  if (!dialog) open();
  const key = [state.database, state.table, state.safe, currentTable() !== null].join('\n');
  if (state.row !== shown || key !== filled) {
    [shown, filled] = [state.row, key];
    fill(state.row);
  }
}

function open() {
  body = el('div', { class: 'details-body' });
  dialog = el('dialog', { class: 'dialog details', 'aria-label': 'Details of a picture' });
  dialog.append(
    button('Close', { icon: 'close', class: 'ghost details-close', onclick: () => dialog.close() }),
    button('The picture before', { icon: 'left', class: 'ghost details-step to-left', onclick: () => go(-1) }),
    button('The picture after', { icon: 'right', class: 'ghost details-step to-right', onclick: () => go(1) }),
    body,
  );
  dialog.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches('.details-picture.long')) return;
    const keys = { ArrowLeft: () => go(-1), ArrowRight: () => go(1), m: () => like(shown), '+': () => add(1), '-': () => add(-0.5) };
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  dialog.addEventListener('close', () => {
    const id = shown ?? now.row;
    dialog.remove();
    dialog = shown = null;
    if (now.row !== null) leave();
    if (now.view === 'pictures') focusTile(id);
  });
  cover(dialog);
}

/** Closing is going back where the page itself had opened the row, so no closed row is left in the history. */
function leave() {
  if (history.state?.opened) history.back();
  else change({ row: null }, 'replace');
}

function go(by) {
  const ids = shownIds();
  const next = ids[ids.indexOf(shown) + by];
  if (next !== undefined && shown !== null) change({ row: next }, 'replace');
}

function like(id) {
  change({ words: '', weight: 1, terms: [{ kind: 'row', id, weight: 1 }], row: null });
}

function add(weight) {
  addTerm({ kind: 'row', id: shown, weight });
}

async function fill(id) {
  const mine = (filling = Symbol('row'));
  const row = await whenKnown(id);
  if (mine !== filling || id !== shown) return;
  if (!row) {
    body.replaceChildren(el('p', { class: 'details-missing' }, `There is no row ${id} in this table, or it cannot be read.`));
    return;
  }
  const table = currentTable();
  const address = originalOf(row);
  body.replaceChildren(
    veiledOrNot(row, table),
    el(
      'div',
      { class: 'details-words' },
      heading(row.caption || 'Without a caption'),
      factsOf(row, table, true),
      el(
        'div',
        { class: 'buttons' },
        button('More like this', { icon: 'like', text: 'More like this', class: 'tool primary', onclick: () => like(id) }),
        button('Add to the search', { icon: 'plus', text: 'Add', class: 'tool', 'aria-label': 'Add to the search', onclick: () => add(1) }),
        button('Take away from the search', { icon: 'minus', text: 'Take away', class: 'tool', onclick: () => add(-0.5) }),
      ),
      address || row.caption
        ? el(
            'div',
            { class: 'buttons' },
            address ? webLink(address, [icon('out'), 'Open the picture'], { class: 'tool' }) : null,
            row.caption ? copyButton(() => row.caption, 'Copy the caption') : null,
            address ? copyButton(() => row.picture ?? address.split('?')[0], 'Copy the address') : null,
          )
        : null,
      values(row, table),
    ),
  );
  announce(row.caption || 'Picture without a caption');
}

/** The caption; of a long one the beginning, so that the buttons stay where they are. */
function heading(caption) {
  const title = el('h2', { class: 'short', dir: 'auto' }, caption);
  const more = button('Show all of the caption', { text: 'Show all of the caption', class: 'link', hidden: true });
  more.addEventListener('click', () => {
    title.classList.toggle('short');
    more.textContent = title.classList.contains('short') ? 'Show all of the caption' : 'Show less of the caption';
  });
  requestAnimationFrame(() => (more.hidden = title.scrollHeight <= title.clientHeight + 1));
  return [title, more];
}

/** The picture, which may have to be uncovered first. */
function veiledOrNot(row, table) {
  const frame = el('div', { class: 'details-picture' }, largePicture(row));
  if (!isVeiled(row, table, now.safe) || !pictureOf(row, LARGE)) return frame;
  const show = () => {
    uncover(row, table);
    frame.classList.remove('veiled');
    frame.lastChild.remove();
  };
  frame.classList.add('veiled');
  frame.append(button('Show this picture, which may not be safe', { text: 'Show this picture, which may not be safe', class: 'tool', onclick: show }));
  return frame;
}

function largePicture(row) {
  const source = pictureOf(row, LARGE);
  const words = el('p', { class: 'details-missing' }, source ? 'This picture no longer loads.' : 'This row has no picture.');
  if (!source) return words;
  const image = picture(source, row.caption || 'Picture without a caption', { loading: 'eager' });
  image.addEventListener('load', () => {
    const [w, h] = [image.naturalWidth, image.naturalHeight];
    image.classList.toggle('small', Math.max(w, h) <= SMALL_PICTURE);
    if (Math.max(w / h, h / w) >= LONG && Math.max(w, h) > SMALL_PICTURE) lengthen(image, w > h, row);
  });
  image.addEventListener('error', () => {
    image.replaceWith(words);
    const link = archiveLink(row, 'Look for it in the Internet Archive');
    if (link) words.append(' ', link);
  });
  return image;
}

/** A panorama fills the frame with its short side and is scrolled; a small copy of it would be a blur. */
function lengthen(image, wide, row) {
  const frame = image.parentElement;
  if (!frame || frame.classList.contains('long')) return;
  frame.classList.add('long', wide ? 'wide' : 'tall');
  frame.tabIndex = 0;
  frame.setAttribute('role', 'group');
  frame.setAttribute('aria-label', 'A long picture: scroll to see all of it');
  if (pictureOf(row)?.startsWith('./')) image.src = originalOf(row);
}

/** All values of the row. Addresses become links only where they are of the web. */
function values(row, table) {
  const list = el('dl', { class: 'values' });
  const put = (name, value) => list.append(el('dt', {}, name), el('dd', { dir: 'auto' }, value));
  put('row', row.id);
  const names = new Set([...(table?.columns.map((column) => column.name) ?? []), ...Object.keys(row.values ?? {})]);
  for (const name of names) {
    if (!(name in (row.values ?? {}))) continue;
    const value = row.values[name];
    if (value === null || value === '') put(name, el('i', { class: 'quiet' }, value === null ? 'NULL' : 'empty'));
    else if (typeof value === 'string') put(name, webLink(value));
    else put(name, typeof value === 'object' ? JSON.stringify(value) : String(value));
  }
  return list;
}
