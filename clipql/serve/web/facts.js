/** The line of facts about a row: one labelled similarity, its size, where it is from. */

import { el, webAddress, webLink } from './dom.js';
import { knownColumns } from './filters.js';

/** "similarity 0.712 · 640 × 480 · example.com", as far as it is known. */
export function factsOf(row, table, ranked) {
  const known = knownColumns(table);
  const node = el('p', { class: 'facts' });
  if (ranked && typeof row.distance === 'number') node.append(el('span', { class: 'similarity', title: `Similarity to what you search for: the cosine; its distance is ${row.distance.toFixed(4)}` }, el('span', {}, `similarity ${(1 - row.distance).toFixed(3)}`)));
  const [w, h] = [row.values?.[known.width], row.values?.[known.height]];
  if (w && h) node.append(el('span', { class: 'size' }, `${w} × ${h}`));
  const address = webAddress(row.picture);
  if (address) node.append(webLink(address, new URL(address).hostname.replace(/^www\./, ''), { title: address, tabindex: -1 }));
  return node;
}
