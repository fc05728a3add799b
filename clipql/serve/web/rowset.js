/**
 * A set of rows as SQL: few by their numbers; many as one bit each, which a hundred thousand rows of a map are in the
 * length of a few pages. What must stay true: the condition holds for those rows and no others.
 */

const LISTED = 1000; // rows, up to which they are listed
const LONGEST = 110_000; // letters: a statement names a set twice, and a server takes 256 KB
const RANGE = /^_row BETWEEN (\d+) AND (\d+) AND \(_row - \d+\) % (\d+) = 0(?: AND bitTest\(.*base64Decode\('([\w+/=]*)'\).*)?$/s;

const commonDivisor = (a, b) => (b ? commonDivisor(b, a % b) : a);

/** The condition that a row is one of some, of one or more. Throws a RangeError where they lie too far apart to be told in one statement. */
export function conditionOf(ids) {
  if (ids.length <= LISTED) return `_row IN (${Array.from(ids).join(', ')})`;
  const rows = Float64Array.from(ids, Number).sort();
  const [first, last] = [rows[0], rows.at(-1)];
  const step = rows.reduce((found, row) => commonDivisor(row - first, found), 0) || 1; // of a large table a map has every so-manieth row
  const range = `_row BETWEEN ${first} AND ${last} AND (_row - ${first}) % ${step} = 0`;
  if (new Set(rows).size === (last - first) / step + 1) return range; // none is left out
  const bytes = Math.floor((last - first) / step / 8) + 1;
  if (bytes * 4 > LONGEST * 3) {
    const listed = `_row IN (${rows.join(', ')})`;
    if (listed.length > LONGEST) throw new RangeError('These rows lie too far apart in the table for one statement: choose fewer.');
    return listed;
  }
  const bits = new Uint8Array(bytes);
  for (const row of rows) {
    const at = (row - first) / step;
    bits[at >> 3] |= 1 << (at & 7);
  }
  let letters = '';
  for (const byte of bits) letters += String.fromCharCode(byte);
  const place = step === 1 ? `(_row - ${first})` : `intDiv(_row - ${first}, ${step})`;
  return `${range} AND bitTest(reinterpretAsUInt8(substring(base64Decode('${btoa(letters)}'), 1 + intDiv(${place}, 8), 1)), ${place} % 8)`;
}

/** How many rows a condition of `conditionOf` names; null for any other. */
export function countOf(where) {
  const listed = /^_row IN \(([\d, ]+)\)$/.exec(where);
  if (listed) return listed[1].split(',').length;
  const range = RANGE.exec(where);
  if (!range) return null;
  const [, first, last, step, bits] = range;
  if (bits === undefined) return (last - first) / step + 1;
  let found = 0;
  for (const letter of atob(bits)) for (let left = letter.charCodeAt(0); left; left &= left - 1) found++;
  return found;
}

const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  let rest = n;
  for (let bit = 0; bit < 8; bit++) rest = rest & 1 ? (rest >>> 1) ^ 0xedb88320 : rest >>> 1;
  return rest;
});

/** What tells a row by its number and what it holds, as `markSql` has it: a number of 32 bits. */
export function markOf(id, value) {
  let rest = 0xffffffff;
  for (const byte of new TextEncoder().encode(`${id} ${value}`)) rest = CRC[(rest ^ byte) & 255] ^ (rest >>> 8);
  return (rest ^ 0xffffffff) >>> 0;
}

/** The same in SQL; `column` is quoted. */
export const markSql = (column) => `CRC32(concat(toString(_row), ' ', ifNull(toString(${column}), '')))`;
