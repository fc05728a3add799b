/** What this browser keeps for the page (localStorage) is that of all its tabs: one that changes it is followed by the others. */

/** Calls `changed()` when another tab has changed what is kept under a key; gives a function that ends it. */
export function watchKept(key, changed) {
  const heard = (event) => (event.key === key || event.key === null) && changed(); // null: all of it was taken away
  window.addEventListener('storage', heard);
  return () => window.removeEventListener('storage', heard);
}
