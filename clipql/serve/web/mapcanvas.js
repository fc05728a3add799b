/**
 * The field of a map: its view, what lies over the points (labels, marks, pictures, a lasso), and hands and keys on it.
 * Places are in [-1, 1], y upwards; the view is a centre, in units of the field, and a zoom.
 */

import { eachWithin, pointOf, xOf, yOf } from './mapdata.js';
import { makePainter } from './mapgl.js';
import { drawDots, drawLabels, drawLine, drawPictures, drawRings } from './mapover.js';

const MARGIN = 40; // pixels kept free around the outermost points
const [LEAST_ZOOM, MOST_ZOOM] = [0.6, 60];
const CLICK_DISTANCE = 5; // pixels; farther is a drag
const REACH = 14; // pixels around a pointer in which a point is meant
const FEW = 300; // points in view, of all of which pictures are shown
const MOST_RINGS = 300; // of more marks rings would be one blot
const CELL = 76; // pixels, at least, between pictures of more points

/**
 * `below` and `node`: canvases, of the points and of what lies over them. `actions`: open(id), over(id or null, x, y),
 * lassoed(line), seen(ids), pictureOf(id), lassoing(), sparse(): whether some of many points are shown as pictures.
 */
export function makeCanvas(below, node, actions) {
  const pen = node.getContext('2d');
  const painter = makePainter(below);
  const fingers = new Map(); // pointerId → {x, y}
  let points = null;
  let view = { x: 0, y: 0, zoom: 1 };
  let marks = { results: [], picked: [] };
  let lit = -1;
  let line = null; // of the lasso, as pixels
  let outline = null; // around what is chosen, in the plane
  let frame = 0;
  let moved = 0;
  let calm = 0;
  node.dataset.by = painter.kind;

  const field = () => ({ width: node.clientWidth, height: node.clientHeight });
  const unit = () => (Math.min(node.clientWidth, node.clientHeight) / 2 - MARGIN) * view.zoom;
  // a field that is not square is used to its ends
  const stretch = () => {
    const shape = node.clientWidth / Math.max(1, node.clientHeight);
    return { x: Math.max(1, Math.min(1.9, shape)), y: Math.max(1, Math.min(1.6, 1 / shape)) };
  };
  function transform() {
    const { width, height } = field();
    const scale = { x: stretch().x * unit(), y: stretch().y * unit() };
    const crowd = Math.sqrt((width * height) / Math.max(1, points?.count ?? 1));
    const size = Math.max(2, Math.min(11, crowd * 0.34 * Math.sqrt(view.zoom)));
    return { scale, shift: { x: width / 2 - view.x * unit(), y: height / 2 - view.y * unit() }, size, width, height };
  }
  const toScreen = (x, y, { scale, shift } = transform()) => ({ x: shift.x + x * scale.x, y: shift.y - y * scale.y });
  const toPlace = (at, { scale, shift } = transform()) => [(at.x - shift.x) / scale.x, (shift.y - at.y) / scale.y];

  function later() {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      draw();
    });
  }

  function resize() {
    const dots = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(node.clientWidth * dots), Math.round(node.clientHeight * dots)];
    if (!width || (node.width === width && node.height === height)) return;
    [node.width, node.height] = [width, height];
    painter.resize(width, height);
    later();
  }

  /**
   * The points whose pictures are shown: all in view where they are few; else, where it is wanted, one of each cell of a
   * grid that lies still while the map is moved; null for none.
   */
  function withPicture(now) {
    const [left, bottom] = toPlace({ x: 0, y: now.height }, now);
    const [right, top] = toPlace({ x: now.width, y: 0 }, now);
    const found = [];
    eachWithin(points, left, bottom, right, top, (i) => found.push(i) <= FEW);
    if (found.length <= FEW) return found;
    if (!actions.sparse()) return null;
    const [wide, high] = [now.scale.x, now.scale.y].map((scale) => 2 ** Math.ceil(Math.log2(CELL / scale)));
    const cells = new Map();
    eachWithin(points, left, bottom, right, top, (i) => {
      const cell = Math.floor(xOf(points, i) / wide) * 1e6 + Math.floor(yOf(points, i) / high);
      if (!(cells.get(cell) < i)) cells.set(cell, i);
    });
    return [...cells.values()];
  }

  function draw() {
    const dots = window.devicePixelRatio || 1;
    pen.setTransform(dots, 0, 0, dots, 0, 0);
    pen.clearRect(0, 0, node.clientWidth, node.clientHeight);
    if (!points || !node.clientWidth) return;
    const now = transform();
    painter.draw(now);
    const place = (i) => toScreen(xOf(points, i), yOf(points, i), now);
    const style = getComputedStyle(node);
    const colour = (name) => style.getPropertyValue(name).trim();
    const seen = withPicture(now);
    if (seen) drawPictures(pen, seen.map((i) => ({ ...place(i), source: actions.pictureOf(String(points.ids[i])) })), now, view.zoom, colour, later);
    drawDots(pen, marks.results.map(place), Math.max(2.6, now.size / 2 + 0.5), colour('--accent'), colour('--panel'));
    if (marks.picked.length > MOST_RINGS) drawDots(pen, marks.picked.map(place), now.size / 2 + 0.5, colour('--ink'), colour('--panel'));
    else drawRings(pen, marks.picked.map(place), Math.max(4, now.size / 2 + 2), colour('--ink'), 2);
    drawLabels(pen, points.labels, (label) => toScreen(label.x, label.y, now), now, view.zoom, colour);
    if (lit >= 0) drawRings(pen, [place(lit)], now.size / 2 + 5, colour('--accent'), 3);
    if (line) drawLine(pen, line, colour('--accent'));
    else if (outline) drawLine(pen, outline.map(([x, y]) => toScreen(x, y, now)), colour('--accent'));
    clearTimeout(calm);
    if (seen?.length) calm = setTimeout(() => actions.seen(seen.map((i) => points.ids[i])), 250);
  }

  /** The point under a place of the canvas, -1 for none. */
  function hit(at) {
    if (!points) return -1;
    const now = transform();
    const [left, bottom] = toPlace({ x: at.x - REACH, y: at.y + REACH }, now);
    const [right, top] = toPlace({ x: at.x + REACH, y: at.y - REACH }, now);
    let best = { i: -1, off: REACH ** 2 };
    eachWithin(points, left, bottom, right, top, (i) => {
      const { x, y } = toScreen(xOf(points, i), yOf(points, i), now);
      const off = (x - at.x) ** 2 + (y - at.y) ** 2;
      if (off <= best.off) best = { i, off };
    });
    return best.i;
  }

  function light(i) {
    if (i === lit) return;
    lit = i;
    node.classList.toggle('over', i >= 0);
    const at = i < 0 ? { x: 0, y: 0 } : toScreen(xOf(points, i), yOf(points, i));
    actions.over(i < 0 ? null : String(points.ids[i]), at.x, at.y);
    later();
  }

  function zoomAt(factor, x, y) {
    const zoom = Math.max(LEAST_ZOOM, Math.min(MOST_ZOOM, view.zoom * factor));
    const before = unit();
    const after = (before / view.zoom) * zoom;
    const [fromX, fromY] = [x - node.clientWidth / 2, y - node.clientHeight / 2];
    // what is under the pointer stays under it
    view = { zoom, x: view.x + fromX / before - fromX / after, y: view.y + fromY / before - fromY / after };
    light(-1);
    later();
  }

  function pan(x, y) {
    view = { ...view, x: view.x + x / unit(), y: view.y + y / unit() };
    later();
  }

  const middle = () => ({ x: node.clientWidth / 2, y: node.clientHeight / 2 });
  const placeOf = (event) => {
    const box = node.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  };

  node.addEventListener('wheel', (event) => {
    event.preventDefault();
    const { x, y } = placeOf(event);
    zoomAt(Math.exp(-Math.max(-60, Math.min(60, event.deltaY)) * 0.004), x, y);
  }, { passive: false });

  node.addEventListener('pointerdown', (event) => {
    if (event.button) return;
    node.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, placeOf(event));
    if (fingers.size === 1) moved = 0;
    line = fingers.size === 1 && (event.shiftKey || actions.lassoing()) ? [placeOf(event)] : null;
    if (line) light(-1);
  });

  node.addEventListener('pointermove', (event) => {
    const at = placeOf(event);
    const from = fingers.get(event.pointerId);
    if (!from) {
      light(hit(at));
      return;
    }
    const [other] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, finger]) => finger);
    moved += Math.hypot(at.x - from.x, at.y - from.y);
    if (line && !other) {
      line.push(at);
      later();
    } else if (other) {
      const spread = Math.hypot(at.x - other.x, at.y - other.y) / Math.max(1, Math.hypot(from.x - other.x, from.y - other.y));
      zoomAt(spread, (at.x + other.x) / 2, (at.y + other.y) / 2);
    } else if (moved > CLICK_DISTANCE) {
      node.classList.add('dragged');
      light(-1);
      pan(from.x - at.x, from.y - at.y);
    }
    fingers.set(event.pointerId, at);
  });

  const lift = (event) => {
    const at = fingers.get(event.pointerId);
    fingers.delete(event.pointerId);
    node.classList.remove('dragged');
    const drawn = line;
    line = null;
    if (drawn) later();
    if (event.type !== 'pointerup' || !at) return;
    if (drawn && moved > CLICK_DISTANCE) {
      const now = transform();
      actions.lassoed(drawn.map((one) => toPlace(one, now)));
    } else if (moved <= CLICK_DISTANCE) {
      const i = hit(at);
      if (i >= 0) actions.open(String(points.ids[i]));
    }
  };
  node.addEventListener('pointerup', lift);
  node.addEventListener('pointercancel', lift);
  node.addEventListener('pointerleave', () => light(-1));
  node.addEventListener('blur', () => light(-1));

  node.addEventListener('keydown', (event) => {
    const keys = {
      ArrowLeft: () => pan(-60, 0),
      ArrowRight: () => pan(60, 0),
      ArrowUp: () => pan(0, -60),
      ArrowDown: () => pan(0, 60),
      '+': () => zoomAt(1.4, middle().x, middle().y),
      '-': () => zoomAt(1 / 1.4, middle().x, middle().y),
      0: fit,
      Enter: () => lit >= 0 && actions.open(String(points.ids[lit])),
    };
    if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    keys[event.key]();
    // what is in the middle is what Enter opens
    if (event.key !== 'Enter') light(hit(middle()));
  });

  function fit() {
    view = { x: 0, y: 0, zoom: 1 };
    later();
  }

  const marked = (ids) => [...ids].map((id) => pointOf(points, id)).filter((i) => i >= 0);

  new ResizeObserver(resize).observe(node);

  return {
    resize,
    fit,
    redraw: later,
    zoom: (factor) => zoomAt(factor, middle().x, middle().y),
    /** Goes to a place, so near that a region fills the field. */
    goTo(x, y, zoom) {
      view = { x: 0, y: 0, zoom };
      view = { zoom, x: x * stretch().x, y: -y * stretch().y };
      later();
    },
    highlight: (id) => light(id === null || !points ? -1 : pointOf(points, id)),
    /** Shows these points, or none; the view stays where they are of the same map. */
    show(given, same) {
      points = given;
      lit = -1;
      marks = { results: [], picked: [] };
      painter.points(given ? given.xy : new Uint16Array());
      if (!same) fit();
      later();
    },
    paint(rgba) {
      painter.colours(rgba);
      later();
    },
    mark(results, picked) {
      if (!points) return;
      marks = { results: marked(results), picked: marked(picked) };
      later();
    },
    /** The line around what is chosen, [x, y] in [-1, 1] each; null: none is. One that is being drawn is given up. */
    outline(drawn) {
      outline = drawn;
      line = null;
      later();
    },
    /** The line around all that is in view. */
    around() {
      const { width, height } = field();
      return [[0, 0], [width, 0], [width, height], [0, height]].map(([x, y]) => toPlace({ x, y }));
    },
  };
}
