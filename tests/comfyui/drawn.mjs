// An artist opens a workflow with a layout editor, draws two objects in it, saves, opens that in a new page
// and runs it. Prints as one line of JSON what was drawn, what was queued and how that ended.
//
//   node drawn.mjs PLAYWRIGHT_CORE CHROMIUM URL WORKFLOW SCREENSHOT
import { readFileSync } from "node:fs";
import { drag, launch, open, run, scrub } from "./hand.mjs";

const seen = {};

const [browser, url, workflow, screenshot] = await launch();
try {
  const page = await browser.newPage({ viewport: { width: 1500, height: 1000 } });
  page.setDefaultTimeout(180_000);
  page.on("dialog", (dialog) => dialog.accept()); // leaving unsaved work is what is meant here
  await open(page, url, readFileSync(workflow, "utf8"));
  await page.evaluate(() => {
    const { app } = window;
    const editor = app.graph._nodes.find((node) => node.type === "TTOM_LayoutEditor");
    editor.widgets.find((widget) => widget.name === "drawn").value = "";
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [420 - editor.pos[0], 110 - editor.pos[1]];
    app.canvas.setDirty(true, true);
  });
  await page.waitForTimeout(1500);

  // A circle that crosses the upper half, and a square at rest below.
  await drag(page, [0.06, 0.1], [0.31, 0.35]);
  await named(page, "red circle");
  await scrub(page, 1);
  await drag(page, [0.18, 0.22], [0.81, 0.22]);
  await scrub(page, 0);
  await page.keyboard.press("Escape");
  await drag(page, [0.37, 0.62], [0.63, 0.88]);
  await named(page, "blue square");
  seen.drawn = await value(page);
  await page.screenshot({ path: screenshot });

  const saved = await page.evaluate(() => JSON.stringify(window.app.graph.serialize()));
  await open(page, url, saved);
  seen.reloaded = await value(page);
  seen.prompt = await page.evaluate(async () => (await window.app.graphToPrompt()).output);
  seen.run = await run(page);
} finally {
  await browser.close();
}
console.log(JSON.stringify(seen));

// Names the object that was just drawn.
async function named(page, name) {
  await page.keyboard.press("F2");
  await page.keyboard.type(name);
  await page.keyboard.press("Enter");
}

function value(page) {
  return page.evaluate(() => {
    const editor = window.app.graph._nodes.find((node) => node.type === "TTOM_LayoutEditor");
    return editor.widgets.find((widget) => widget.name === "drawn").value;
  });
}
