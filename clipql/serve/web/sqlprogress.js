/** How far a statement is while it runs: how long, and what the server says that it has read. */

import { call } from './api.js';
import { count } from './dom.js';

const EVERY_MS = 1000;
let asked = 0;

/** Calls `tell({text, share} or null)` now and every second until `end()`; `of(name)` gives the id of the query to ask about. */
export function watchProgress(signal, tell) {
  let id = null;
  let read = null;
  let waits = false;
  async function look() {
    if (waits || id === null) return;
    const mine = id;
    waits = true;
    const found = await call(`/api/progress/${mine}`, { signal }).catch(() => null); // said without it
    waits = false;
    if (id === mine) read = found?.read_rows ? readAs(found) : read;
  }
  tell(null);
  const clock = setInterval(async () => {
    await look();
    if (id !== null && !signal.aborted) tell(read);
  }, EVERY_MS);
  return {
    of(name) {
      id = `${name}-${asked++}`;
      read = null;
      tell(null);
      return id;
    },
    end() {
      clearInterval(clock);
      id = null;
    },
  };
}

function readAs({ read_rows: rows, total_rows: total }) {
  if (!total) return { text: `${count(rows)} rows read`, share: null };
  return { text: `${count(rows)} of ${count(total)} rows read, ${Math.floor((100 * rows) / total)} %`, share: rows / total };
}
