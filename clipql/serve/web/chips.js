/**
 * The parts of the query as chips: a phrase, a picture or a row, each with a sign and a weight. Chips appear as soon as
 * the query is more than words in the search box.
 */

import { call } from './api.js';
import { announce, button, el, picture, pictureOf, webAddress } from './dom.js';
import { isVeiled } from './filters.js';
import { change, now, spokenParts } from './state.js';
import { addressFor } from './uploads.js';

const STEP = 0.25;
const HEAVIEST = 2;

let box = null;
let rowFor = () => null;
let tableOfChips = () => null;
let fetchedOf = null;
const fetchedRows = new Map(); // address of a row that is no longer shown → a promise of it

/** `known(id)` gives a row of the table that is open, if the page has it at hand, or null; `table()` that table. */
export function makeChips(node, known, table) {
  box = node;
  rowFor = known;
  tableOfChips = table;
}

/** Adds a part to the query. */
export const addTerm = (term) => addTerms([term]);

/** Adds parts to the query as one step; a part that is in it already takes the new weight. */
export function addTerms(added) {
  const terms = [...now.terms];
  for (const term of added) {
    const same = terms.findIndex((one) => one.kind === term.kind && (one.id ?? one.key ?? one.address ?? one.text) === (term.id ?? term.key ?? term.address ?? term.text));
    if (same < 0) terms.push(term);
    else terms[same] = term;
  }
  change({ terms, row: null });
  announce(added.every((term) => term.weight > 0) ? 'Added to the search' : 'Taken away from the search');
}

export function drawChips(state) {
  const focused = box.contains(document.activeElement) ? document.activeElement.dataset.role : null;
  const chips = state.terms.map((term, i) => chip(term, i, (next) => replace(i, next)));
  const spoken = spokenParts(state.words, state.weight);
  if (spoken.length === 1 && spoken[0].text === state.words.trim()) {
    if (state.terms.length) chips.unshift(chip(spoken[0], 'words', (next) => change(next ? { weight: next.weight } : { words: '', weight: 1 })));
  } else chips.unshift(...spoken.map((part, i) => chip(part, `spoken-${i}`, (next) => settle(spoken, i, next))));
  const empty = !state.terms.length && !state.words.trim();
  box.replaceChildren(...chips, ...(empty ? [] : [phrase(1), phrase(-0.5)]));
  box.hidden = empty;
  // the chip was drawn anew under the user's finger
  if (focused) box.querySelector(`[data-role="${focused}"]`)?.focus();
}

/** One of several phrases in the search box is changed by its chip: all of them become parts of their own. */
function settle(spoken, i, next) {
  const kept = spoken.flatMap((part, n) => (n !== i ? [part] : next ? [{ ...part, ...next }] : []));
  change({ words: '', weight: 1, terms: [...kept, ...now.terms] });
}

function replace(i, next) {
  change({ terms: next ? now.terms.map((one, n) => (n === i ? { ...one, ...next } : one)) : now.terms.filter((_, n) => n !== i) });
}

function chip(term, i, set) {
  const plus = term.weight > 0;
  const size = Math.abs(term.weight);
  const name = el('span', { class: 'chip-name', dir: 'auto' });
  const body = contentOf(term, name);
  const to = (weight) => set({ weight: (plus ? 1 : -1) * Math.round(weight * 100) / 100 });
  const small = (label, what, text, run, disabled = false) =>
    button(label, { text, class: 'chip-step', onclick: run, disabled, dataset: { role: `${what}-${i}` } });
  return el(
    'span',
    { class: `chip ${plus ? 'plus' : 'minus'}`, role: 'group', 'aria-label': `${plus ? 'Plus' : 'Minus'} ${labelOf(term)}, weight ${size}` },
    button(plus ? 'Plus: change to minus' : 'Minus: change to plus', {
      icon: plus ? 'plus' : 'minus',
      class: 'chip-sign',
      onclick: () => set({ weight: -term.weight }),
      dataset: { role: `sign-${i}` },
    }),
    body,
    el('span', { class: 'chip-weight' }, small('Weigh it less', 'less', '‹', () => to(size - STEP), size <= STEP), el('output', {}, `×${size}`), small('Weigh it more', 'more', '›', () => to(size + STEP), size >= HEAVIEST)),
    button('Leave it out', { icon: 'close', class: 'chip-step', onclick: () => set(null), dataset: { role: `out-${i}` } }),
  );
}

