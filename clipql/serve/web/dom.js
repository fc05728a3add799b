/**
 * Elements, icons and links. What must stay true: data becomes text or a checked attribute, never markup, so a caption
 * can say anything; and only http(s) addresses become links or pictures.
 */

const SVG = 'http://www.w3.org/2000/svg';

/** Strokes on a 24 × 24 field. */
const ICONS = {
  search: 'M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14M16 16l4.5 4.5',
  close: 'M6 6l12 12M18 6L6 18',
  picture: 'M5 4h14a1 1 0 0 1 1 1v14a1 1 0 0 1-1 1H5a1 1 0 0 1-1-1V5a1 1 0 0 1 1-1M4 16l4.5-4.5 4 4 2.5-2.5 5 5M15.5 8.5h.01',
  grid: 'M4 5h7v6H4zM15 5h5v6h-5zM4 15h5v5H4zM13 15h7v5h-7z',
  map: 'M6 7h.01M12 5h.01M17 9h.01M9 12h.01M14 14h.01M7 17h.01M18 17h.01M12 19h.01',
  code: 'M8 7l-5 5 5 5M16 7l5 5-5 5M13.5 5l-3 14',
  moon: 'M20 14.5A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.5',
  sun: 'M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8M12 2.5v2M12 19.5v2M2.5 12h2M19.5 12h2M5.3 5.3l1.4 1.4M17.3 17.3l1.4 1.4M5.3 18.7l1.4-1.4M17.3 6.7l1.4-1.4',
  help: 'M9 9a3 3 0 1 1 4.2 2.8c-.8.4-1.2.9-1.2 1.9M12 17.2h.01M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18',
  shield: 'M12 3l7 3v5c0 4.5-3 8-7 10-4-2-7-5.5-7-10V6z',
  filter: 'M4 6h16M7 12h10M10 18h4',
  bars: 'M5 20V11M10 20V5M15 20v-6M20 20V9',
  stack: 'M8 8h12v12H8zM16 8V4H4v12h4',
  download: 'M12 4v11M7.5 11l4.5 4.5 4.5-4.500M5 20h14',
  plus: 'M12 5v14M5 12h14',
  minus: 'M5 12h14',
  like: 'M4 12a8 8 0 0 1 13.7-5.600L20 8.500M20 4v4.500h-4.500M20 12a8 8 0 0 1-13.7 5.600L4 15.500M4 20v-4.500h4.5',
  out: 'M14 4h6v6M20 4l-9 9M18 14v5a1 1 0 0 1-1 1H5a1 1 0 0 1-1-1V7a1 1 0 0 1 1-1h5',
  left: 'M15 5l-7 7 7 7',
  right: 'M9 5l7 7-7 7',
  copy: 'M9 9h11v11H9zM5 15H4V4h11v1',
  play: 'M7 5l12 7-12 7z',
  plan: 'M5 5h6v4H5zM13 15h6v4h-6zM8 9v8h5',
  eye: 'M2.5 12S6 5.5 12 5.5 21.5 12 21.5 12 18 18.5 12 18.5 2.5 12 2.5 12M12 9a3 3 0 1 0 0 6 3 3 0 0 0 0-6',
  keep: 'M7 4h10v16l-5-4-5 4z',
  pick: 'M4 12l5.5 5.5L20 7',
  pen: 'M5 19l1-4L16.5 4.5l3 3L9 18zM14 7l3 3',
  lasso: 'M12 4c4.8 0 8.500 2.400 8.500 5.700S16.800 15.400 12 15.400 3.500 13 3.500 9.700 7.200 4 12 4M8 14.800c-1.600.9-1.900 2.400-.7 3.200s2.900.3 3 1.900',
  fit: 'M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5',
};

