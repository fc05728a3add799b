/** The grid's last row, while more is to come: what is added to a row that is seen would stretch and move it. */

/** Holds the tiles of the last row back, unless it is the only one; with `more` false, all are shown. */
export function holdBack(list, more) {
  for (const node of list.querySelectorAll('.held')) node.classList.remove('held');
  list.classList.remove('going-on');
  if (!more || list.classList.contains('captions')) return;
  const last = [];
  let node = list.lastElementChild;
  for (; node; node = node.previousElementSibling) {
    if (!node.checkVisibility()) continue;
    if (last.length && node.offsetTop !== last[0].offsetTop) break;
    last.push(node);
  }
  if (!node) return;
  for (const one of last) one.classList.add('held');
  list.classList.add('going-on');
}
