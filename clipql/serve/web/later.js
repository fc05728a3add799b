/**
 * The parts of the page that the first results do not need: fetched when they are first used, or once the first results
 * are seen. On a slow line the page is there in half the time.
 */

import { announce, byId, notice } from './dom.js';

const SOON_MS = 200; // a part that takes longer is seen to be on its way
const FETCHING = 'A part of the page is being fetched';

const laterParts = [];
let awaited = 0; // parts that somebody waits for

/** A part: a function that calls its argument with the part's module, and fetches it where it is not there yet. */
export function later(load, made = () => {}) {
  let part = null;
  const fetched = () =>
    (part ??= load().then(
      (module) => {
        made(module);
        return module;
      },
      (error) => {
        part = null;
        throw error;
      },
    ));
  laterParts.push(fetched);
  return async (use) => {
    let module;
    let seen = false;
    const sign = setTimeout(() => {
      seen = true;
      waitFor(1);
    }, SOON_MS);
    try {
      module = await fetched();
    } catch {
      notice('A part of this page could not be fetched. Try again, or load the page anew.');
      return null;
    } finally {
      clearTimeout(sign);
      if (seen) waitFor(-1);
    }
    return use(module);
  };
}

/** Shows that somebody waits for a part more, or for one less. */
function waitFor(more) {
  awaited += more;
  document.documentElement.classList.toggle('fetching', awaited > 0);
  if (more > 0 && awaited === 1) announce(FETCHING);
  if (awaited === 0 && byId('live').textContent === FETCHING) announce('');
}

/** Fetches all parts, one after the other, so that what is seen goes first. */
export async function fetchAll() {
  for (const fetched of laterParts) await fetched().catch(() => {});
}
