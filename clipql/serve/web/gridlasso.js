/**
 * A band drawn over the grid picks the pictures that it touches: from between the pictures, or from anywhere with Shift. For
 * mice and pens; a finger scrolls, and keys have `x` and `X`.
 */

const FAR = 6; // pixels; less is a click

/** `area`: where a band may begin. `pick(ids)`: what it touched. */
export function makeGridLasso(area, list, pick) {
  let from = null;
  let band = null;
  let box = null;

  area.dataset.band = ''; // one can be drawn now

  const at = (event) => ({ x: event.clientX, y: event.clientY + window.scrollY });

  function draw(to) {
    const [left, right] = [Math.min(from.x, to.x), Math.max(from.x, to.x)];
    const [top, bottom] = [Math.min(from.y, to.y) - window.scrollY, Math.max(from.y, to.y) - window.scrollY];
    box = { left, right, top, bottom };
    Object.assign(band.style, { left: `${left}px`, top: `${top}px`, width: `${right - left}px`, height: `${bottom - top}px` });
  }

  function end(event) {
    if (band && event.type === 'pointerup') {
      const touched = [...list.querySelectorAll('.tile[data-id]')].filter((tile) => {
        const one = tile.getBoundingClientRect();
        return one.width > 0 && one.left < box.right && one.right > box.left && one.top < box.bottom && one.bottom > box.top;
      });
      if (touched.length) pick(touched.map((tile) => tile.dataset.id));
      // the click that ends the band is none on what lies under it
      const swallow = (click) => {
        click.stopPropagation();
        click.preventDefault();
      };
      window.addEventListener('click', swallow, { capture: true, once: true });
      setTimeout(() => window.removeEventListener('click', swallow, { capture: true }));
    }
    band?.remove();
    band = from = null;
  }

  area.addEventListener('pointerdown', (event) => {
    const free = !event.target.closest('.tile, button, a, input, select, textarea');
    if (event.button || event.pointerType === 'touch' || !(free || event.shiftKey)) return;
    from = at(event);
  });
  // no text is selected; the press itself is left alone, as it takes the focus away from the search box
  document.addEventListener('selectstart', (event) => from && event.preventDefault());
  window.addEventListener('pointermove', (event) => {
    if (!from) return;
    const to = at(event);
    if (!band && Math.hypot(to.x - from.x, to.y - from.y) < FAR) return;
    if (!band) {
      band = document.createElement('div');
      band.className = 'grid-band';
      document.body.append(band);
    }
    draw(to);
  });
  window.addEventListener('pointerup', end);
  window.addEventListener('pointercancel', end);
  // a picture that is dragged goes to the search box, but not while Shift says that a band is meant
  area.addEventListener('dragstart', (event) => event.shiftKey && event.preventDefault(), { capture: true });
}
