// Uses the page in Firefox, as a person would, and prints what was seen, as JSON:
//     node firefox.mjs ADDRESS BROWSER SECONDS '["id", …]'
// The ids are those of the pictures that "cat" must show first.
// Firefox is driven by puppeteer-core over WebDriver BiDi, which Firefox speaks as it comes.
import puppeteer from 'puppeteer-core';

const [address, executablePath, seconds, cat] = process.argv.slice(2);
const timeout = 1000 * Number(seconds);
const seen = { mistakes: [] };
const browser = await puppeteer.launch({ browser: 'firefox', executablePath, headless: true, timeout });
try {
  seen.browser = await browser.version();
  const page = await browser.newPage();
  page.setDefaultTimeout(timeout);
  page.on('pageerror', error => seen.mistakes.push(error.message));
  page.on('console', said => said.type() === 'error' && seen.mistakes.push(said.text()));
  await page.setViewport({ width: 1100, height: 720 });

  // to be so, looked at again and again
  const until = async (what, ...given) => {
    const end = Date.now() + timeout;
    for (;;) {
      const found = await page.evaluate(what, ...given);
      if (found) return found;
      if (Date.now() > end) throw new Error(`not within ${seconds} s: ${what}`);
      await new Promise(done => setTimeout(done, 50));
    }
  };
  const settled = () => until(() => !document.querySelector('#grid').matches('[aria-busy=true]')
    && !!document.querySelector('.tile[data-id]'));

  await page.goto(`${address}#pictures?table=emoji`);
  await settled();
  await page.click('#words');
  await page.keyboard.type('cat');
  await until(ids => location.hash.includes('q=cat') && !!document.querySelector('.tile.loaded')
    && ids.every((id, i) => document.querySelectorAll('.tile[data-id]')[i]?.dataset.id === id), JSON.parse(cat));
  await settled();

  // by keys alone: the first picture, its details, the next one, and back
  await page.focus('.tile[data-id] .open');
  await page.keyboard.press('Enter');
  await until(() => !!document.querySelector('.details-words h2'));
  seen.first = new URLSearchParams(new URL(page.url()).hash.split('?')[1]).get('row');
  await page.keyboard.press('ArrowRight');
  await until(first => new URLSearchParams(location.hash.split('?')[1]).get('row') !== first, seen.first);
  seen.second = new URLSearchParams(new URL(page.url()).hash.split('?')[1]).get('row');
  await page.keyboard.press('Escape');
  await until(() => !document.querySelector('.details-words h2'));

  // picked by a key, and taken back
  await page.focus('.tile[data-id] .open');
  await page.keyboard.press('x');
  await until(() => document.querySelector('#tray')?.checkVisibility());
  seen.tray = await page.$eval('#tray', tray => tray.innerText);
  await page.keyboard.press('x');
  await until(() => !document.querySelector('#tray')?.checkVisibility());

  // SQL: a statement, its table, and an error
  await page.goto(`${address}#sql?table=emoji&sql=SELECT+caption+FROM+emoji+ORDER+BY+caption+LIMIT+3`);
  await until(() => document.querySelector('.sql-editor')?.checkVisibility());
  const run = async wanted => {
    await page.$$eval('button', all => all.find(one => one.innerText.trim() === 'Run').click());
    await until(wanted);
  };
  await run(() => document.querySelectorAll('.sql-table tbody tr').length === 3);
  seen.rows = await page.$$eval('.sql-table tbody tr', all => all.map(row => row.innerText.trim()));

  // the map draws its points
  await page.goto(`${address}#map?table=emoji&q=cat`);
  await until(() => document.querySelector('#view-map, .map')?.checkVisibility() && !!document.querySelector('canvas'));
  seen.map = await until(() => document.querySelector('canvas').width > 0 && document.querySelector('canvas').width);

  // on a phone nothing is wider than the screen
  await page.setViewport({ width: 390, height: 800 });
  await page.goto(`${address}#pictures?table=emoji&q=heart`);
  await settled();
  seen.wider = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
} catch (error) {
  seen.failed = String(error.stack ?? error);
} finally {
  await browser.close();
}
console.log(JSON.stringify(seen));
