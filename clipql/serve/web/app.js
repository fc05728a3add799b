/** The page: starts the parts, and brings what is seen in line with the state after every change. */

import { ApiError, setHooks } from './api.js';
import { drawBelow, takeDead, watchEnd } from './below.js';
import { addTerm, drawChips, makeChips } from './chips.js';
import { drawControls } from './controls.js';
import { button, byId, drawIcons, notice } from './dom.js';
import { isServerGone, serverIsBack, tellBusy, waitForServer } from './gone.js';
import { clear, focusTile, holdPictures, makeGrid, releasePictures, revive, rowOf, show, showSkeletons } from './grid.js';
import { fetchAll, later } from './later.js';
import { AddressAsWords, ChangedTable, MissingPicture, bringBack, forget, forgetKept, forgetMissing, goesOn, keep, keyOf, nextPage, results, search, shownRows, similarityOf } from './results.js';
import { drawWords, makeSearchBox } from './searchbox.js';
import { NEAR_DUPLICATE, change, now, openRow, parts, takeAddress, toHash, watch } from './state.js';
import { askFigures, drawFigures, forgetFigures } from './status.js';
import { catalog, loadCatalog, namedIn, tableOf, watchChanges } from './tables.js';
import { forgetPicture } from './uploads.js';

const CALM_MS = 350;
const UNKNOWN_TABLE = 60; // as ClickHouse numbers its errors

let shownKey = null;
let skeletons = 0;
let fetching = 0; // the parts that come later are being fetched
let fetched = false; // and are there
let said = null; // what the next results are still shown with
let foundAt = 0; // when the results shown came, on the clock of performance.now()

/** Says something; `lasting`: above the results of the search that has just been begun, too. */
function tell(text, lasting = false) {
  said = lasting ? text : null;
  notice(text);
}

const currentTable = () => tableOf(now);

const details = later(() => import('./details.js'), (part) => part.makeDetails(currentTable));
const dialogs = later(() => import('./dialogs.js'));
const panel = later(() => import('./panel.js'));
const facets = later(() => import('./facets.js'), (part) => part.makeFacets(currentTable));
const map = later(() => import('./map.js'), (part) => part.makeMap({ pickIds: (ids) => pickWith((one) => one.pickIds(ids)) }));
const sql = later(() => import('./sql.js'));
const selection = later(() => import('./selection.js'), (part) => part.makeSelection(byId('grid'), currentTable, (id) => rowOf(id, currentTable())));
let picking = false;
const gridLasso = later(() => import('./gridlasso.js'), (part) => part.makeGridLasso(byId('view-pictures'), byId('grid'), (ids) => pickWith((one) => one.pickShown(ids))));
const trust = later(() => import('./trust.js'), (part) => part.makeTrust(drawStatus));
const views = later(() => import('./views.js'));
const models = later(() => import('./models.js'));
const ofNothing = later(() => import('./nothing.js'));
const ofAddresses = later(() => import('./addresses.js'));
const share = later(() => import('./share.js'));
const brightness = later(() => import('./brightness.js'), (part) => part.drawTheme());
let sqlSeen = false;

let opening = null; // the newest dialog that is being opened

/**
 * Opens a dialog of a part that may still have to be fetched: of several that were asked for meanwhile, the newest. The
 * server may ask for its token meanwhile; then it opens once that is given.
 */
const opens = (part, open) => () => {
  const mine = (opening = Symbol('dialog'));
  const go = (module) => {
    const other = document.querySelector('dialog[open]');
    if (mine !== opening) return;
    if (!other) open(module);
    else if (other.matches('.asks-token')) other.addEventListener('close', () => other.returnValue && go(module), { once: true });
  };
  return part(go);
};

function pickWith(use) {
  picking = true;
  return selection(use);
}

/* ---------- notices ---------- */

