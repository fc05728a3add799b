/**
 * Pictures of the web that are gone. An address that failed is remembered for a day, so that the next search neither asks
 * for it nor gives it room. What must stay true: only addresses of the web are kept, and only while the browser was online.
 */

import { webAddress, webLink } from './dom.js';

const KEPT = 'clipql:dead';
const MOST_DEAD = 4000;
const DAY = 24 * 60 * 60 * 1000;

const since = new Map(stored()); // address → when it failed
let writing = 0;

function stored() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEPT) ?? '[]');
    return kept.filter(([address, when]) => webAddress(address) && Date.now() - when < DAY);
  } catch {
    return [];
  }
}

/** Whether an address failed not long ago. */
export const isDead = (address) => since.has(address);

/** Remembers that an address failed. */
export function remember(address) {
  if (!webAddress(address) || !navigator.onLine) return;
  since.set(address, Date.now());
  writing ||= setTimeout(() => {
    writing = 0;
    for (const [address, when] of stored()) if (!since.has(address)) since.set(address, when); // other tabs have found some, too
    try {
      localStorage.setItem(KEPT, JSON.stringify([...since].slice(-MOST_DEAD)));
    } catch {
      // without storage it is known until the page is closed
    }
  }, 1000);
}

/** Where a copy of a picture of the web may be; null for our own. */
export function archiveLink(row, shown = 'archive') {
  const address = webAddress(row.picture);
  return address && webLink(`https://web.archive.org/web/${address}`, shown, { title: 'Look for it in the Internet Archive', class: 'archive' });
}
