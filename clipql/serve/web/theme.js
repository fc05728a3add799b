/* Runs before anything is painted, so that a page kept dark never flashes white; hence no module. */
(function () {
  'use strict';
  try {
    const kept = localStorage.getItem('clipql:theme');
    if (kept === 'light' || kept === 'dark') document.documentElement.dataset.theme = kept;
  } catch {
    // storage may be forbidden; the system's own choice is then what counts
  }
})();
