/** A server that does not answer: it is asked from time to time whether it is back, and the page then goes on by itself. */

import { button, byId, notice } from './dom.js';

const LONGEST_SECONDS = 15;

let lookAgain = 0;
let waitingFor = null; // the newest wait; null while the server is there

/** `goOn()` is called when it is back, unless it has answered something else meanwhile. */
export function waitForServer(goOn, seconds = 2) {
  clearTimeout(lookAgain);
  const mine = (waitingFor = Symbol('server'));
  const again = async () => {
    clearTimeout(lookAgain);
    const alive = await fetch('./healthz').then((reply) => reply.ok, () => false);
    if (mine !== waitingFor) return;
    if (alive) goOn();
    else waitForServer(goOn, Math.min(LONGEST_SECONDS, seconds * 1.5));
  };
  notice('The server does not answer. The page goes on by itself as soon as it is back.', button('Try now', { text: 'Try now', class: 'link', onclick: again }));
  lookAgain = setTimeout(again, seconds * 1000);
}

export const isServerGone = () => waitingFor !== null;

/** It has answered. Gives whether it had been gone. */
export function serverIsBack() {
  const gone = waitingFor !== null;
  waitingFor = null;
  clearTimeout(lookAgain);
  return gone;
}

let busyText = null;

/** It asks us to wait for some seconds, or with 0 for no more. */
export function tellBusy(seconds) {
  if (seconds) notice((busyText = `The server is busy; asking again in ${Math.ceil(seconds)} s.`));
  else if (byId('notice').textContent === busyText) notice(null); // and nothing that was said later
}
