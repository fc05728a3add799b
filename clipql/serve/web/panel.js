/** The panel of filters, made from the table's columns, and the pills of those in use. */

import { openDialog } from './dialogs.js';
import { button, byId, count, el, plural } from './dom.js';
import { SHOWN_OPERATIONS, describe, knownColumns, mistakeIn, operationsOf } from './filters.js';
import { rankedByWords, scoreIn } from './results.js';
import { countOf } from './rowset.js';
import { change, isWeight, now, parts } from './state.js';

const LONGEST = 200; // characters of a condition in its pill

/** The filters in use, each of which can be taken out. */
export function drawPills(state, table) {
  const out = (label, text, run) => el('span', { class: 'pill' }, el('span', { class: 'pill-text', dir: 'auto' }, text), button(label, { icon: 'close', onclick: run }));
  const pills = state.filters.map((filter, i) => {
    const column = table?.columns.find((one) => one.name === filter.column);
    const wrong = mistakeIn(filter, column);
    const pill = out(`Remove ${describe(filter)}`, describe(filter), () => change({ filters: now.filters.filter((_, n) => n !== i) }));
    if (wrong) {
      pill.classList.add('wrong');
      pill.title = `Not used: ${wrong}`;
    }
    return pill;
  });
  if (state.where.trim()) pills.push(out('Remove the WHERE', shortened(state.where.trim()), () => change({ where: '' })));
  if (state.model) pills.push(out('Search with the column’s own model', `model ${state.model}`, () => change({ model: null })));
  if (state.hybrid) {
    const pill = out('Rank by meaning alone', 'the words themselves, too', () => change({ hybrid: false }));
    const used = rankedByWords(state) || !parts(state).length;
    pill.classList.toggle('wrong', !used);
    if (!used) pill.title = 'Not used: the search is not of one text alone';
    pills.push(pill);
  }
  if (state.score) {
    const pill = out('Order by similarity alone', scoreText(state.score), () => change({ score: null }));
    pill.classList.toggle('wrong', !scoreIn(state, table));
    if (!scoreIn(state, table)) pill.title = `Not used: ${rankedByWords(state) ? 'the words themselves rank, too' : `there is no column ${state.score.column} of numbers`}`;
    pills.push(pill);
  }
  if (state.recall !== null) pills.push(out('Find as many of the nearest as usual', state.recall === 'exact' ? 'all rows compared' : `at least ${count(100 * state.recall)} % of the nearest`, () => change({ recall: null })));
  if (pills.length > 1) pills.push(button('Clear all', { text: 'Clear all', class: 'link', onclick: () => change({ filters: [], where: '', model: null, hybrid: false, score: null, recall: null }) }));
  byId('pills').replaceChildren(...pills);
  byId('pills').hidden = !pills.length;
}

/** A condition as its pill has it; rows that were chosen by hand are counted. */
function shortened(where) {
  const chosen = countOf(where);
  if (chosen !== null) return plural(chosen, 'chosen row');
  return `WHERE ${where.length > LONGEST ? `${where.slice(0, LONGEST)}…` : where}`;
}

/** Opens the panel; what is set there counts at once. */
export function openFilters(table) {
  const known = knownColumns(table);
  const first = [known.width, known.height, known.similarity].filter(Boolean);
  const usable = table.columns.filter((column) => operationsOf(column).length);
  const rows = el('div', { class: 'filter-rows' });
  const column = (name) => table.columns.find((one) => one.name === name);

  const others = now.filters.filter((filter) => !(first.includes(filter.column) && (filter.op === 'ge' || filter.op === 'le')));
  for (const name of first) rows.append(rangeRow(column(name), apply));
  for (const filter of others) rows.append(filterRow(usable, filter, apply));

  function apply() {
    if (!rows.isConnected || rows.closest('.left')) return; // the panel was left before what was typed last was taken
    const filters = [...rows.children].flatMap((row) => row.read());
    if (JSON.stringify(filters) !== JSON.stringify(now.filters)) change({ filters }, 'replace');
  }

  const where = el('textarea', {
    rows: 3,
    spellcheck: 'false',
    autocapitalize: 'off',
    'aria-label': 'WHERE, in SQL',
    placeholder: "length(caption) > 20 AND caption NOT LIKE '%logo%'",
    value: now.where,
  });
  // a field that Back leads away from loses its focus, which is no wish to search by it
  const useWhere = () => !where.closest('.left') && where.value.trim() !== now.where.trim() && change({ where: where.value }, 'replace');
  where.addEventListener('change', useWhere);
  where.addEventListener('keydown', (event) => event.key === 'Enter' && (event.ctrlKey || event.metaKey) && useWhere());

  const recall = el('select', { 'aria-label': 'How many of the nearest to find' }, [['', 'nearly all, fast (default)'], ['0.9', 'at least 90 %'], ['0.99', 'at least 99 %'], ['exact', 'all: look at every row']].map(([value, text]) => el('option', { value, selected: String(now.recall ?? '') === value }, text)));
  recall.addEventListener('change', () => change({ recall: recall.value === 'exact' ? 'exact' : Number(recall.value) || null }, 'replace'));

  const hybrid = el('input', { type: 'checkbox', checked: now.hybrid });
  hybrid.addEventListener('change', () => change({ hybrid: hybrid.checked }, 'replace'));

  // the whole panel is one step of the back button: it begins here, and what is set in it replaces this step
  change({}, 'step');
  byId('filters').setAttribute('aria-expanded', 'true');
  openDialog(
    'Filters',
    [
      rows,
      usable.length ? button('Another column', { icon: 'plus', text: 'Another column', class: 'tool', onclick: () => rows.append(filterRow(usable, null, apply)) && rows.lastChild.querySelector('select').focus() }) : null,
      el('h3', {}, 'Any condition, in SQL'),
      el('label', { class: 'field tall' }, el('span', { class: 'mono' }, 'WHERE'), where),
      el('p', { class: 'filter-error', id: 'filter-error', role: 'alert' }),
      scoreControl(table),
      table.caption ? [el('h3', {}, 'Words'), el('label', { class: 'field' }, hybrid, el('span', {}, 'look for the words themselves, too'))] : null,
      table.vectors.some((vector) => vector.indexes?.length) ? [el('h3', {}, 'How many of the nearest to find'), recall] : null,
    ],
    {
      style: 'side',
      onclose: () => {
        useWhere();
        byId('filters').setAttribute('aria-expanded', 'false');
      },
    },
  );
}

