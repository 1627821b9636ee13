// An artist mutes or bypasses nodes of a workflow and runs what is left. Prints as one line of JSON what was
// queued, how that ended, which kinds of nodes showed something, and faults of the pack's own.
//
//   node modes.mjs PLAYWRIGHT_CORE CHROMIUM URL WORKFLOW '{"TTOM_SoftMask": 2, …}' (2 muted, 4 bypassed)
import { readFileSync } from "node:fs";
import { faultsOf, launch, open, run } from "./hand.mjs";

const seen = {};

const [browser, url, workflow, modes] = await launch();
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
