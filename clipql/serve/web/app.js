/** The page: starts the parts, and brings what is seen in line with the state after every change. */

import { ApiError, call, setHooks } from './api.js';
import { addTerm, drawChips, forgetRows, makeChips } from './chips.js';
import { drawDetails, makeDetails, openRow } from './details.js';
import { askToken, showExport, showHelp, showSql } from './dialogs.js';
import { announce, button, byId, count, drawIcons, el, icon, plural } from './dom.js';
import { searchable } from './filters.js';
import { clear, focusTile, makeGrid, revive, rowOf, show, showDead, showSkeletons } from './grid.js';
import { drawMap } from './map.js';
import { drawPills, openFilters } from './panel.js';
import { MissingPicture, forget, keyOf, nextPage, results, search } from './results.js';
import { drawWords, makeSearchBox } from './searchbox.js';
import { drawSql, openInSql } from './sql.js';
import { change, now, parts, takeAddress, watch } from './state.js';
import { toHash } from './url.js';

const CALM_MS = 350;

let catalog = { tables: [], model: null };
let shownKey = null;
let skeletons = 0;
let retry = 0;
let foundAt = 0; // when the results shown came, on the clock of performance.now()

const tableOf = (state) =>
  catalog.tables.find((one) => one.name === state.table && (state.database === null || one.database === state.database)) ?? null;
const currentTable = () => tableOf(now);

/* ---------- notices ---------- */

/** One line above the results, with what can be done about it; null takes it away. */
function notice(text, ...actions) {
  const box = byId('notice');
  box.hidden = text === null;
  box.replaceChildren(...(text === null ? [] : [el('span', {}, text), ...actions]));
}