const scoreText = ({ column, weight }) => `order: distance ${weight < 0 ? '+' : '−'} ${Math.abs(weight)} × ${column}`;

/** A column of numbers that is mixed into the order, with its weight; null where the table has none. */
function scoreControl(table) {
  const numbers = table.columns.filter((one) => one.kind === 'number');
  if (!numbers.length) return null;
  const chosen = now.score?.column ?? '';
  const column = el('select', { 'aria-label': 'Mixed into the order' }, el('option', { value: '' }, 'similarity alone'), numbers.map(({ name }) => el('option', { value: name, selected: name === chosen }, name)));
  const weight = el('input', { type: 'text', inputmode: 'decimal', 'aria-label': 'Its weight', value: now.score?.weight ?? 0.1, autocomplete: 'off', disabled: !column.value });
  const apply = () => {
    if (column.closest('.left')) return;
    weight.disabled = !column.value;
    const wrong = isWeight(weight.value) ? '' : 'a weight is a number, such as 0.1 or -2';
    weight.setCustomValidity(wrong);
    weight.title = wrong;
    const score = column.value ? { column: column.value, weight: Number(weight.value) } : null;
    if (!wrong && JSON.stringify(score) !== JSON.stringify(now.score)) change({ score }, 'replace');
  };
  column.addEventListener('change', apply);
  weight.addEventListener('input', apply);
  return [
    el('h3', {}, 'Order'),
    el('div', { class: 'filter-row score' }, column, el('span', { class: 'quiet' }, 'weight'), weight),
    el('p', { class: 'quiet' }, 'Least distance − weight × column first; rows without a number last. Distances are from 0 to 2, so large numbers need a small weight.'),
  ];
}

/** "width from … to …". Its read() gives the filters it stands for. */
function rangeRow(column, apply) {
  const valueOf = (op) => now.filters.find((filter) => filter.column === column.name && filter.op === op)?.value ?? '';
  const field = (op, label) => numberField(valueOf(op), `${column.name} ${label}`, label, column, apply);
  const [least, most] = [field('ge', 'at least'), field('le', 'at most')];
  const row = el('div', { class: 'filter-row range' }, el('span', { class: 'filter-name' }, column.name), least, el('span', { class: 'quiet' }, '–'), most);
  row.read = () => [['ge', least], ['le', most]].filter(([, input]) => input.value.trim()).map(([op, input]) => ({ column: column.name, op, value: input.value.trim() }));
  return row;
}

function numberField(value, label, placeholder, column, apply) {
  const input = el('input', { type: 'text', inputmode: 'decimal', 'aria-label': label, placeholder, value, autocomplete: 'off' });
  input.addEventListener('input', () => {
    const wrong = input.value.trim() && mistakeIn({ value: input.value.trim(), column: column.name }, column);
    input.setCustomValidity(wrong || '');
    input.title = wrong || '';
    if (!wrong) apply();
  });
  return input;
}

/** A column, an operation and a value, freely chosen. */
function filterRow(columns, filter, apply) {
  const choose = el('select', { 'aria-label': 'Column' }, columns.map((column) => el('option', { value: column.name, selected: column.name === filter?.column }, column.name)));
  const op = el('select', { 'aria-label': 'Comparison' });
  const place = el('span', { class: 'filter-value' });
  const chosen = () => columns.find((column) => column.name === choose.value);
  let timer = 0;
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(apply, 200);
  };
  function draw(start) {
    const column = chosen();
    op.replaceChildren(...operationsOf(column).map((name) => el('option', { value: name, selected: name === start?.op }, SHOWN_OPERATIONS[name])));
    const input =
      column.kind === 'bool'
        ? el('select', { 'aria-label': 'Value' }, ['true', 'false'].map((value) => el('option', { value, selected: value === start?.value }, value)))
        : el('input', { type: column.kind === 'date' ? 'date' : 'text', 'aria-label': 'Value', value: start?.value ?? '', autocomplete: 'off' });
    input.addEventListener('input', later);
    place.replaceChildren(input);
  }
  choose.addEventListener('change', () => {
    draw(null);
    apply();
  });
  op.addEventListener('change', apply);
  const row = el('div', { class: 'filter-row' }, choose, op, place, button('Remove this filter', { icon: 'close', onclick: () => { row.remove(); apply(); } }));
  row.read = () => {
    const made = { column: choose.value, op: op.value, value: place.firstChild.value.trim() };
    return made.value && !mistakeIn(made, chosen()) ? [made] : [];
  };
  draw(filter);
  return row;
}
