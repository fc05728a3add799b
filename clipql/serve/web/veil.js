/**
 * Which pictures are veiled: those not marked as safe, unless the user shows all or has uncovered this one. What must
 * stay true: whoever shows a picture of a row asks here, so that none is seen in one place and veiled in another.
 */

import { isSafe } from './filters.js';

const uncovered = new Set();
const keyOf = (row, table) => JSON.stringify([table?.database, table?.name, row.id]);

/**
 * `safe` is the state's: 'safe' hides such rows in results, but a link may still name one. Before the table is known,
 * nobody can say that a picture is safe.
 */
export const isVeiled = (row, table, safe) => safe !== 'all' && !(table && isSafe(row, table)) && !uncovered.has(keyOf(row, table));

/** Shows this one from now on, until the page is closed. */
export const uncover = (row, table) => uncovered.add(keyOf(row, table));