function explain(error) {
  const table = currentTable();
  if (error instanceof AddressAsWords) {
    leaveResults();
    const state = now;
    ofAddresses((part) => part.asWords(error.message, table)).then((said) => said && state === now && notice(...said));
  } else if (error instanceof MissingPicture) {
    leaveResults();
    notice('This search has a picture in it that was never uploaded here: pictures are not part of a link. Add it again, or leave it out.');
  } else if (!(error instanceof ApiError)) {
    throw error;
  } else if (error.status === 0) waitForServer(goOn);
  else if (error.status === 401) {
    leaveResults();
    notice('This server asks for a token.', button('Enter the token', { text: 'Enter the token', class: 'link', onclick: beginAnew }));
  } else if (error.field && now.terms.some((term) => term.key === error.field)) {
    // a search with it would fail for ever: it leaves the query, the address and this tab
    forgetPicture(error.field);
    change({ terms: now.terms.filter((term) => term.key !== error.field) }, 'replace');
    tell('A picture that you gave cannot be read, and was left out. PNG, JPEG and WebP can.', true);
  } else if (error.model !== undefined) {
    const state = now;
    models((part) => part.withoutModel(error, state, table, again)).then((said) => said && state === now && notice(...said));
  } else if (error.code === UNKNOWN_TABLE && table) missAnew(error);
  else notice(error.message);
  const field = byId('filter-error');
  if (field && error.model === undefined) field.textContent = error.message;
}

/** The server was gone and is back. */
function goOn() {
  comeBack();
  const shown = catalog.loaded && results.state && !outdated && keyOf(results.state) === keyOf(now);
  if (!shown) return beginAnew();
  notice(null); // only a later page was missed
  return more();
}

function comeBack() {
  if (serverIsBack()) revive();
}

/** The table searched is gone: the tables are looked at anew. */
async function missAnew(error) {
  const state = now;
  forgetFigures();
  forgetKept();
  await loadTables();
  if (state !== now) return;
  if (tableOf(now)) notice(error.message);
  else draw(now, now);
}

/** Tables or rows are others than before. */
async function takeChanges() {
  forgetFigures();
  forgetKept();
  if (fetched) trust((part) => part.forgetChecks());
  await loadTables();
  if (now.view !== 'sql') return beginAnew();
  shownKey = null; // it is searched anew when the pictures are looked at; what is being written in SQL stays
  return drawControls(now);
}

async function beginAnew() {
  notice(null);
  shownKey = null;
  if (!catalog.loaded) await loadTables();
  draw(now, now);
}

/** What failed is asked for again. */
function again() {
  if (!outdated) return;
  forgetMissing();
  beginAnew();
}

/* ---------- searching ---------- */

async function refresh(state, fromAddress = false) {
  const table = tableOf(state);
  const key = keyOf(state);
  if (key === shownKey) return;
  if (!table) {
    if (catalog.loaded && state.table !== null) missTable(state);
    return;
  }
  shownKey = key;
  clearTimeout(skeletons);
  const top = fromAddress ? bringBack(state) : null;
  if (top !== null) {
    showAgain(state, table, top);
    return;
  }
  const grid = byId('grid');
  let failed = false;
  grid.setAttribute('aria-busy', 'true');
  // a fast answer never shows these; a slow one is seen to be on its way
  skeletons = setTimeout(() => (byId('grid').querySelector('.tile[data-id]') ? grid.classList.add('stale') : showSkeletons()), 160);
  holdPictures();
  try {
    if (!(await search(state, table))) return;
    comeBack();
    notice(said);
    said = null;
    const error = byId('filter-error');
    if (error) error.textContent = '';
    foundAt = performance.now();
    show(shownRows(), contextOf(state), { more: goesOn() });
    painted();
    if (!fetching) fetching = setTimeout(fetchRest, CALM_MS);
    askFigures(state, table, drawStatus);
    window.scrollTo({ top: 0 });
  } catch (error) {
    if (key !== shownKey) return;
    if (error instanceof ChangedTable) return takeChanges();
    // what failed is asked again by the next change, even one that leads back here
    if (error.status !== 0) shownKey = null;
    explain(error);
    if (shownKey !== null && shownKey !== key) return; // another search has been begun instead
    failed = true;
    releasePictures();
  }
  clearTimeout(skeletons);
  const old = grid.querySelector('.tile[data-id]') !== null;
  if (failed && (!old || !results.state)) clear();
  // the results before stay, visibly not those asked for
  grid.classList.toggle('stale', failed && old);
  outdated = failed;
  grid.setAttribute('aria-busy', 'false');
  drawStatus();
  drawAfter();
  drawMap();
}

