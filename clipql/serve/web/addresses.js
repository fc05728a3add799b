/** Addresses where words or files are asked for: what is said of them, and the ways on. */

import { addTerm } from './chips.js';
import { button, webAddress } from './dom.js';
import { change, now } from './state.js';
import { catalog } from './tables.js';

const link = (text, onclick) => button(text, { text, class: 'link', onclick });

/** The line and its ways on, for `notice`, where an address stands in the search box. */
export function asWords(address, table) {
  const column = table?.picture?.kind === 'url' ? table.picture.column : null;
  const row = () => change({ words: '', terms: [], filters: [{ column, op: 'eq', value: address }], where: '' });
  const there = () => change({ words: '', weight: 1, terms: [...now.terms, { kind: 'address', address: webAddress(address), weight: 1 }] });
  return [
    catalog.fetches ? 'That is an address.' : 'That is an address, and this page fetches nothing from elsewhere. To search with its picture, save it and drop the file here.',
    catalog.fetches ? link('Search with the picture there', there) : '',
    column ? link('Look for the row with this address', row) : '',
  ];
}

/** A picture was dragged here from another page, which gives its address alone. */
export function dropped(address, tell) {
  if (catalog.fetches) addTerm({ kind: 'address', address, weight: 1 });
  else tell('That is the address of a picture, and this page fetches nothing from elsewhere: save the picture and drop its file.');
}