const labelOf = (term) => ({ text: term.text, row: 'a picture of the results', picture: 'your picture', address: `the picture at ${term.address}` })[term.kind];

function contentOf(term, name) {
  if (term.kind === 'text') {
    name.textContent = term.text;
    return name;
  }
  const thumb = picture(null, labelOf(term), { class: 'chip-picture', loading: 'eager' });
  if (term.kind === 'address') {
    thumb.title = term.address;
    thumb.addEventListener('error', () => thumb.replaceWith(el('span', { class: 'chip-name' }, term.address)));
    if (webAddress(term.address)) thumb.src = term.address;
    return thumb;
  }
  if (term.kind === 'picture') {
    addressFor(term.key).then((address) => {
      if (address) thumb.src = address;
      else thumb.replaceWith(el('span', { class: 'chip-name' }, 'picture not in this tab'));
    });
    return thumb;
  }
  whenKnown(term.id).then((row) => {
    const source = row && pictureOf(row);
    thumb.addEventListener('error', () => thumb.replaceWith(el('span', { class: 'chip-name' }, row?.caption || `row ${term.id}`)));
    if (row) thumb.classList.toggle('veiled', isVeiled(row, tableOfChips(), now.safe));
    if (row?.caption) thumb.title = thumb.alt = row.caption;
    if (source) thumb.src = source;
    else thumb.replaceWith(el('span', { class: 'chip-name' }, row?.caption || `row ${term.id}`));
  });
  return thumb;
}

/** A row by its id: one that is shown, else the server's; null where there is none. */
export async function whenKnown(id) {
  const path = [now.database ?? 'default', now.table, id].map(encodeURIComponent).join('/');
  const row = rowFor(id);
  if (fetchedOf !== tableOfChips()) fetchedRows.clear(); // it is described anew where it may have changed
  fetchedOf = tableOfChips();
  if (row) fetchedRows.set(path, Promise.resolve(row));
  if (!fetchedRows.has(path)) {
    const asked = call(`/api/rows/${path}`).catch((error) => {
      if (error.status !== 404) fetchedRows.delete(path); // it may be there when it is asked for again
      return null;
    });
    fetchedRows.set(path, asked);
  }
  return fetchedRows.get(path);
}

/** "+ words" and "− words": a button that becomes a field. */
function phrase(weight) {
  const plus = weight > 0;
  const made = button(plus ? 'with… (add words)' : 'without… (take words away)', {
    icon: plus ? 'plus' : 'minus',
    text: plus ? 'with…' : 'without…',
    class: 'chip-add',
    onclick: () => {
      const field = el('input', { type: 'text', class: 'chip-field', dir: 'auto', 'aria-label': plus ? 'Words to add' : 'Words to take away', placeholder: plus ? 'with…' : 'without…', autocomplete: 'off' });
      let done = false;
      const finish = (keep) => {
        if (done) return;
        done = true;
        const text = field.value.trim();
        if (keep && text) addTerm({ kind: 'text', text, weight });
        else if (field.isConnected) field.replaceWith(made);
      };
      field.addEventListener('keydown', (event) => {
        if (event.key === 'Enter') finish(true);
        if (event.key === 'Escape') {
          event.stopPropagation();
          finish(false);
          made.focus();
        }
      });
      field.addEventListener('blur', () => finish(true));
      made.replaceWith(field);
      field.focus();
    },
  });
  return made;
}
