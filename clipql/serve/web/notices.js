/** The line above the results that says what is wrong, with what can be done about it. */

import { byId, el } from './dom.js';

/** null takes it away. */
export function notice(text, ...actions) {
  const box = byId('notice');
  box.hidden = text === null;
  box.replaceChildren(...(text === null ? [] : [el('span', {}, text), ...actions]));
}
