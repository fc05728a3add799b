/**
 * The line of figures above the results: how many there are, of how many, what Safe hides, how long it took, and what
 * similarity words reach by chance. What must stay true: what is counted never holds the results up, and a figure is shown
 * with the search that it belongs to or not at all.
 */

import { call } from './api.js';
import { announce, button, byId, count, plural } from './dom.js';
import { whereOf } from './filters.js';
import { distinct, goesOn, results, shownRows, similarityOf } from './results.js';
import { change, now, parts } from './state.js';

/** `outdated`: what is shown is not what was asked for, so no figure is true of it. `showHow()`: how it was searched. */
export function drawFigures(outdated, showHow) {
  const place = byId('status');
  for (const id of ['show-sql', 'export', 'share']) byId(id).disabled = !results.state || outdated;
  if (!results.state || outdated) {
    place.replaceChildren();
    drawWeak(null, null, []);
    return;
  }
  drawWeak(results.state, results.table, results.rows);
  const time = results.ms?.total;
  const alike = shownRows().length - distinct();
  const more = goesOn();
  const near = now.cut !== null && parts(results.state).length ? ` of similarity ${now.cut.toFixed(3)} or more` : '';
  const counts = countsOf(results.state, results.table);
  const total = more && counts && !near ? `first ${count(distinct())} of ${plural(counts.matching, 'picture')}` : `${more ? 'first ' : ''}${plural(distinct(), 'picture')}${near}`;
  const words = `${total}${alike ? `, ${count(alike)} more almost like them` : ''}`;
  const hidden = counts?.hidden ? `${count(counts.hidden)} hidden by Safe` : null;
  const look = () => change({ safe: 'blur' });
  place.replaceChildren(
    words,
    ...(hidden ? [' · ', button(hidden, { text: hidden, class: 'link', title: 'Show them, blurred', onclick: look })] : []),
    ...(typeof time === 'number' ? [' · ', took(time, showHow)] : []),
  );
  announce([results.rows.length ? words : 'No pictures found', hidden, byId('weak').textContent].filter(Boolean).join('. '));
}

function took(time, showHow) {
  const text = `${time < 10 ? time.toFixed(1) : Math.round(time)} ms`;
  return button(`${text}: how it was searched`, { text, class: 'link', title: 'How it was searched', onclick: showHow });
}

const CHANCE_CALM_MS = 400; // measuring chance takes many searches: only while nobody types
const MOST = 100;

const counted = new Map(); // what was asked → {rows, matching, hidden}
const chances = new Map(); // a column → the similarity that words without a meaning reach
let era = 0; // of the data, which all counts are of
let calm = 0;

const countOf = (state, table) => ({ table: table.name, database: table.database, where: whereOf(state, table), safe: state.safe === 'safe' });
const chanceOf = (state, table) => ({ table: table.name, database: table.database, column: state.column ?? table.vectors[0]?.column ?? null, model: state.model });

/** {rows, matching, hidden} of a search, or null where they are not known yet. */
export const countsOf = (state, table) => counted.get(JSON.stringify(countOf(state, table))) ?? null;

async function asked(known, path, body) {
  const key = JSON.stringify(body);
  if (known.has(key)) return;
  known.set(key, null);
  const mine = era;
  try {
    const found = await call(path, { body });
    if (mine === era) known.set(key, found);
  } catch {
    if (mine === era) known.delete(key); // without it there is no figure
  }
  if (known.size > MOST) known.delete(known.keys().next().value);
}

/** The rows may be others than before: what was counted is not true any more, nor what is being counted. */
export function forgetFigures() {
  era++;
  counted.clear();
  chances.clear();
}

/** The only part of a query that is words to be found, or null: chance is known for such alone. */
function onlyWords(state) {
  const [part, ...others] = parts(state);
  return part?.kind === 'text' && part.weight > 0 && !others.length ? part.text : null;
}

/** Asks for what is not known of a search; `known()` is called when it is. */
export function askFigures(state, table, known) {
  clearTimeout(calm);
  asked(counted, '/api/count', countOf(state, table)).then(known);
  if (onlyWords(state) === null) return;
  const ask = () => asked(chances, '/api/chance', chanceOf(state, table)).then(known);
  calm = setTimeout(ask, CHANCE_CALM_MS);
}

/** Says that the best match is none, where words without a meaning get as near; null takes the line away. */
export function drawWeak(state, table, rows) {
  const line = byId('weak');
  const words = state && table ? onlyWords(state) : null;
  const chance = words === null ? null : chances.get(JSON.stringify(chanceOf(state, table)))?.similarity;
  const best = similarityOf(rows[0]);
  const weak = typeof chance === 'number' && best !== null && best <= chance;
  line.hidden = !weak;
  line.textContent = weak ? `Weak matches: nothing here is nearer to “${words}” than random letters get by chance (similarity ${best.toFixed(3)}; chance reaches ${chance.toFixed(3)}).` : '';
}