/** ClickHouse's message without the statement that it repeats, which the page has made. */
const inShort = (message) => message.replace(/[.:]? ?In scope [\s\S]*?(?= \(ClickHouse|$)/, '.');

function explain(error) {
  const table = currentTable();
  if (error instanceof MissingPicture) {
    forget();
    notice('This search has a picture in it that was never uploaded here: pictures are not part of a link. Add it again, or leave it out.');
  } else if (!(error instanceof ApiError)) {
    throw error;
  } else if (error.status === 0) waitForServer();
  else if (error.status === 503 && now.words.trim() && table?.caption) {
    const words = now.words.trim();
    const instead = () => change({ words: '', terms: [], filters: [...now.filters, { column: table.caption, op: 'has', value: words }] });
    notice(error.message, button('Find these letters in the captions', { text: 'Find these letters in the captions', class: 'link', onclick: instead }));
  } else notice(inShort(error.message));
  const field = byId('filter-error');
  if (field) field.textContent = inShort(error.message);
}

/** The server is gone: ask from time to time whether it is back, and go on then by itself. */
function waitForServer(seconds = 2) {
  clearTimeout(retry);
  const again = async () => {
    clearTimeout(retry);
    const alive = await fetch('./healthz').then((reply) => reply.ok, () => false);
    if (!alive) return waitForServer(Math.min(15, seconds * 1.5));
    notice(null);
    revive();
    shownKey = null;
    if (!catalog.tables.length) await loadTables();
    draw(now, now);
  };
  notice('The server does not answer. The page goes on by itself as soon as it is back.', button('Try now', { text: 'Try now', class: 'link', onclick: again }));
  retry = setTimeout(again, seconds * 1000);
}

/* ---------- searching ---------- */

async function refresh(state) {
  const table = tableOf(state);
  const key = keyOf(state);
  if (key === shownKey || !table) return;
  shownKey = key;
  clearTimeout(skeletons);
  const grid = byId('grid');
  let failed = false;
  grid.setAttribute('aria-busy', 'true');
  // a fast answer never shows these; a slow one is seen to be on its way
  skeletons = setTimeout(() => (byId('grid').querySelector('.tile[data-id]') ? grid.classList.add('stale') : showSkeletons()), 160);
  try {
    if (!(await search(state, table))) return;
    notice(null);
    const error = byId('filter-error');
    if (error) error.textContent = '';
    foundAt = performance.now();
    show(results.rows, contextOf(state));
    painted();
    window.scrollTo({ top: 0 });
  } catch (error) {
    if (key !== shownKey) return;
    // what failed is asked again by the next change, even one that leads back here
    if (error.status !== 0) shownKey = null;
    explain(error);
    failed = true;
  }
  clearTimeout(skeletons);
  const old = grid.querySelector('.tile[data-id]') !== null;
  if (failed && (!old || !results.state)) clear();
  // the results before stay, visibly not those asked for
  grid.classList.toggle('stale', failed && old);
  grid.setAttribute('aria-busy', 'false');
  drawStatus();
  drawAfter();
  drawMap(now, currentTable()).then(drawStatus);
}

const contextOf = (state) => ({ table: tableOf(state), safe: state.safe, ranked: parts(state).length > 0 });

/** How long after the last key its results were on the screen, for whoever measures it. */
function painted() {
  const key = performance.getEntriesByName('clipql:key').at(-1);
  const detail = results.state.words;
  if (!key || byId('words').value !== detail) return; // a newer key's results are still to come
  performance.clearMarks('clipql:key');
  requestAnimationFrame(() => setTimeout(() => performance.measure('clipql:painted', { start: key.startTime, detail })));
}

async function more(k) {
  const before = results.state;
  try {
    const rows = await nextPage(k);
    if (!rows || before === null || before !== results.state) return false;
    show(rows, contextOf(results.state), { append: true });
    drawStatus();
    drawAfter();
    return rows.length > 0;
  } catch (error) {
    explain(error);
    return false;
  }
}

/* ---------- what is seen beside the grid ---------- */

let dead = 0;
let allDead = false;

function drawStatus() {
  const place = byId('status');
  for (const id of ['show-sql', 'export']) byId(id).disabled = !results.state;
  if (!results.state) {
    place.textContent = '';
    return;
  }
  const time = results.ms?.total;
  const words = `${results.more ? 'first ' : ''}${plural(results.rows.length, 'picture')}`;
  place.textContent = typeof time === 'number' ? `${words} · ${time < 10 ? time.toFixed(1) : Math.round(time)} ms` : words;
  announce(results.rows.length ? words : 'No pictures found');
}

function drawAfter() {
  const place = byId('after');
  const children = [];
  if (results.state && !results.rows.length) children.push(nothingFound());
  else if (!catalog.tables.length && shownKey === null) children.push(emptyDatabase());
  if (allDead) children.push(el('p', { class: 'quiet dead-note' }, 'None of these pictures loads: only their captions are shown.'));
  else if (dead > 0) {
    const text = `${plural(dead, 'picture')} that no longer load${dead === 1 ? 's' : ''}`;
    const shown = byId('grid').classList.contains('show-dead');
    const turn = () => {
      showDead(!shown);
      drawAfter();
    };
    children.push(el('p', { class: 'quiet dead-note' }, `${text} ${shown ? '' : 'left out'} · `, button(shown ? 'Hide their captions' : 'Show their captions', { text: shown ? 'Hide their captions' : 'Show their captions', class: 'link', onclick: turn })));
  }
  if (results.more) children.push(el('p', { class: 'loading' }, el('span', { class: 'spinner', 'aria-hidden': 'true' }), 'More pictures'));
  else if (results.rows.length > 20) children.push(el('p', { class: 'quiet end' }, 'That is all of them.'));
  place.replaceChildren(...children);
}

function nothingFound() {
  const state = results.state;
  const ways = [];
  const filtered = state.filters.length || state.where.trim();
  if (filtered) ways.push(button('Without the filters', { text: 'Without the filters', class: 'tool', onclick: () => change({ filters: [], where: '' }) }));
  if (state.safe === 'safe' && currentTable()?.nsfw) ways.push(button('With blurred pictures', { text: 'With pictures that may not be safe, blurred', class: 'tool', onclick: () => change({ safe: 'blur' }) }));
  if (parts(state).length) ways.push(button('Look at all', { text: 'Look at all of the table', class: 'tool', onclick: () => change({ words: '', terms: [], weight: 1 }) }));
  return el('div', { class: 'empty' }, icon('picture'), el('h2', {}, 'No pictures here'), el('p', {}, filtered ? 'No row meets all the filters.' : 'This table has no rows to show.'), el('div', { class: 'buttons' }, ways));
}

function emptyDatabase() {
  return el(
    'div',
    { class: 'empty' },
    icon('picture'),
    el('h2', {}, 'Nothing to search yet'),
    el('p', {}, 'This database has no table with picture or caption vectors. Make one from pictures, then take it in:'),
    el('pre', { class: 'statement' }, 'clipql embed images PICTURES parts/\nclipql ingest parts/ --table pictures'),
  );
}

function drawControls(state) {
  const table = tableOf(state);
  const choose = byId('table');
  if (choose.options.length !== catalog.tables.length) {
    choose.replaceChildren(...catalog.tables.map((one, i) => el('option', { value: i }, `${one.database === 'default' ? '' : `${one.database}.`}${one.name} · ${count(one.rows)}`)));
  }
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
        onclick: () => change({ column: column === columns[0].column ? null : column }),
      }),
    ),
  );
  byId('safe-label').hidden = !table?.nsfw;
  byId('safe').value = state.safe;
  byId('fold').setAttribute('aria-pressed', String(state.fold));
  for (const id of ['filters', 'fold', 'show-sql', 'export']) byId(id).hidden = !table;
  byId('words').placeholder = catalog.model ? 'Describe a picture' : 'No model for words: search by a picture of the results';

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

/* ---------- everything in line with the state ---------- */

function draw(state, before) {
  if (state.table !== before.table || state.database !== before.database) forgetRows();
  drawControls(state);
  drawWords(state);
  drawChips(state);
  drawPills(state, tableOf(state));
  drawDetails(state);
  drawSql(state, currentTable());
  if (state.view === 'map') drawMap(state, currentTable()).then(drawStatus);
  const fetched = state.view === 'pictures' && before.view === 'map'; // the map may have brought more rows
  if ((state.safe !== before.safe || fetched) && results.state && keyOf(state) === shownKey) {
    show(results.rows, contextOf(state));
    drawStatus();
    drawAfter();
  }
  if (state.view !== 'sql') refresh(state);
}