/** An icon; it says nothing to a screen reader, so its button needs a name. */
export function icon(name) {
  const svg = document.createElementNS(SVG, 'svg');
  for (const [key, value] of Object.entries({ viewBox: '0 0 24 24', class: 'icon', 'aria-hidden': 'true' })) {
    svg.setAttribute(key, value);
  }
  const path = document.createElementNS(SVG, 'path');
  path.setAttribute('d', ICONS[name]);
  svg.append(path);
  return svg;
}

/** An element: `on…` are listeners, `dataset` its data, null and false leave an attribute out; strings become text. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === 'class') node.className = value;
    else if (name === 'dataset') Object.assign(node.dataset, value);
    else if (name === 'value') node.value = value;
    else if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? '' : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** A button with an icon and, where `text` is given, words; `label` names it for those who do not see the icon. */
export function button(label, { icon: name, text, onclick, class: style = 'ghost', ...rest } = {}) {
  return el(
    'button',
    { type: 'button', class: style, title: text ? null : label, 'aria-label': text === label ? null : label, onclick, ...rest },
    name ? icon(name) : null,
    text ?? null,
  );
}

export const byId = (id) => document.getElementById(id);

/** Fills in the icons that index.html only names. */
export function drawIcons(root = document) {
  for (const place of root.querySelectorAll('[data-icon]')) place.replaceChildren(icon(place.dataset.icon));
}

/** Tells a screen reader something, politely. */
export function announce(text) {
  byId('live').textContent = text;
}

/** The address, if it is one of the web (http or https), else null: `javascript:` and its like never become links. */
export function webAddress(text) {
  if (typeof text !== 'string' || !/^https?:\/\//i.test(text.trim())) return null;
  try {
    const address = new URL(text.trim());
    return address.protocol === 'http:' || address.protocol === 'https:' ? address.href : null;
  } catch {
    return null;
  }
}

export const isAddress = (text) => !/\s/.test(text.trim()) && webAddress(text) !== null;

/** A link to elsewhere that tells the other side nothing; plain text where the address is not one of the web. */
export function webLink(text, shown = text, properties = {}) {
  const address = webAddress(text);
  if (!address) return el('span', properties, shown);
  return el(
    'a',
    { href: address, target: '_blank', rel: 'noopener noreferrer nofollow', referrerpolicy: 'no-referrer', ...properties },
    shown,
  );
}

/** An <img> that loads when it is near, off the main thread, and sends no referrer. The source is set last. */
export function picture(source, alt, properties = {}) {
  const image = el('img', { alt, loading: 'lazy', decoding: 'async', referrerpolicy: 'no-referrer', draggable: 'false', ...properties });
  if (source) image.src = source;
  return image;
}

/** A picture's address as the browser may load it: our own thumbnails, or the web's. */
export function pictureOf(row, size = 256) {
  if (typeof row.thumbnail === 'string' && /^\/api\/thumbnail\//.test(row.thumbnail)) {
    return `.${row.thumbnail}${row.thumbnail.includes('?') ? '&' : '?'}size=${size}`;
  }
  return webAddress(row.picture);
}

/** The address of the picture's file as it is: on our own server, or on the web; null where there is none. */
export function originalOf(row) {
  if (pictureOf(row)?.startsWith('./')) return new URL(`.${row.thumbnail.replace('/thumbnail/', '/picture/')}`, document.baseURI).href;
  return webAddress(row.picture);
}

const wholeNumbers = new Intl.NumberFormat('en');
export const count = (number) => wholeNumbers.format(number);

/** "1 picture", "1,204 pictures". */
export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

/** Copies text; true where the browser let us. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = el('textarea', { class: 'unseen', value: text });
    (document.querySelector('dialog[open]') ?? document.body).append(area);
    area.select();
    const done = document.execCommand('copy');
    area.remove();
    return done;
  }
}

/** null takes it away. */
export function notice(text, ...actions) {
  const box = byId('notice');
  box.hidden = text === null;
  box.replaceChildren(...(text === null ? [] : [el('span', {}, text), ...actions]));
}
