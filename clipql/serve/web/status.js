/** The line of figures above the results: how many there are, of how many, what Safe hides, and how long it took. */

import { countsOf, drawWeak } from './counting.js';
import { announce, button, byId, count, plural } from './dom.js';
import { distinct, results } from './results.js';
import { change } from './state.js';

/** `outdated`: what is shown is not what was asked for, so no figure is true of it. */
export function drawFigures(outdated) {
  const place = byId('status');
  for (const id of ['show-sql', 'export']) byId(id).disabled = !results.state || outdated;
  if (!results.state || outdated) {
    place.replaceChildren();
    drawWeak(null, null, []);
    return;
  }
  drawWeak(results.state, results.table, results.rows);
  const time = results.ms?.total;
  const alike = results.rows.length - distinct();
  const counts = countsOf(results.state, results.table);
  const total = results.more && counts ? `first ${count(distinct())} of ${plural(counts.matching, 'picture')}` : `${results.more ? 'first ' : ''}${plural(distinct(), 'picture')}`;
  const words = `${total}${alike ? `, ${count(alike)} more almost like them` : ''}`;
  const hidden = counts?.hidden ? `${count(counts.hidden)} hidden by Safe` : null;
  const look = () => change({ safe: 'blur' });
  place.replaceChildren(
    words,
    ...(hidden ? [' · ', button(hidden, { text: hidden, class: 'link', title: 'Show them, blurred', onclick: look })] : []),
    typeof time === 'number' ? ` · ${time < 10 ? time.toFixed(1) : Math.round(time)} ms` : '',
  );
  announce([results.rows.length ? words : 'No pictures found', hidden, byId('weak').textContent].filter(Boolean).join('. '));
}
