/** What lies over the points of a map, on a plain canvas: pictures, rings around some points, labels, the line of a lasso. */

const THUMB = 46; // pixels at zoom 1
const LARGEST = 150;
const MOST_IMAGES = 1000;
const MOST_ROUND = 3000; // dots; more are squares without an edge, drawn at once
const ABOVE = 13; // pixels that a label stands above its place
const LEVELS = [{ from: 0, size: 15 }, { from: 2.2, size: 13 }, { from: 6, size: 12 }]; // zoom from which labels are shown; pixels

const images = new Map(); // address → {image, ready}

function imageOf(source, loaded) {
  if (!source) return null;
  let kept = images.get(source);
  if (!kept) {
    if (images.size > MOST_IMAGES) images.delete(images.keys().next().value);
    const image = new Image();
    kept = { image, ready: false };
    images.set(source, kept);
    image.referrerPolicy = 'no-referrer';
    image.decoding = 'async';
    image.onload = () => {
      kept.ready = true;
      loaded();
    };
    image.src = source;
  }
  return kept.ready ? kept.image : null;
}

/** Pictures at their places, {x, y, source}; the first lie on top. `loaded()`: one has come, draw anew. */
export function drawPictures(pen, places, { width, height }, zoom, colour, loaded) {
  const crowd = Math.sqrt((width * height) / Math.max(1, places.length));
  const edge = Math.min(LARGEST, Math.max(26, Math.min(THUMB * Math.sqrt(zoom) * 1.2, crowd * 0.55)));
  const back = colour('--tile');
  for (const { x, y, source } of places.toReversed()) {
    const image = x > -edge && y > -edge && x < width + edge && y < height + edge ? imageOf(source, loaded) : null;
    if (!image) continue;
    const shape = image.naturalWidth / image.naturalHeight || 1;
    const [w, h] = shape > 1 ? [edge, edge / shape] : [edge * shape, edge];
    pen.save();
    pen.beginPath();
    pen.roundRect(x - w / 2, y - h / 2, w, h, Math.min(8, edge / 8));
    pen.fillStyle = back;
    pen.shadowColor = 'rgb(0 0 0 / .28)';
    pen.shadowBlur = 5;
    pen.shadowOffsetY = 1;
    pen.fill();
    pen.shadowColor = 'transparent';
    pen.clip();
    pen.drawImage(image, x - w / 2, y - h / 2, w, h);
    pen.restore();
  }
}

export function drawRings(pen, places, radius, stroke, width) {
  pen.strokeStyle = stroke;
  pen.lineWidth = width;
  for (const { x, y } of places) {
    pen.beginPath();
    pen.arc(x, y, radius, 0, 7);
    pen.stroke();
  }
}

/** Dots with an edge, so that they are seen among others. */
export function drawDots(pen, places, radius, fill, edge) {
  pen.fillStyle = fill;
  if (places.length > MOST_ROUND) {
    pen.beginPath();
    for (const { x, y } of places) pen.rect(x - radius / 2, y - radius / 2, radius, radius);
    pen.globalAlpha = 0.55; // the colours below stay to be seen
    pen.fill();
    pen.globalAlpha = 1;
    return;
  }
  pen.strokeStyle = edge;
  pen.lineWidth = 1;
  for (const { x, y } of places) {
    pen.beginPath();
    pen.arc(x, y, radius, 0, 7);
    pen.fill();
    pen.stroke();
  }
}

/** Labels, the larger regions' first; one that would lie over another is left out. */
export function drawLabels(pen, labels, place, { width, height }, zoom, colour) {
  const taken = [];
  const said = new Set();
  pen.textAlign = 'center';
  pen.textBaseline = 'middle';
  pen.lineJoin = 'round';
  for (const label of labels ?? []) {
    const { from, size } = LEVELS[Math.min(label.level, LEVELS.length - 1)];
    if (zoom < from || said.has(label.text)) continue;
    const at = place(label);
    const [x, y] = [at.x, at.y - ABOVE]; // what it names is seen below it
    pen.font = `${label.level ? 500 : 650} ${size}px system-ui, sans-serif`;
    const half = pen.measureText(label.text).width / 2 + 6;
    if (x < -half || y < -20 || x > width + half || y > height + 20) continue;
    const box = [x - half, y - size * 0.8, x + half, y + size * 0.8];
    if (taken.some((other) => box[0] < other[2] && box[2] > other[0] && box[1] < other[3] && box[3] > other[1])) continue;
    taken.push(box);
    said.add(label.text);
    pen.lineWidth = 4;
    pen.strokeStyle = colour('--panel');
    pen.fillStyle = colour('--ink');
    pen.strokeText(label.text, x, y);
    pen.fillText(label.text, x, y);
  }
}

export function drawLine(pen, line, stroke) {
  pen.beginPath();
  for (const [at, { x, y }] of line.entries()) at ? pen.lineTo(x, y) : pen.moveTo(x, y);
  pen.closePath();
  pen.globalAlpha = 0.12;
  pen.fillStyle = stroke;
  pen.fill();
  pen.globalAlpha = 1;
  pen.strokeStyle = stroke;
  pen.lineWidth = 1.8;
  pen.setLineDash([6, 4]);
  pen.stroke();
  pen.setLineDash([]);
}
