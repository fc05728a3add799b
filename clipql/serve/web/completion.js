/**
 * Completion in the SQL editor: keywords, functions, tables and columns that begin like the word before the cursor, or
 * have it in them. Enter or Tab takes one, Escape closes the list, Ctrl + Space opens it.
 */

import { el } from './dom.js';
import { now } from './state.js';
import { catalog } from './tables.js';

const MOST = 9;
const SHORTEST = 2; // letters before the list opens by itself
const [NAMED, OPEN, OTHER] = [-2, -1, 3]; // the ranks of columns, by their table; tables have 1, keywords 2, functions 4

/** `others()`: the tables that the server has, also those that cannot be searched: {database, table, columns: [[name, type]]}. */
export function makeCompletion(area, editor, paint, highlight, others) {
  const list = el('ul', { class: 'completion', id: 'completion', role: 'listbox', 'aria-label': 'Completions', hidden: true });
  editor.append(list);
  for (const [name, value] of Object.entries({ 'aria-autocomplete': 'list', 'aria-controls': 'completion' })) {
    area.setAttribute(name, value);
  }
  let offered = [];
  let chosen = 0;

  const wordBefore = () => /[A-Za-z_][\w]*$/.exec(area.value.slice(0, area.selectionStart))?.[0] ?? '';

  /** The tables as they are now, those that the text names first, then the open one. */
  function tables() {
    const found = new Map();
    for (const { database, name, columns } of catalog.tables) found.set(`${database}.${name}`, { database, name, columns: columns.map((one) => [one.name, one.type]) });
    for (const { database, table, columns } of others()) found.set(`${database}.${table}`, { database, name: table, columns });
    const end = area.selectionStart;
    const text = `${area.value.slice(0, end - wordBefore().length)} ${area.value.slice(end)}`.toLowerCase();
    const words = new Set(text.match(/[\p{L}\p{N}_]+/gu));
    const isNamed = (name) => (/^\w+$/.test(name) ? words.has(name) : text.includes(name));
    const isOpen = (table) => table.name === now.table && table.database === (now.database ?? 'default');
    const rank = (table) => (isNamed(table.name.toLowerCase()) ? NAMED : isOpen(table) ? OPEN : OTHER);
    return [...found.values()].map((table) => ({ ...table, rank: rank(table) })).sort((a, b) => a.rank - b.rank);
  }

  function candidates() {
    const all = tables();
    const found = new Map();
    const add = (name, kind, rank) => found.has(name) || found.set(name, { name, kind, rank });
    for (const table of all) for (const [name, type] of table.columns) add(name, `${table.name} · ${type}`, table.rank);
    for (const table of all) add(table.name, 'table', 1);
    for (const name of highlight.words.keywords) add(name, 'keyword', 2);
    for (const name of highlight.words.functions) add(name, 'function', 4);
    return found.values();
  }

  function update(forced) {
    const word = wordBefore();
    const at = area.selectionStart;
    if ((!forced && word.length < SHORTEST) || at !== area.selectionEnd || !highlight.inCode(at)) return close();
    const low = word.toLowerCase();
    const scored = [];
    for (const one of candidates()) {
      const place = one.name.toLowerCase().indexOf(low);
      if (place < 0 || one.name === word) continue;
      // at its beginning first, then what belongs to the tables named, then the short ones
      scored.push({ ...one, score: (place ? 100 : 0) + one.rank * 10 + Math.min(9, one.name.length / 5) });
    }
    scored.sort((a, b) => a.score - b.score || a.name.localeCompare(b.name));
    offered = scored.slice(0, MOST);
    if (!offered.length) return close();
    chosen = 0;
    draw(word.length);
  }

  function draw(typed) {
    list.replaceChildren(
      ...offered.map((one, i) =>
        el(
          'li',
          { role: 'option', id: `completion-${i}`, 'aria-selected': i === chosen ? 'true' : 'false', onmousedown: (event) => { event.preventDefault(); take(i); } },
          el('span', {}, one.name),
          el('small', {}, one.kind),
        ),
      ),
    );
    list.hidden = false;
    mark();
    const box = caretBox(area.selectionStart - typed);
    if (box) {
      const frame = editor.getBoundingClientRect();
      list.style.left = `${Math.max(0, Math.min(box.left - frame.left - 8, frame.width - list.offsetWidth - 8))}px`;
      list.style.top = `${box.bottom - frame.top + 4}px`;
    }
  }

  /** Where a letter is on the screen: the painted copy has the same letters at the same places. */
  function caretBox(offset) {
    const walker = document.createTreeWalker(paint, NodeFilter.SHOW_TEXT);
    let left = offset;
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      if (left <= node.length) {
        const range = document.createRange();
        range.setStart(node, left);
        range.setEnd(node, Math.min(node.length, left + 1));
        return range.getBoundingClientRect();
      }
      left -= node.length;
    }
    return null;
  }

  function mark() {
    [...list.children].forEach((item, i) => item.setAttribute('aria-selected', i === chosen ? 'true' : 'false'));
    area.setAttribute('aria-activedescendant', `completion-${chosen}`);
    list.children[chosen]?.scrollIntoView({ block: 'nearest' });
  }

  function close() {
    list.hidden = true;
    offered = [];
    area.removeAttribute('aria-activedescendant');
  }

  function take(i) {
    const { name, kind } = offered[i];
    const end = area.selectionStart;
    const plain = /^[A-Za-z_]\w*$/.test(name) || kind === 'keyword';
    const text = (plain ? name : `\`${name.replace(/[\\`]/g, '\\$&')}\``) + (kind === 'function' ? '()' : '');
    close();
    area.setRangeText(text, end - wordBefore().length, end, 'end');
    if (kind === 'function') area.selectionStart = area.selectionEnd = area.selectionStart - 1;
    area.dispatchEvent(new InputEvent('input', { inputType: 'insertCompletion' }));
  }

  area.addEventListener('input', (event) => (event.inputType === 'insertCompletion' ? close() : update(false)));
  area.addEventListener('blur', close);
  area.addEventListener('click', close);
  area.addEventListener('keydown', (event) => {
    if (event.key === ' ' && event.ctrlKey) {
      event.preventDefault();
      update(true);
      return;
    }
    if (!offered.length || event.ctrlKey || event.metaKey) return;
    const keys = {
      ArrowDown: () => (chosen = (chosen + 1) % offered.length),
      ArrowUp: () => (chosen = (chosen + offered.length - 1) % offered.length),
      Enter: () => take(chosen),
      Tab: () => take(chosen),
      Escape: close,
    };
    if (!keys[event.key]) {
      if (/^(ArrowLeft|ArrowRight|Home|End)$/.test(event.key)) close();
      return;
    }
    event.preventDefault();
    event.stopPropagation();
    keys[event.key]();
    if (offered.length) mark();
  });
}
