// An artist with a workflow in two tabs, another prompt in each, who starts both at once. Prints as one line of
// JSON what each tab was told: how its run ended, the moves of its bar, and the video it shows.
//
//   node tabs.mjs PLAYWRIGHT_CORE CHROMIUM URL WORKFLOW PROMPT PROMPT
import { readFileSync } from "node:fs";
import { launch, open, run } from "./hand.mjs";

const [browser, url, workflow, ...prompts] = await launch();
try {
  const context = await browser.newContext({ viewport: { width: 1500, height: 1000 } });
  context.setDefaultTimeout(180_000);
  const tabs = [];
  for (const prompt of prompts) {
    const page = await context.newPage();
    await open(page, url, readFileSync(workflow, "utf8"));
    await page.evaluate((prompt) => {
      const { app } = window;
      const plan = app.graph._nodes.find(({ type }) => type === "TTOM_LayoutPlanner");
      plan.widgets.find(({ name }) => name === "prompt").value = prompt;
      window.bars = new Set();
      app.api.addEventListener("progress", ({ detail }) => window.bars.add(detail.prompt_id));
    }, prompt);
    tabs.push(page);
  }
  const ends = await Promise.all(tabs.map(run));
  const seen = await Promise.all(tabs.map((page) => page.evaluate(() => {
    const { app } = window;
    const film = app.graph._nodes.find(({ type }) => type === "SaveVideo");
    return { runs: [...window.bars], film: app.nodeOutputs[film.id]?.images?.[0] };
  })));
  console.log(JSON.stringify(seen.map((one, n) => ({ ...one, end: ends[n] }))));
} finally {
  await browser.close();
}
