// An artist mutes or bypasses nodes of a workflow and runs what is left. Prints as one line of JSON what was
// queued, how that ended, which kinds of nodes showed something, and faults of the pack's own.
//
//   node modes.mjs PLAYWRIGHT_CORE CHROMIUM URL WORKFLOW '{"TTOM_SoftMask": 2, …}' (2 muted, 4 bypassed)
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { faultsOf, open, run } from "./hand.mjs";

const [library, executablePath, url, workflow, modes] = process.argv.slice(2);
const { chromium } = createRequire(import.meta.url)(library);
const seen = {};

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
try {
  const page = await browser.newPage({ viewport: { width: 1500, height: 1000 } });
  page.setDefaultTimeout(180_000);
  seen.faults = faultsOf(page);
  await open(page, url, readFileSync(workflow, "utf8"));
  await page.evaluate((modes) => {
    for (const node of window.app.graph._nodes) node.mode = modes[node.type] ?? node.mode;
  }, JSON.parse(modes));
  seen.prompt = await page.evaluate(async () => (await window.app.graphToPrompt()).output);
  seen.run = await run(page);
  await page.waitForTimeout(1000);
  seen.shown = await page.evaluate(() => {
    const { app } = window;
    return Object.keys(app.nodeOutputs).map((id) => app.graph.getNodeById(id)?.type);
  });
} finally {
  await browser.close();
}
console.log(JSON.stringify(seen));
