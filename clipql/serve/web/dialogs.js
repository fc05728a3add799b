/** Dialogs: the frame they share, and the small ones (SQL of a search, export, help, token). */

import { ApiError } from './api.js';
import { announce, button, copy, count, el } from './dom.js';
import { laidOut } from './highlight.js';
import { distinct, download, goesOn, mostInFile, results, shownRows, shownSql } from './results.js';
import { now } from './state.js';

/** Opens a dialog with a title and a way out, which Back is too where it `leaves`: it then has the class `left`. `style`: 'middle' or 'side'. */
export function openDialog(title, content, { style = 'middle', leaves = true, onclose } = {}) {
  const dialog = el('dialog', { class: `dialog ${style}`, 'aria-label': title });
  const heading = el('header', {}, el('h2', {}, title), button('Close', { icon: 'close', onclick: () => dialog.close() }));
  const body = el('div', { class: 'dialog-body' }, content);
  if (!body.querySelector('button, a, input, select, textarea, [tabindex]')) body.tabIndex = 0; // for scrolling by keys
  dialog.append(heading, body);
  dialog.addEventListener('click', (event) => {
    // only the backdrop is the dialog itself; everything in it is a child
    if (event.target === dialog) dialog.close();
  });
  // the way back leads away from what the dialog is about
  const away = () => {
    dialog.classList.add('left');
    dialog.close();
  };
  if (leaves) window.addEventListener('popstate', away);
  dialog.addEventListener('close', () => {
    window.removeEventListener('popstate', away);
    dialog.remove();
    onclose?.();
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** A button that copies what `text()` gives and says so for a moment. */
export function copyButton(text, label = 'Copy') {
  const made = button(label, { icon: 'copy', text: label, class: 'tool' });
  made.addEventListener('click', async () => {
    const done = await copy(text());
    made.style.minWidth = `${made.getBoundingClientRect().width}px`; // what stands beside it does not move under the pointer
    made.lastChild.textContent = done ? 'Copied' : 'Not copied';
    announce(done ? 'Copied' : 'The browser did not let the page copy');
    setTimeout(() => (made.lastChild.textContent = label), 1600);
  });
  return made;
}

/** A parameter of numbers as a few of them: the whole vector is for copying. */
export const shortly = (value) =>
  Array.isArray(value) && value.length > 6
    ? `[${value.slice(0, 4).map((x) => Number(x).toFixed(4)).join(', ')}, … ${value.length} numbers]`
    : JSON.stringify(value);

/** The lines of a plan; a long one goes on below, as far in as it begins. */
export function planOf(plan) {
  const lines = plan.map((text) => {
    const line = el('span', {}, text);
    line.style.setProperty('--in', `${/^[\s│└├─]*/.exec(text)[0].length + 2}ch`);
    return line;
  });
  return el('pre', { class: 'plan', tabindex: 0 }, lines);
}

const BITS = /'[\w+/=]{200,}'/g; // of many rows (`rowset.js`): copied, and not shown, as they are

/** The statement that gives the rows shown. `edit(sql, params)` opens it in the SQL view. */
export function showSql(edit) {
  if (!results.sql) return;
  const { params, plan, ms } = results;
  const sql = laidOut(shownSql());
  const names = Object.keys(params);
  const times = ms && ['encode', 'search', 'total'].filter((name) => typeof ms[name] === 'number').map((name) => `${name} ${ms[name].toFixed(1)} ms`);
  const dialog = openDialog('The SQL of this search', [
    el('pre', { class: 'statement', tabindex: 0 }, sql.replace(BITS, (bits) => `${bits.slice(0, 40)}… ${count(bits.length - 2)} letters'`)),
    names.length ? el('dl', { class: 'params' }, names.flatMap((name) => [el('dt', {}, name), el('dd', {}, shortly(params[name]))])) : null,
    el('div', { class: 'buttons' }, copyButton(() => sql), button('Edit and run', {
      icon: 'code',
      text: 'Edit and run',
      class: 'tool',
      onclick: () => {
        dialog.close();
        edit(sql, params);
      },
    })),
    plan.length ? [el('h3', {}, 'How it is searched'), planOf(plan)] : null,
    times?.length ? el('p', { class: 'quiet' }, times.join(' · ')) : null,
  ]);
}

/** Export of the results as a file. */
export function showExport() {
  if (!results.state) return;
  const many = el('select', { 'aria-label': 'Rows' });
  const shown = shownRows().length;
  const rounded = (goesOn() && now.cut === null ? [100, 1000, 10000] : []).filter((n) => n !== shown && n <= mostInFile());
  for (const n of [shown, ...rounded].filter((n) => n > 0)) many.append(el('option', { value: n }, n === shown ? `the ${count(distinct())} shown` : `the first ${count(n)}`));
  const once = results.state.fold ? el('p', { class: 'quiet' }, 'Of rows that are almost the same, the file has the first.') : null;
  const said = el('p', { class: 'quiet', role: 'status' });
  const one = (format, ending) =>
    button(format, {
      icon: 'download',
      text: format,
      class: 'tool',
      onclick: async (event) => {
        event.currentTarget.disabled = true;
        const pressed = event.currentTarget;
        const { name } = results.table; // another may be shown when the file comes
        said.textContent = 'Collecting the rows…';
        try {
          saveFile(await download(format, Number(many.value)), `${name}.${ending}`);
          said.textContent = 'Saved.';
        } catch (error) {
          said.textContent = error instanceof ApiError ? error.message : String(error);
        }
        pressed.disabled = false;
      },
    });
  openDialog('Export the results', [
    el('label', { class: 'field' }, 'Rows ', many),
    el('div', { class: 'buttons' }, one('JSON', 'json'), one('CSV', 'csv'), one('Parquet', 'parquet')),
    once,
    said,
  ]);
}

export function saveFile(blob, name) {
  const address = URL.createObjectURL(blob);
  el('a', { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

const KEYS = [
  ['/', 'to the search box'],
  ['Enter', 'in the search box: search; on a picture: its details'],
  ['↓', 'from the search box into the pictures'],
  ['← → ↑ ↓', 'from picture to picture; in the details, to the one before and after'],
  ['x', 'pick the picture, or take the pick back; with Shift: all up to it. So do Ctrl and Shift with a click'],
  ['Shift and drag', 'choose on the map what is inside; pick in the grid what is touched'],
  ['m', 'more like the picture'],
  ['+ and -', 'add the picture to the search, or take it away'],
  ['Escape', 'close; in the search box: clear'],
  ['Ctrl + Enter', 'run, in the SQL view'],
  ['?', 'this help'],
];

export function showHelp() {
  openDialog('How to search', [
    el('p', {}, 'Say what is to be seen, in words: ', el('q', {}, 'a red dress on a white wall'), '. Or drop, paste or pick a picture.'),
    el('p', {}, 'Mix several: ', el('q', {}, 'cat + heart'), ', or ', el('q', {}, 'face - smile'), '. Every picture can be added or taken away with a weight, and every chip below the search box has one.'),
    el('p', {}, 'The address of the page always holds the search, so it can be kept and shared. Pictures you search with are not in it: they stay in this tab.'),
    el('table', { class: 'keys' }, el('tbody', {}, KEYS.map(([key, what]) => el('tr', {}, el('th', { scope: 'row' }, el('kbd', {}, key)), el('td', {}, what))))),
  ]);
}

const TOKEN_IS = {
  first: 'It is the one that clipql serve was started with.',
  wrong: 'The server did not take that token.',
  changed: 'The server has another token than before. It is the one that clipql serve was started with.',
};

/** Asks for the server's token; null where the user will not say. `why`: as `api.js` has it. */
export function askToken(why) {
  return new Promise((resolve) => {
    let given = null;
    const field = el('input', { type: 'password', autocomplete: 'current-password', 'aria-label': 'Token', required: true });
    const form = el('form', { class: 'token' }, field, el('button', { class: 'tool primary' }, 'Enter'));
    const dialog = openDialog(
      'This server needs a token',
      [el('p', {}, TOKEN_IS[why]), form],
      { style: 'middle asks-token', leaves: false, onclose: () => resolve(given) },
    );
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      given = field.value.trim() || null;
      dialog.close(given === null ? '' : 'given');
    });
    field.focus();
  });
}
