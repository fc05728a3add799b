/** Statements that somebody has given a name: kept by this browser for all its tabs, and no server knows of them. */

import { button, el } from './dom.js';
import { watchKept } from './kept.js';

const KEPT = 'clipql:saved-statements';
const MOST = 200;
const NOTHING_KEPT = 'This browser keeps nothing for the page.';

function kept() {
  try {
    const found = JSON.parse(localStorage.getItem(KEPT) ?? '[]');
    return Array.isArray(found) ? found.filter((one) => typeof one?.name === 'string' && typeof one?.sql === 'string') : [];
  } catch {
    return []; // what is there is not ours, or the browser keeps nothing
  }
}

function keep(statements) {
  try {
    localStorage.setItem(KEPT, JSON.stringify(statements.slice(-MOST)));
    return true;
  } catch {
    return false;
  }
}

/** The list and the form above it. `held()` gives what the editor holds, as {sql, params}; `open(sql, params)` puts a statement there. */
export function makeSaved(held, open) {
  const list = el('ul', { class: 'sql-saved' });
  const said = el('p', { class: 'quiet', role: 'status' });
  const name = el('input', { type: 'text', required: true, maxlength: 80, placeholder: 'Name', 'aria-label': 'Name of this statement', autocomplete: 'off' });
  const form = el('form', { class: 'sql-save' }, name, el('button', { type: 'submit', class: 'tool' }, 'Save'));
  let renaming = null; // the name of the one whose name is being written

  function save(event) {
    event.preventDefault();
    const called = name.value.trim();
    const statement = held();
    if (!called) return;
    if (!statement.sql.trim()) {
      said.textContent = 'There is no statement to save.';
      return;
    }
    const [others, one] = [kept().filter((each) => each.name !== called), { name: called, ...statement }];
    said.textContent = keep([...others, one]) ? `Saved as “${called}”.` : NOTHING_KEPT;
    draw();
  }

  function rename(before, after) {
    const all = kept();
    if (after && after !== before && all.some((one) => one.name === after)) {
      said.textContent = `There is a statement “${after}” already: choose another name.`;
      return;
    }
    renaming = null;
    if (after && after !== before) said.textContent = keep(all.map((one) => (one.name === before ? { ...one, name: after } : one))) ? `“${before}” is “${after}” now.` : NOTHING_KEPT;
    draw();
  }

  function remove(called) {
    said.textContent = keep(kept().filter((one) => one.name !== called)) ? `“${called}” was removed.` : NOTHING_KEPT;
    draw();
  }

  function nameField(called) {
    const field = el('input', { type: 'text', required: true, maxlength: 80, value: called, 'aria-label': `New name of ${called}`, autocomplete: 'off' });
    field.addEventListener('keydown', (event) => {
      if (event.key !== 'Escape') return;
      renaming = null;
      draw();
    });
    const renamed = el('form', { class: 'sql-save' }, field, el('button', { type: 'submit', class: 'tool' }, 'Rename'));
    renamed.addEventListener('submit', (event) => {
      event.preventDefault();
      rename(called, field.value.trim());
    });
    return renamed;
  }

  const row = ({ name: called, sql, params }) =>
    el(
      'li',
      {},
      called === renaming
        ? nameField(called)
        : [
            button(called, { text: called, class: 'link', title: sql.slice(0, 600), dir: 'auto', onclick: () => take(called, sql, params) }),
            el('span', { class: 'sql-ways' }, button(`Rename ${called}`, { icon: 'pen', onclick: () => begin(called) }), button(`Remove ${called}`, { icon: 'close', onclick: () => remove(called) })),
          ],
    );

  function take(called, sql, params) {
    name.value = called; // saved again, it takes the place of what was opened
    open(sql, params ?? {});
  }

  function begin(called) {
    renaming = called;
    draw();
    list.querySelector('input')?.select();
  }

  function draw() {
    const typed = list.querySelector('input')?.value; // another tab may have changed the list meanwhile
    const all = kept();
    list.replaceChildren(...(all.length ? all.map(row) : [el('li', {}, el('span', { class: 'quiet' }, 'None was saved in this browser yet'))]));
    const field = list.querySelector('input');
    if (field && typed !== undefined) field.value = typed;
    field?.focus();
  }

  form.addEventListener('submit', save);
  watchKept(KEPT, draw);
  draw();
  return el('div', {}, form, said, list);
}
