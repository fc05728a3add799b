/** What is said where the model that words and pictures need is not at hand: which it is, how to get it, and others that fit. */

import { call } from './api.js';
import { copyButton } from './dialogs.js';
import { button, el } from './dom.js';
import { change, now } from './state.js';
import { columnOf } from './tables.js';

const asked = new WeakMap(); // an error → the models at hand when it came

/** The models at hand whose vectors are as long as those of a column; [] where the server cannot say. */
async function fitting(column, error) {
  if (!asked.has(error)) asked.set(error, call('/api/models').catch(() => ({ models: [] })));
  const found = await asked.get(error);
  return found.models.filter((model) => model.dimension === column?.dimension).map((model) => model.name);
}

/** The line and its ways on, for `notice`. `error.model`: the name of what is missing, null where nobody knows it. */
export async function withoutModel(error, state, table, again) {
  const name = error.model;
  const pull = `clipql model pull ${name}`;
  const known = name !== null && !/^[/.]/.test(name);
  const line = name === null ? 'Words need the model that made these vectors, and it is not known which that was.' : `Words and pictures need the model ${name}, which is not on the server’s machine.`;
  const ways = known ? [el('code', { class: 'mono' }, pull), copyButton(() => pull), button('Try again', { text: 'Try again', class: 'link', onclick: again })] : [];
  const others = await fitting(columnOf(state, table), error);
  if (others.length) {
    const choose = el('select', { 'aria-label': 'Model to search with' }, el('option', { value: '' }, 'Search with another model'), others.map((one) => el('option', { value: one }, one)));
    choose.addEventListener('change', () => choose.value && change({ model: choose.value }));
    ways.push(el('label', { class: 'choice' }, choose));
  }
  if (state.words.trim() && table?.caption) {
    const words = state.words.trim();
    const instead = () => change({ words: '', terms: [], filters: [...now.filters, { column: table.caption, op: 'has', value: words }] });
    ways.push(button('Find these letters in the captions', { text: 'Find these letters in the captions', class: 'link', onclick: instead }));
  }
  return [line, ...ways];
}
