/** Light or dark: as the system is, or as the user has chosen here. theme.js brings the choice back before anything is painted. */

import { byId, icon } from './dom.js';
import { watchKept } from './kept.js';

const KEPT = 'clipql:theme';

/** The button shows what it would change to. */
export function drawTheme() {
  const dark = (document.documentElement.dataset.theme ?? (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light')) === 'dark';
  byId('theme').firstElementChild.replaceChildren(icon(dark ? 'sun' : 'moon'));
  return dark;
}

/** Another tab's choice is this one's, too. */
watchKept(KEPT, () => {
  const kept = localStorage.getItem(KEPT);
  if (kept === 'light' || kept === 'dark') document.documentElement.dataset.theme = kept;
  else delete document.documentElement.dataset.theme;
  drawTheme();
});

export function turnTheme() {
  const next = drawTheme() ? 'light' : 'dark';
  document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem(KEPT, next);
  } catch {
    // without storage the choice lasts until the page is closed
  }
  drawTheme();
}