/** The way back: the results are here still, as far as they had been scrolled. */
function showAgain(state, table, top) {
  notice(null);
  outdated = false;
  byId('grid').classList.remove('stale');
  byId('grid').setAttribute('aria-busy', 'false');
  show(shownRows(), contextOf(state), { more: goesOn() });
  window.scrollTo({ top });
  askFigures(state, table, drawStatus);
  drawStatus();
  drawAfter();
  drawMap();
}

const contextOf = (state) => ({ table: tableOf(state), safe: state.safe, ranked: parts(state).length > 0, best: similarityOf(results.rows[0]) });

/** How long after the last key its results were on the screen, for whoever measures it. */
function painted() {
  const key = performance.getEntriesByName('clipql:key').at(-1);
  const detail = results.state.words;
  if (!key || byId('words').value !== detail) return; // a newer key's results are still to come
  performance.clearMarks('clipql:key');
  requestAnimationFrame(() => setTimeout(() => performance.measure('clipql:painted', { start: key.startTime, detail })));
}

async function more(k) {
  if (!goesOn() || isServerGone()) return false;
  const before = results.state;
  try {
    const rows = await nextPage(k);
    if (!rows || before === null || before !== results.state) return false;
    const near = new Set(shownRows());
    show(rows.filter((row) => near.has(row)), contextOf(results.state), { append: true, more: goesOn() });
    drawStatus();
    drawAfter();
    return rows.length > 0;
  } catch (error) {
    explain(error);
    return false;
  }
}

/* ---------- what is seen beside the grid ---------- */

let outdated = false; // the search asked for has failed, and the results shown are those before

const showHow = opens(dialogs, (part) => part.showSql(openInSql));

function drawStatus() {
  drawFigures(outdated, showHow);
  if (fetched || now.cut !== null) trust((part) => part.drawTrust(outdated));
}

async function fetchRest() {
  await fetchAll();
  fetched = true;
  drawStatus();
}

/** Brings the map in line with the results, where it is open. */
function drawMap() {
  if (now.view === 'map') map((part) => part.drawMap(now, currentTable())).then(drawStatus);
}

const drawAfter = () => drawBelow(currentTable());

/* ---------- everything in line with the state ---------- */

function draw(state, before, fromAddress = false) {
  if (before.view === 'pictures' && !outdated && results.state && keyOf(results.state) !== keyOf(state)) keep(window.scrollY);
  // tiles of another table would open that table's rows
  if (state.table !== before.table || state.database !== before.database) clear();
  drawControls(state);
  drawWords(state, fromAddress);
  drawChips(state);
  const narrowed = state.filters.length || state.where.trim() || state.model || state.hybrid || state.score || state.recall !== null;
  if (narrowed || !byId('pills').hidden) panel((part) => part.drawPills(now, currentTable()));
  if (state.row !== null || before.row !== null) details((part) => part.drawDetails(now));
  sqlSeen ||= state.view === 'sql';
  if (sqlSeen) sql((part) => part.drawSql(now, currentTable()));
  drawMap();
  const fetched = state.view === 'pictures' && before.view === 'map'; // the map may have brought more rows
  if ((state.safe !== before.safe || state.cut !== before.cut || fetched) && results.state && keyOf(state) === shownKey) {
    show(shownRows(), contextOf(state), { more: goesOn() });
    drawStatus();
    drawAfter();
  }
  if (state.view !== 'sql') refresh(state, fromAddress);
  else fetching ||= setTimeout(fetchRest, CALM_MS);
}

async function loadTables() {
  try {
    await loadCatalog();
  } catch (error) {
    explain(error);
    return;
  }
  if (now.table === null && catalog.tables.length) change(namedIn(catalog.tables[0]), 'replace');
  if (!catalog.tables.length) drawAfter();
}

/** Another table: of the search what is not about the rows and columns of the one before. */
const openTable = (table) => change({ ...namedIn(table), column: null, model: null, terms: now.terms.filter((term) => term.kind !== 'row'), filters: [], where: '', score: null, row: null });

