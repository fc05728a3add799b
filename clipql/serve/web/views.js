/** Searches that somebody has given a name: kept by this browser, and no server knows of them. */

import { openDialog } from './dialogs.js';
import { button, byId, el } from './dom.js';
import { watchKept } from './kept.js';
import { now, toHash } from './state.js';

const KEPT = 'clipql:views';
const MOST = 200;
const NONE = 'No search has been saved in this browser yet.';

function kept() {
  try {
    const found = JSON.parse(localStorage.getItem(KEPT) ?? '[]');
    return Array.isArray(found) ? found.filter((one) => typeof one?.name === 'string' && typeof one?.hash === 'string') : [];
  } catch {
    return []; // what is there is not ours, or the browser keeps nothing
  }
}

function keep(views) {
  try {
    localStorage.setItem(KEPT, JSON.stringify(views.slice(-MOST)));
    return true;
  } catch {
    return false;
  }
}

/** The statement that the editor holds, which may not have been run yet. */
const written = () => (now.view === 'sql' && byId('sql')?.value.trim()) || now.sql;

/** The dialog of saved views: open one, name this one, take one away. */
export function showViews() {
  const list = el('ul', { class: 'views' });
  const said = el('p', { class: 'quiet', role: 'status' });
  const name = el('input', { type: 'text', required: true, maxlength: 80, placeholder: 'dogs on a beach', autocomplete: 'off' });
  const form = el('form', { class: 'ask' }, el('label', { class: 'field' }, 'Name of this search ', name), el('button', { type: 'submit', class: 'tool primary' }, 'Save'));
  const draw = () => {
    const views = kept();
    list.replaceChildren(
      ...views.map((view) =>
        el('li', {}, el('a', { href: view.hash, onclick: () => dialog.close() }, view.name), button(`Remove ${view.name}`, {
          icon: 'close',
          onclick: () => {
            keep(kept().filter((one) => one.name !== view.name));
            said.textContent = `“${view.name}” was removed.`;
            draw();
          },
        })),
      ),
    );
    if (!views.length) said.textContent = NONE;
    else if (said.textContent === NONE) said.textContent = '';
  };
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    const called = name.value.trim();
    if (!called) return;
    const view = { name: called, hash: toHash({ ...now, row: null, sql: written() }) };
    said.textContent = keep([...kept().filter((one) => one.name !== called), view]) ? `Saved as “${called}”.` : 'This browser keeps nothing for the page.';
    draw();
  });
  const alone = watchKept(KEPT, draw);
  const dialog = openDialog('Saved searches', [form, said, list], { onclose: alone });
  draw();
  name.focus();
}
