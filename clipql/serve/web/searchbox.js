/**
 * The search box, and pictures that are picked, dropped or pasted anywhere on the page. Words are searched while they are
 * typed; one run of typing is one step of the back button.
 */

import { addTerm, addTerms } from './chips.js';
import { byId, isAddress, webAddress } from './dom.js';
import { change, now, spokenParts } from './state.js';
import { catalog } from './tables.js';
import { keepPicture } from './uploads.js';

const QUIET_MS = 15; // after the last of keys that come together: too short to be felt
const TOGETHER_MS = 60; // a key so long after the one before stands alone, and is searched for at once

let timer = 0;
let lastKey = -TOGETHER_MS;
let typing = false; // whether the newest step of the history is this run of typing
let say = () => {};
let askAgain = () => {};
let takeDropped = () => {};
let emptied = 0; // how often the search was cleared: a picture that was given before is not added after it

/** `tell(text)` shows a notice; `toResults()` takes the focus into the grid; `again()`: what failed is searched for again; `dropped(address)`: one of the web came. */
export function makeSearchBox({ tell, toResults, again, dropped }) {
  [say, askAgain, takeDropped] = [tell, again, dropped];
  const words = byId('words');
  words.addEventListener('input', (event) => {
    if (/^insertFrom(Paste|Drop)/.test(event.inputType) && takeAddressTyped()) return;
    byId('clear').hidden = !words.value && !now.terms.length;
    clearTimeout(timer);
    const { startTime } = performance.mark('clipql:key');
    const alone = startTime - lastKey >= TOGETHER_MS;
    lastKey = startTime;
    if (alone) take();
    else timer = setTimeout(take, QUIET_MS);
  });
  words.addEventListener('keydown', (event) => {
    if (event.key === 'ArrowDown') {
      event.preventDefault();
      toResults();
    } else if (event.key === 'Escape' && (words.value || now.terms.length)) {
      event.stopPropagation();
      empty();
    }
  });
  words.addEventListener('blur', () => (typing = false));
  byId('search-form').addEventListener('submit', (event) => {
    event.preventDefault();
    commit();
  });
  byId('clear').addEventListener('click', empty);
  byId('pick').addEventListener('click', () => byId('file').click());
  byId('file').addEventListener('change', () => {
    takePictures([...byId('file').files]); // the list itself is emptied with the field
    byId('file').value = '';
  });
  makeDrop();
  document.addEventListener('paste', (event) => {
    if (event.clipboardData?.files.length) {
      event.preventDefault();
      takePictures(event.clipboardData.files);
    }
  });
}

function take() {
  clearTimeout(timer);
  const words = byId('words').value;
  if (words === now.words && now.view !== 'sql') return;
  change({ words, row: null, view: now.view === 'sql' ? 'pictures' : now.view }, typing ? 'replace' : 'push');
  typing = true;
}

function empty() {
  emptied++;
  byId('words').value = '';
  byId('clear').hidden = true;
  typing = false;
  change({ words: '', weight: 1, terms: [], row: null });
  byId('words').focus();
}

/** An address in the box becomes a part of the search; true where the server fetches it. */
function takeAddressTyped() {
  const address = webAddress(byId('words').value);
  if (!catalog.fetches || !isAddress(byId('words').value)) return false;
  clearTimeout(timer);
  byId('words').value = '';
  typing = false;
  change({ words: '', weight: 1 }, 'replace');
  addTerm({ kind: 'address', address, weight: 1 });
  return true;
}

/** Enter: what is typed is searched at once, and several phrases become chips that can be weighed. */
function commit() {
  if (takeAddressTyped()) return;
  if (byId('words').value === now.words) askAgain();
  take();
  typing = false;
  const [first, ...rest] = spokenParts(now.words, now.weight);
  if (!first || (!rest.length && first.weight > 0)) return;
  change({ words: first.weight > 0 ? first.text : '', terms: [...now.terms, ...(first.weight > 0 ? rest : [first, ...rest])] }, 'replace');
}

/** Shows the words of the state, unless they are being typed this moment; those of an address are not. */
export function drawWords(state, fromAddress) {
  const words = byId('words');
  if (fromAddress) typing = false;
  if (words.value !== state.words && !(document.activeElement === words && typing)) {
    clearTimeout(timer);
    words.value = state.words;
  }
  byId('clear').hidden = !words.value && !state.terms.length;
}

/** Adds every picture among the files as one step, and says which are none. */
async function takePictures(files) {
  const before = emptied;
  const taken = await Promise.allSettled([...files].map(keepPicture));
  if (before !== emptied) return;
  const terms = taken.filter((one) => one.status === 'fulfilled').map((one) => ({ kind: 'picture', key: one.value, weight: 1 }));
  const wrong = taken.filter((one) => one.status === 'rejected').map(({ reason }) => reason.message);
  if (terms.length) addTerms(terms);
  say(wrong.length ? wrong.join('\n') : null, terms.length > 0);
}

function makeDrop() {
  const cover = byId('drop');
  let inside = 0;
  const wanted = (event) => [...(event.dataTransfer?.types ?? [])].some((type) => type === 'Files' || type === 'application/x-clipql-row');
  const hide = () => {
    inside = 0;
    cover.hidden = true;
  };
  document.addEventListener('dragenter', (event) => {
    if (!wanted(event)) return;
    inside++;
    cover.hidden = false;
  });
  document.addEventListener('dragleave', (event) => {
    if (wanted(event) && --inside <= 0) hide();
  });
  document.addEventListener('dragover', (event) => event.preventDefault());
  document.addEventListener('drop', (event) => {
    event.preventDefault();
    hide();
    const id = event.dataTransfer.getData('application/x-clipql-row');
    if (id) addTerm({ kind: 'row', id, weight: 1 });
    else if (event.dataTransfer.files.length) takePictures(event.dataTransfer.files);
    else if (webAddress(event.dataTransfer.getData('text/uri-list'))) {
      takeDropped(webAddress(event.dataTransfer.getData('text/uri-list')));
    }
  });
}