/** The address names a table that cannot be searched: says so, and shows nothing of another. */
async function missTable(state) {
  leaveResults();
  const said = await ofNothing((part) => part.noTable(state, openTable));
  if (said && now.table === state.table && now.database === state.database && now.view !== 'sql') notice(...said);
}

/** Nothing of the search before is shown, counted or exported any more. */
function leaveResults() {
  forget();
  clear();
  shownKey = null;
  outdated = false;
  drawStatus();
  drawAfter();
  if (picking) selection((part) => part.mark());
}

/** Opens a statement, with its parameters, in the SQL view. */
const openInSql = (text, params) => sql((part) => part.openInSql(text, params));

const showHelp = opens(dialogs, (part) => part.showHelp());

function listen() {
  const go = (view) => (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    change({ view, row: null });
  };
  for (const view of ['pictures', 'map', 'sql']) byId(`tab-${view}`).addEventListener('click', go(view));
  byId('table').addEventListener('change', (event) => {
    openTable(catalog.tables[Number(event.target.value)]);
  });
  byId('column').addEventListener('keydown', (event) => {
    if (!['ArrowLeft', 'ArrowRight'].includes(event.key)) return;
    const all = [...byId('column').children];
    all[(all.indexOf(document.activeElement) + (event.key === 'ArrowRight' ? 1 : all.length - 1)) % all.length].click();
    byId('column').querySelector('[aria-checked=true]').focus();
  });
  byId('model').addEventListener('change', (event) => change({ model: event.target.value || null }));
  byId('safe').addEventListener('change', (event) => change({ safe: event.target.value }));
  byId('filters').addEventListener('click', opens(panel, (part) => part.openFilters(currentTable())));
  byId('facets').addEventListener('click', opens(facets, (part) => part.openFacets()));
  byId('fold').addEventListener('click', () => change({ fold: now.fold === null ? NEAR_DUPLICATE : null }));
  byId('show-sql').addEventListener('click', showHow);
  byId('export').addEventListener('click', opens(dialogs, (part) => part.showExport()));
  byId('share').addEventListener('click', opens(share, (part) => part.showShare()));
  byId('views').addEventListener('click', opens(views, (part) => part.showViews()));
  byId('help').addEventListener('click', showHelp);
  byId('skip').addEventListener('click', () => focusTile(null));
  byId('theme').addEventListener('click', () => brightness((part) => part.turnTheme()));
  document.addEventListener('keydown', (event) => {
    const writing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
    if (writing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector('dialog[open]')) return;
    if (event.key === '/') {
      event.preventDefault();
      byId('words').focus();
      byId('words').select();
    } else if (event.key === '?') showHelp();
  });
  window.addEventListener('popstate', () => (opening = null)); // the way back leads away from it
  window.addEventListener('popstate', takeAddress);
  window.addEventListener('hashchange', () => location.hash !== toHash(now) && takeAddress());
  watchEnd(more, () => CALM_MS - (performance.now() - foundAt), CALM_MS);
}

function start() {
  history.scrollRestoration = 'manual'; // the page knows how many rows there were
  drawIcons();
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => brightness((part) => part.drawTheme()));
  setHooks({
    askToken: (why) => dialogs((part) => part.askToken(why)),
    busy: tellBusy,
  });
  const like = (id) => change({ words: '', weight: 1, terms: [{ kind: 'row', id, weight: 1 }], row: null });
  makeGrid(byId('grid'), {
    open: openRow,
    like,
    add: (id, weight) => addTerm({ kind: 'row', id, weight }),
    pick: (id, range) => pickWith((part) => part.pick(id, range)),
    shown: () => picking && selection((part) => part.mark()),
    deadChanged: (n, all) => {
      takeDead(n, all);
      drawAfter();
    },
  });
  makeChips(byId('chips'), (id) => rowOf(id, currentTable()), currentTable);
  makeSearchBox({ tell, toResults: () => focusTile(null), again, dropped: (address) => ofAddresses((part) => part.dropped(address, tell)) });
  listen();
  watch(draw);
  watchChanges(takeChanges);
  takeAddress();
  loadTables().then(() => draw(now, now));
  if (matchMedia('(hover: hover)').matches) byId('words').focus();
}

start();
