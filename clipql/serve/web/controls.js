/** The controls above the results in line with the state: the table, the column searched, what is safe, the views. */

import { button, byId, count, el } from './dom.js';
import { searchable } from './filters.js';
import { change, parts, toHash } from './state.js';
import { catalog, tableOf, takesWords } from './tables.js';

let tablesListed = null; // to choose from

/** The models for a column, where there are several. */
function drawModels(state, column) {
  const names = column?.usual ? ['', ...new Set([...column.others, ...(state.model ? [state.model] : [])])] : [];
  byId('model-label').hidden = names.length < 2;
  byId('model').replaceChildren(...names.map((name) => el('option', { value: name, selected: name === (state.model ?? '') }, name || column.usual)));
}

export function drawControls(state) {
  const table = tableOf(state);
  const choose = byId('table');
  if (tablesListed !== catalog.tables) {
    tablesListed = catalog.tables;
    choose.replaceChildren(el('option', { value: -1, hidden: true }), ...catalog.tables.map((one, i) => el('option', { value: i }, `${one.database === 'default' ? '' : `${one.database}.`}${one.name} · ${count(one.rows)}`)));
  }
  choose.options[0] && (choose.options[0].textContent = state.table ?? ''); // that cannot be searched, or is not there
  choose.value = String(catalog.tables.indexOf(table));
  byId('table-label').hidden = !catalog.tables.length;

  const columns = searchable(table);
  const chosen = state.column ?? columns[0]?.column;
  byId('column').hidden = columns.length < 2;
  byId('column').replaceChildren(
    ...columns.map(({ column, label }) =>
      button(label, {
        text: label,
        class: 'segment',
        role: 'radio',
        'aria-checked': column === chosen ? 'true' : 'false',
        tabindex: column === chosen ? 0 : -1,
        title: `Search in ${column}`,
        onclick: () => change({ column: column === columns[0].column ? null : column, model: null }),
      }),
    ),
  );
  drawModels(state, columns.find((one) => one.column === chosen));
  byId('safe-label').hidden = !table?.nsfw;
  byId('safe').value = state.safe;
  byId('fold').setAttribute('aria-pressed', String(state.fold !== null));
  for (const id of ['filters', 'facets', 'fold', 'show-sql', 'export', 'share']) byId(id).hidden = !table;
  byId('words').placeholder = !table || takesWords(state, table) ? 'Describe a picture' : 'No model for words here: search by a picture of the results';

  for (const view of ['pictures', 'map', 'sql']) {
    const tab = byId(`tab-${view}`);
    tab.href = toHash({ ...state, view, row: null });
    if (view === state.view) tab.setAttribute('aria-current', 'page');
    else tab.removeAttribute('aria-current');
    byId(`view-${view}`).hidden = view !== state.view;
  }
  document.body.dataset.view = state.view;
  document.title = [parts(state).map((part) => part.text ?? 'a picture').join(', '), 'clipql'].filter(Boolean).join(' · ');
}
