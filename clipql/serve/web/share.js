/**
 * A search to hand on: its link, its SQL, and how it is cited. What must stay true: all of it is made here, of what is
 * shown, and nothing is asked of anybody.
 */

import { copyButton, openDialog } from './dialogs.js';
import { count, el, plural } from './dom.js';
import { describe } from './filters.js';
import { laidOut } from './highlight.js';
import { results, shownSql } from './results.js';
import { countOf } from './rowset.js';
import { now, parts, toHash } from './state.js';
import { catalog, sourceOf } from './tables.js';

const MONTHS = ['jan', 'feb', 'mar', 'apr', 'may', 'jun', 'jul', 'aug', 'sep', 'oct', 'nov', 'dec'];
const IN_BIBTEX = { '\\': '\\textbackslash{}', '~': '\\textasciitilde{}', '^': '\\textasciicircum{}' };
const LONGEST = 200; // letters of a condition in a title
const MOST_LETTERS = 20_000; // of a statement as it is shown; it is copied whole

/** The address that shows the same search, whoever opens it. */
const linkOf = (state) => new URL(toHash({ ...state, row: null }), location.href).href;

function whereIn(where) {
  const chosen = countOf(where);
  return chosen === null ? where.slice(0, LONGEST) : plural(chosen, 'chosen row');
}

/** What is searched for, in words: "cat − dog, width ≥ 500"; of nothing, "all rows". */
function titleOf(state) {
  const named = { picture: 'a picture', row: (part) => `row ${part.id}`, address: (part) => `the picture at ${part.address}`, text: (part) => part.text };
  const searched = parts(state)
    .map((part, i) => {
      const name = named[part.kind];
      const weight = Math.abs(part.weight);
      const sign = part.weight < 0 ? (i ? ' − ' : '− ') : i ? ' + ' : '';
      return `${sign}${weight === 1 ? '' : `${weight} × `}${typeof name === 'string' ? name : name(part)}`;
    })
    .join('');
  return [searched || 'all rows', ...state.filters.map(describe), ...(state.where.trim() ? [whereIn(state.where.trim())] : [])].join(', ');
}

/** A text in which TeX sees letters alone. */
const inBibtex = (text) => text.replace(/[\\~^&%$#_{}]/g, (sign) => IN_BIBTEX[sign] ?? `\\${sign}`);

/** A search cited in a line, and as BibTeX. `day`: when it was made. */
function citationsOf(state, table, { link, version, day }) {
  const two = (number) => String(number).padStart(2, '0');
  const date = `${day.getFullYear()}-${two(day.getMonth() + 1)}-${two(day.getDate())}`;
  const name = sourceOf({ database: table.database, table: table.name });
  const rows = plural(table.rows, 'row');
  const key = `clipql-${table.name.replace(/[^A-Za-z0-9]+/g, '-')}-${date.replaceAll('-', '')}`;
  return {
    line: `“${titleOf(state)}”. Search of the table ${name} (${rows}) with clipql ${version}, ${date}. ${link}`,
    bibtex: [
      `@misc{${key},`,
      `  title = {{${inBibtex(titleOf(state))}}},`,
      `  howpublished = {Search of the table ${inBibtex(name)} (${rows}) with clipql ${inBibtex(version)}},`,
      `  year = {${day.getFullYear()}},`,
      `  month = ${MONTHS[day.getMonth()]},`,
      `  url = {${link}},`,
      `  urldate = {${date}}`,
      '}',
    ].join('\n'),
  };
}

/** The dialog: each text with a button that copies it. */
export function showShare() {
  if (!results.state) return;
  const link = linkOf(now);
  const sql = laidOut(shownSql());
  const cited = citationsOf(now, results.table, { link, version: catalog.version ?? '', day: new Date() });
  const pictures = parts(now).filter((part) => part.kind === 'picture').length;
  const given = Object.keys(results.params).length;
  const part = (heading, text, what, note = null) => [
    el('h3', {}, heading),
    el('pre', { class: 'statement', tabindex: 0, 'aria-label': heading }, text.length > MOST_LETTERS ? `${text.slice(0, MOST_LETTERS)}… ${count(text.length)} letters` : text),
    note && el('p', { class: 'quiet' }, note),
    el('div', { class: 'buttons' }, copyButton(() => text, what)),
  ];
  openDialog('Share and cite', [
    part('Link', link, 'Copy the link', pictures ? `${plural(pictures, 'picture')} that you gave ${pictures === 1 ? 'is' : 'are'} not part of the link: they stay in this tab.` : null),
    part('SQL', sql, 'Copy the SQL', given ? 'It names parameters, which Show SQL has.' : null),
    part('Citation', cited.line, 'Copy the citation'),
    part('BibTeX', cited.bibtex, 'Copy BibTeX'),
  ]);
}
