/**
 * A dialog that covers the page without making it inert: the browser goes through all elements of a page that becomes
 * inert, which takes longer than all else where ten thousand pictures are shown. What must stay true: for whoever uses
 * it, it is as a modal one: nothing behind it can be clicked or get the focus, Escape closes it, and Tab stays within.
 */

import { el } from './dom.js';

const FOCUSABLE = 'a[href], button, input, select, textarea, [tabindex]';

/** Shows a dialog over the page until it is closed. */
export function cover(dialog) {
  const before = document.activeElement;
  const over = el('div', { class: 'cover' }, dialog);
  dialog.setAttribute('aria-modal', 'true');
  over.addEventListener('click', (event) => event.target === over && dialog.close());
  const back = (event) => {
    if (!over.contains(event.target) && !above(event.target)) first(dialog)?.focus();
  };
  const keys = (event) => {
    if (above(event.target)) return;
    if (event.key === 'Escape') {
      event.preventDefault();
      event.stopPropagation();
      dialog.close();
    } else if (event.key === 'Tab') turn(event, dialog);
  };
  document.addEventListener('focusin', back);
  document.addEventListener('keydown', keys, true);
  dialog.addEventListener('close', () => {
    document.removeEventListener('focusin', back);
    document.removeEventListener('keydown', keys, true);
    over.remove();
    if (before?.isConnected) before.focus({ preventScroll: true });
  }, { once: true, capture: true });
  document.body.append(over);
  dialog.show();
}

/** Whether an element is of a modal dialog, which lies over this one. */
const above = (node) => node instanceof Element && node.closest('dialog:modal') !== null;

function reached(dialog) {
  return [...dialog.querySelectorAll(FOCUSABLE)].filter((node) => !node.disabled && node.tabIndex >= 0 && node.checkVisibility());
}

const first = (dialog) => reached(dialog)[0];

/** From the last element on to the first, and back; from outside to where it would come in. */
function turn(event, dialog) {
  const nodes = reached(dialog);
  const [end, start] = event.shiftKey ? [nodes[0], nodes.at(-1)] : [nodes.at(-1), nodes[0]];
  if (document.activeElement !== end && dialog.contains(document.activeElement)) return;
  event.preventDefault();
  start?.focus();
}
