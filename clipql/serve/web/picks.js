/** Which pictures are picked: rows by their ids, in the order in which they were picked; grid and map both show them. */

export const picked = new Map();

const listeners = new Set();

/** Calls `listener()` whenever others are picked. */
export function watchPicks(listener) {
  listeners.add(listener);
}

export function tellPicks() {
  for (const listener of listeners) listener();
}
