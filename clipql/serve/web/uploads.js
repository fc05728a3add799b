/**
 * Pictures that the user searches with. They are in no link: an address names one by a key, and this tab keeps the
 * picture itself (memory, and sessionStorage for a reload) until it is closed. What must stay true: what is sent for a
 * key is always the same picture, so a reload gives the same results.
 */

const PREFIX = 'clipql:picture:';
const LARGEST_BYTES = 1_500_000; // sessionStorage holds about 5 MB of text, and base64 adds a third
const LONGEST_SIDE = 1024; // several times what any CLIP looks at

const pictures = new Map(); // key → Blob
const addresses = new Map(); // key → blob: address, for showing it

/** Takes a picture; gives its key. Throws a TypeError where the file is no picture, or none that a browser can draw. */
export async function keepPicture(file) {
  const name = file.name || 'What was given';
  if (!file.type.startsWith('image/')) throw new TypeError(`${name} is not a picture.`);
  if (!(await isDrawn(file))) throw new TypeError(`${name} is damaged, or no picture of a kind that is known here. PNG, JPEG and WebP are.`);
  const blob = file.size > LARGEST_BYTES ? await smaller(file) : file;
  const key = await pictureKey(blob);
  pictures.set(key, blob);
  store(key, blob);
  return key;
}

/** The picture of a key, or null where this tab has none. */
export async function pictureFor(key) {
  if (pictures.has(key)) return pictures.get(key);
  let kept;
  try {
    kept = sessionStorage.getItem(PREFIX + key);
  } catch {
    return null;
  }
  if (!kept) return null;
  const [type, text] = kept.split(',', 2);
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const blob = new Blob([bytes], { type });
  pictures.set(key, blob);
  return blob;
}

/** An address that shows the picture of a key, or null. */
export async function addressFor(key) {
  const blob = await pictureFor(key);
  if (!blob) return null;
  if (!addresses.has(key)) addresses.set(key, URL.createObjectURL(blob));
  return addresses.get(key);
}

/** Whether the browser can draw a picture; by an element, which unlike createImageBitmap knows SVG. */
async function isDrawn(file) {
  const address = URL.createObjectURL(file);
  const image = new Image();
  image.src = address;
  try {
    await image.decode();
    return image.naturalWidth > 0;
  } catch {
    return false;
  } finally {
    URL.revokeObjectURL(address);
  }
}

/** The picture of a key is of no use: it is forgotten. */
export function forgetPicture(key) {
  pictures.delete(key);
  try {
    sessionStorage.removeItem(PREFIX + key);
  } catch {
    // without storage it was never kept there
  }
}

/** A photo of many megabytes, made smaller once; what the browser cannot draw is sent as it is. */
async function smaller(file) {
  try {
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
    const canvas = new OffscreenCanvas(Math.max(1, Math.round(bitmap.width * scale)), Math.max(1, Math.round(bitmap.height * scale)));
    const pen = canvas.getContext('2d');
    pen.imageSmoothingQuality = 'high';
    pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    return await canvas.convertToBlob({ type: 'image/jpeg', quality: 0.92 });
  } catch {
    return file;
  }
}

/** A short name that follows from the bytes (FNV-1a, twice): the same picture is the same part of a query. */
async function pictureKey(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let [a, b] = [0x811c9dc5, 0x01000193 ^ bytes.length];
  for (const byte of bytes) {
    a = Math.imul(a ^ byte, 0x01000193);
    b = Math.imul(b ^ byte, 0x85ebca6b);
  }
  return (a >>> 0).toString(36) + (b >>> 0).toString(36);
}

function store(key, blob) {
  const reader = new FileReader();
  reader.onload = () => {
    const value = `${blob.type},${String(reader.result).split(',', 2)[1]}`;
    for (let attempt = 0; attempt < 2; attempt++) {
      try {
        sessionStorage.setItem(PREFIX + key, value);
        return;
      } catch {
        // full: older pictures make room; if that is not enough, this one lasts until a reload
        for (const name of Object.keys(sessionStorage)) if (name.startsWith(PREFIX)) sessionStorage.removeItem(name);
      }
    }
  };
  reader.readAsDataURL(blob);
}
