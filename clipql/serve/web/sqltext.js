/** The text of the SQL editor: its statements, and where the server found an error, counted in the whole of it. */

const SYNTAX_ERROR = 62;
const bytesOf = (text) => new TextEncoder().encode(text);

/** A text with semicolons as its statements, each with the place it begins at; those in quotes, comments and heredocs separate nothing. */
export function statementsOf(text) {
  const token = /'(?:[^'\\]|\\.|'')*'?|"(?:[^"\\]|\\.)*"?|`(?:[^`\\]|\\.)*`?|--[^\n]*|\/\*[\s\S]*?(?:\*\/|$)|\$(\w*)\$[\s\S]*?(?:\$\1\$|$)|;/gs;
  const found = [];
  let from = 0;
  const take = (end) => {
    const piece = text.slice(from, end);
    const sql = piece.trim();
    if (sql.replace(/--[^\n]*|\/\*[\s\S]*?(?:\*\/|$)/g, '').trim()) found.push({ sql, at: from + piece.length - piece.trimStart().length });
    from = end + 1;
  };
  for (const match of text.matchAll(token)) if (match[0] === ';') take(match.index);
  take(text.length);
  return found;
}

/**
 * An error of a statement, told with places in the whole text: its message, and the letter that it is about, null where
 * it names none. The server counts bytes from 1, and where there are several lines the line and the bytes in it.
 */
export function placed(error, text, { sql, at }) {
  const code = error.code || Number(/^Code: (\d+)\b/.exec(error.message)?.[1]);
  const named = code === SYNTAX_ERROR ? /\bat position (\d+)/.exec(error.message) : null;
  if (!named) return { message: error.message, place: null };
  const byte = Number(named[1]) - 1;
  const before = text.slice(0, at);
  const lineBegin = bytesOf(before.slice(before.lastIndexOf('\n') + 1)).length;
  const message = error.message
    .replace(named[0], `at position ${bytesOf(before).length + byte + 1}`)
    .replace(/\(line (\d+), col (\d+)\)/, (_, line, column) => `(line ${Number(line) + before.split('\n').length - 1}, col ${Number(column) + (line === '1' ? lineBegin : 0)})`);
  const place = at + new TextDecoder().decode(bytesOf(sql).subarray(0, byte)).length;
  return { message, place: Math.min(text.length, place) };
}
