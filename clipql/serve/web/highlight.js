/**
 * Colours for the SQL editor: a painted copy of the text lies under a transparent textarea. What must stay true: the copy
 * has exactly the textarea's letters, so that both stay in line.
 */

import { el } from './dom.js';

const TOKENS =
  /(?<comment>--[^\n]*|\/\*[\s\S]*?(?:\*\/|$))|(?<text>'(?:[^'\\]|\\[\s\S]|'')*(?:'|$))|(?<name>`(?:[^`\\]|\\[\s\S])*(?:`|$)|"(?:[^"\\]|\\[\s\S])*(?:"|$))|(?<param>\{\w+:[^}]*\})|(?<number>\b\d[\w.]*)|(?<word>[A-Za-z_]\w*)/g;

const FIRST_WORDS =
  'SELECT FROM WHERE ORDER BY LIMIT OFFSET GROUP HAVING WITH AS AND OR NOT IN IS NULL LIKE ILIKE BETWEEN DISTINCT JOIN LEFT INNER ON USING UNION ALL EXPLAIN SHOW TABLES DESCRIBE CASE WHEN THEN ELSE END ASC DESC SETTINGS FORMAT INSERT INTO VALUES ARRAY INTERVAL';

/** A statement of one line with its clauses on lines of their own; strings and comments stay as they are. */
export function laidOut(sql) {
  if (sql.includes('\n')) return sql;
  const places = [];
  let depth = 0;
  for (const match of sql.matchAll(/[()]|'(?:[^'\\]|\\.|'')*'|`(?:[^`\\]|\\.)*`|\b(?:FROM|WHERE|ORDER BY|LIMIT|SETTINGS)\b/g)) {
    if (match[0] === '(') depth++;
    else if (match[0] === ')') depth--;
    else if (depth === 0 && /^[A-Z]/.test(match[0])) places.push(match.index);
  }
  return places.reverse().reduce((text, at) => `${text.slice(0, at).trimEnd()}\n${text.slice(at)}`, sql);
}

/** Paints `area`'s text into `paint` whenever it changes. Gives draw(), learn(words), inCode(position) and words. */
export function makeHighlighter(area, paint) {
  const words = { keywords: FIRST_WORDS.split(' '), functions: [] };
  let keywords = new Set(words.keywords);

  function draw() {
    const text = area.value;
    const pieces = [];
    let at = 0;
    for (const match of text.matchAll(TOKENS)) {
      const kind = kindOf(match, text);
      if (!kind) continue;
      pieces.push(text.slice(at, match.index), el('span', { class: `sql-${kind}` }, match[0]));
      at = match.index + match[0].length;
    }
    // a last line break needs something after it to have a height
    pieces.push(text.slice(at), '\n');
    paint.replaceChildren(...pieces);
    follow();
  }

  function kindOf(match, text) {
    const { comment, text: string, name, param, number, word } = match.groups;
    if (comment) return 'comment';
    if (string) return 'string';
    if (name) return null;
    if (param) return 'param';
    if (number) return 'number';
    if (text[match.index + word.length] === '(') return 'function';
    return keywords.has(word.toUpperCase()) ? 'keyword' : null;
  }

  function follow() {
    paint.scrollTop = area.scrollTop;
    paint.scrollLeft = area.scrollLeft;
  }

  area.addEventListener('input', draw);
  area.addEventListener('scroll', follow);

  return {
    draw,
    words,
    learn(given) {
      words.keywords = given.keywords?.length ? given.keywords : words.keywords;
      words.functions = given.functions ?? [];
      keywords = new Set(words.keywords.flatMap((phrase) => phrase.toUpperCase().split(' ')));
      draw();
    },
    /** Whether a place of the text is code, not a string or a comment. */
    inCode(position) {
      for (const match of area.value.matchAll(TOKENS)) {
        if (match.index >= position) return true;
        const closed = match.index + match[0].length;
        if ((match.groups.comment || match.groups.text) && position <= closed) return position === closed && /['/]$/.test(match[0]) && match[0].length > 1;
      }
      return true;
    },
  };
}
