/**
 * The canvas of the map: where points are, what they look like, how they are moved. Coordinates of points are those of
 * the projection, [-1, 1]; the view is a centre and a zoom.
 */

const MARGIN = 40; // pixels kept free around the outermost points
const THUMB = 46; // pixels at zoom 1
const LARGEST = 150;
const CLICK_DISTANCE = 5; // pixels; farther is a drag

/** `actions`: open(id), over(id or null). Gives show, highlight, zoom, fit and resize. */
export function makeCanvas(node, tip, actions) {
  const pen = node.getContext('2d');
  const images = new Map(); // address → {image, state}
  const fingers = new Map(); // pointerId → {x, y}
  let points = [];
  let view = { x: 0, y: 0, zoom: 1 };
  let lit = null;
  let frame = 0;
  let moved = 0;

  const unit = () => (Math.min(node.clientWidth, node.clientHeight) / 2 - MARGIN) * view.zoom;
  // a field that is not square is used to its ends
  const stretch = () => {
    const shape = node.clientWidth / Math.max(1, node.clientHeight);
    return { x: Math.max(1, Math.min(1.9, shape)), y: Math.max(1, Math.min(1.6, 1 / shape)) };
  };
  const size = () => Math.min(LARGEST, THUMB * Math.sqrt(view.zoom) * Math.min(1.5, Math.max(0.8, Math.sqrt(90 / Math.max(1, points.length)))));
  const toScreen = (point) => ({
    x: node.clientWidth / 2 + (point.x * stretch().x - view.x) * unit(),
    y: node.clientHeight / 2 + (-point.y * stretch().y - view.y) * unit(),
  });

  function later() {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      draw();
    });
  }

  function resize() {
    const scale = window.devicePixelRatio || 1;
    node.width = Math.round(node.clientWidth * scale);
    node.height = Math.round(node.clientHeight * scale);
    later();
  }

  function imageOf(source) {
    if (!source) return null;
    let kept = images.get(source);
    if (!kept) {
      const image = new Image();
      kept = { image, ready: false };
      images.set(source, kept);
      image.referrerPolicy = 'no-referrer';
      image.decoding = 'async';
      image.onload = () => {
        kept.ready = true;
        later();
      };
      image.src = source;
    }
    return kept.ready ? kept.image : null;
  }

  function draw() {
    const style = getComputedStyle(node);
    const colour = (name) => style.getPropertyValue(name).trim();
    const scale = window.devicePixelRatio || 1;
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, node.clientWidth, node.clientHeight);
    const edge = size();
    // what has no picture yet lies below; of the pictures the nearest are drawn last, so that they lie on top
    for (const point of points) if (point !== lit && !imageOf(point.source)) one(point, edge, false, colour);
    for (let i = points.length - 1; i >= 0; i--) if (points[i] !== lit && imageOf(points[i].source)) one(points[i], edge, false, colour);
    if (lit) one(lit, Math.max(edge * 1.6, 84), true, colour);
  }

  function one(point, edge, bright, colour) {
    const { x, y } = toScreen(point);
    if (x < -edge || y < -edge || x > node.clientWidth + edge || y > node.clientHeight + edge) return;
    const image = imageOf(point.source);
    const accent = colour('--accent');
    if (!image) {
      pen.beginPath();
      pen.arc(x, y, bright ? 7 : 4, 0, 7);
      pen.fillStyle = bright ? accent : colour('--ink-3');
      pen.fill();
      return;
    }
    const shape = image.naturalWidth / image.naturalHeight || 1;
    const [w, h] = shape > 1 ? [edge, edge / shape] : [edge * shape, edge];
    pen.save();
    pen.beginPath();
    pen.roundRect(x - w / 2, y - h / 2, w, h, Math.min(8, edge / 8));
    pen.fillStyle = colour('--tile');
    pen.shadowColor = 'rgb(0 0 0 / .28)';
    pen.shadowBlur = bright ? 18 : 5;
    pen.shadowOffsetY = bright ? 5 : 1;
    pen.fill();
    pen.shadowColor = 'transparent';
    pen.clip();
    pen.drawImage(image, x - w / 2, y - h / 2, w, h);
    pen.restore();
    if (bright) {
      pen.beginPath();
      pen.roundRect(x - w / 2 - 2, y - h / 2 - 2, w + 4, h + 4, Math.min(9, edge / 8 + 2));
      pen.lineWidth = 2.5;
      pen.strokeStyle = accent;
      pen.stroke();
    }
  }

  /** The point under a place of the canvas; the one on top where several are. */
  function hit(x, y) {
    const reach = Math.max(14, size() / 2);
    let best = null;
    for (const point of points) {
      const at = toScreen(point);
      const [dx, dy] = [Math.abs(at.x - x), Math.abs(at.y - y)];
      if (dx <= reach && dy <= reach && (!best || dx + dy < best.off)) best = { point, off: dx + dy };
    }
    return best?.point ?? null;
  }

  function light(point) {
    if (point === lit) return;
    lit = point;
    node.classList.toggle('over', Boolean(point));
    tip.hidden = !point?.caption;
    if (point?.caption) {
      const { x, y } = toScreen(point);
      tip.textContent = point.caption;
      tip.style.left = `${Math.max(110, Math.min(node.clientWidth - 110, x))}px`;
      tip.style.top = `${y + Math.max(size() * 0.8, 42) + 8}px`;
    }
    later();
  }

  function zoomAt(factor, x, y) {
    const zoom = Math.max(0.6, Math.min(24, view.zoom * factor));
    const before = unit();
    const after = (before / view.zoom) * zoom;
    const [fromX, fromY] = [x - node.clientWidth / 2, y - node.clientHeight / 2];
    // what is under the pointer stays under it
    view = { zoom, x: view.x + fromX / before - fromX / after, y: view.y + fromY / before - fromY / after };
    light(null);
    later();
  }

  const place = (event) => {
    const box = node.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  };

  node.addEventListener('wheel', (event) => {
    event.preventDefault();
    const { x, y } = place(event);
    zoomAt(Math.exp(-Math.max(-60, Math.min(60, event.deltaY)) * 0.004), x, y);
  }, { passive: false });

  node.addEventListener('pointerdown', (event) => {
    node.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, place(event));
    if (fingers.size === 1) moved = 0;
  });

  node.addEventListener('pointermove', (event) => {
    const at = place(event);
    const from = fingers.get(event.pointerId);
    if (!from) {
      const point = hit(at.x, at.y);
      light(point);
      actions.over(point?.id ?? null);
      return;
    }
    const [other] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, finger]) => finger);
    moved += Math.hypot(at.x - from.x, at.y - from.y);
    if (other) {
      const spread = Math.hypot(at.x - other.x, at.y - other.y) / Math.max(1, Math.hypot(from.x - other.x, from.y - other.y));
      zoomAt(spread, (at.x + other.x) / 2, (at.y + other.y) / 2);
    } else if (moved > CLICK_DISTANCE) {
      view = { ...view, x: view.x - (at.x - from.x) / unit(), y: view.y - (at.y - from.y) / unit() };
      node.classList.add('dragged');
      light(null);
      later();
    }
    fingers.set(event.pointerId, at);
  });

  const lift = (event) => {
    const at = fingers.get(event.pointerId);
    fingers.delete(event.pointerId);
    node.classList.remove('dragged');
    if (event.type !== 'pointerup' || !at || moved > CLICK_DISTANCE) return;
    const point = hit(at.x, at.y);
    if (point) actions.open(point.id);
  };
  node.addEventListener('pointerup', lift);
  node.addEventListener('pointercancel', lift);
  node.addEventListener('pointerleave', () => {
    light(null);
    actions.over(null);
  });

  node.addEventListener('keydown', (event) => {
    const by = 60 / unit();
    const keys = {
      ArrowLeft: () => (view = { ...view, x: view.x - by }),
      ArrowRight: () => (view = { ...view, x: view.x + by }),
      ArrowUp: () => (view = { ...view, y: view.y - by }),
      ArrowDown: () => (view = { ...view, y: view.y + by }),
      '+': () => zoomAt(1.4, node.clientWidth / 2, node.clientHeight / 2),
      '-': () => zoomAt(1 / 1.4, node.clientWidth / 2, node.clientHeight / 2),
      0: fit,
    };
    if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    keys[event.key]();
    later();
  });

  function fit() {
    view = { x: 0, y: 0, zoom: 1 };
    later();
  }

  new ResizeObserver(resize).observe(node);

  return {
    resize,
    fit,
    zoom: (factor) => zoomAt(factor, node.clientWidth / 2, node.clientHeight / 2),
    highlight: (id) => light(points.find((point) => point.id === id) ?? null),
    show(given) {
      points = given;
      light(null);
      fit();
    },
  };
}