async function loadTables() {
  try {
    catalog = await call('/api/tables');
  } catch (error) {
    explain(error);
    return;
  }
  // tables that can be searched come first: with pictures, then by words, then the large ones
  const rank = (table) => (table.vectors.length ? 0 : 4) + (table.picture ? 0 : 2) + (table.vectors.some((one) => one.model) ? 0 : 1);
  catalog.tables = [...catalog.tables].sort((a, b) => rank(a) - rank(b) || b.rows - a.rows);
  if (now.table === null && catalog.tables.length) {
    const first = catalog.tables[0];
    change({ table: first.name, database: first.database === 'default' ? null : first.database }, 'replace');
  } else if (now.table !== null && !currentTable()) {
    notice(`There is no table ${now.table} here.`, ...catalog.tables.slice(0, 1).map((one) => button(one.name, { text: `Open ${one.name}`, class: 'link', onclick: () => change({ table: one.name, database: one.database, column: null }) })));
  }
  if (!catalog.tables.length) drawAfter();
}

function listen() {
  const go = (view) => (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    change({ view, row: null });
  };
  for (const view of ['pictures', 'map', 'sql']) byId(`tab-${view}`).addEventListener('click', go(view));
  byId('table').addEventListener('change', (event) => {
    const table = catalog.tables[Number(event.target.value)];
    change({ table: table.name, database: table.database === 'default' ? null : table.database, column: null, terms: now.terms.filter((term) => term.kind !== 'row'), filters: [], where: '', row: null });
  });
  byId('column').addEventListener('keydown', (event) => {
    if (!['ArrowLeft', 'ArrowRight'].includes(event.key)) return;
    const all = [...byId('column').children];
    all[(all.indexOf(document.activeElement) + (event.key === 'ArrowRight' ? 1 : all.length - 1)) % all.length].click();
    byId('column').querySelector('[aria-checked=true]').focus();
  });
  byId('safe').addEventListener('change', (event) => change({ safe: event.target.value }));
  byId('filters').addEventListener('click', () => openFilters(currentTable()));
  byId('fold').addEventListener('click', () => change({ fold: !now.fold }));
  byId('show-sql').addEventListener('click', () => showSql(openInSql));
  byId('export').addEventListener('click', showExport);
  byId('help').addEventListener('click', showHelp);
  byId('skip').addEventListener('click', () => focusTile(null));
  byId('theme').addEventListener('click', turnTheme);
  document.addEventListener('keydown', (event) => {
    const writing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
    if (writing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector('dialog[open]')) return;
    if (event.key === '/') {
      event.preventDefault();
      byId('words').focus();
      byId('words').select();
    } else if (event.key === '?') showHelp();
  });
  window.addEventListener('popstate', takeAddress);
  window.addEventListener('hashchange', () => location.hash !== toHash(now) && takeAddress());
  // pages are fetched before their place is reached, so that scrolling does not stop
  const seen = new IntersectionObserver(
    async (entries) => {
      if (!entries.some((entry) => entry.isIntersecting) || now.view !== 'pictures') return;
      seen.unobserve(byId('after'));
      // while somebody types, only the first page matters: the next waits until the search stands still
      const early = CALM_MS - (performance.now() - foundAt);
      if (early > 0) await new Promise((resolve) => setTimeout(resolve, early));
      else await more();
      setTimeout(() => seen.observe(byId('after')), results.more ? 30 : CALM_MS);
    },
    { rootMargin: '1200px' },
  );
  seen.observe(byId('after'));
}

function drawTheme() {
  const dark = (document.documentElement.dataset.theme ?? (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light')) === 'dark';
  byId('theme').firstElementChild.replaceChildren(icon(dark ? 'sun' : 'moon'));
  return dark;
}

function turnTheme() {
  const next = drawTheme() ? 'light' : 'dark';
  document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem('clipql:theme', next);
  } catch {
    // without storage the choice lasts until the page is closed
  }
  drawTheme();
}

function start() {
  drawIcons();
  drawTheme();
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', drawTheme);
  setHooks({ askToken, busy: (seconds) => notice(seconds ? `The server is busy; asking again in ${Math.ceil(seconds)} s.` : null) });
  const like = (id) => change({ words: '', weight: 1, terms: [{ kind: 'row', id, weight: 1 }], row: null });
  makeGrid(byId('grid'), {
    open: openRow,
    like,
    add: (id, weight) => addTerm({ kind: 'row', id, weight }),
    deadChanged: (n, all) => {
      [dead, allDead] = [n, all];
      drawAfter();
    },
  });
  makeChips(byId('chips'), rowOf);
  makeDetails(currentTable);
  makeSearchBox({ tell: (text) => notice(text), toResults: () => focusTile(null) });
  listen();
  watch(draw);
  takeAddress();
  loadTables().then(() => draw(now, now));
  if (matchMedia('(hover: hover)').matches) byId('words').focus();
}

start();
