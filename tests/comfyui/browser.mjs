// Somebody at the memory browser, played by headless Chromium: opens the sidebar, searches, pins, deletes,
// takes that back, and drops a pack. Prints what was seen as one line of JSON.
//
//   node browser.mjs PLAYWRIGHT_CORE CHROMIUM URL SCREENSHOT MEMORY PACK
import { readFileSync } from "node:fs";
import { CALM, faultsOf, launch, outsideOf } from "./hand.mjs";

const seen = {};

const [browser, url, screenshot, memory, pack] = await launch();
try {
  const page = await browser.newPage({ viewport: { width: 1500, height: 900 } });
  seen.faults = faultsOf(page);
  const outside = outsideOf(page);
  await page.goto(url);
  await page.waitForFunction(() => window.app?.graph && window.LiteGraph?.registered_node_types?.KSampler, null, { timeout: 120_000 });
  await page.waitForTimeout(CALM);
  const own = new Set(outside);

  // A class in older frontends, a test id in newer ones.
  await page.locator(".ttom-memory-tab-button, [data-testid=ttom-memory-tab-button]").click({ timeout: 60_000 });
  const panel = page.locator(".ttom-browser");
  await panel.waitFor({ state: "visible", timeout: 60_000 });
  await panel.locator(`option[value="${memory}"]`).waitFor({ state: "attached", timeout: 60_000 });
  await panel.getByLabel("Memory", { exact: true }).selectOption(memory);

  const rows = panel.locator(".ttom-entry");
  const settled = (count) => page.waitForFunction(
    (count) => document.querySelectorAll(".ttom-entry").length === count, count, { timeout: 60_000 },
  );
  await settled(3);
  seen.prompts = await rows.locator(".ttom-said > div:first-child").allInnerTexts();
  seen.markup = await panel.locator(".ttom-said b").count();
  seen.drawn = await rows.first().locator("canvas").evaluate((canvas) =>
    canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value > 0));
  seen.warning = await panel.locator(".ttom-warning").innerText();
  await page.screenshot({ path: screenshot });

  await panel.getByLabel("Search").fill("blue");
  await settled(1);
  seen.searched = await rows.locator(".ttom-said > div:first-child").allInnerTexts();
  await panel.getByLabel("Search").fill("");
  await settled(3);

  await rows.first().getByLabel("Pin: never makes room for others").click();
  await panel.locator('[aria-pressed="true"]').waitFor({ timeout: 60_000 });
  await panel.getByLabel("Show", { exact: true }).selectOption("pinned");
  await settled(1);
  await panel.getByLabel("Show", { exact: true }).selectOption("all");
  await settled(3);

  await rows.first().getByLabel("Delete; undo brings it back").click();
  await settled(2);
  await panel.getByLabel("Take the last change back").click();
  await settled(3);

  const [download] = await Promise.all([
    page.waitForEvent("download"), panel.getByLabel("Export what is shown as a pack").click(),
  ]);
  seen.exported = [download.suggestedFilename(), readFileSync(await download.path()).subarray(0, 2).toString()];

  seen.dragged = await rows.first().evaluate(async (row) => {
    const transfer = new DataTransfer();
    row.dispatchEvent(new DragEvent("dragstart", { dataTransfer: transfer }));
    const [, type, name, address] = /^(.*?):(.*?):(.*)$/.exec(transfer.getData("DownloadURL"));
    return [type, name, (await (await fetch(address)).text()).slice(0, 2)];
  });

  const bytes = readFileSync(pack).toString("base64");
  const transfer = await page.evaluateHandle((bytes) => {
    const file = new File([Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0))], "given.ttompack");
    const transfer = new DataTransfer();
    transfer.items.add(file);
    return transfer;
  }, bytes);
  await panel.dispatchEvent("drop", { dataTransfer: transfer });
  await settled(4);
  seen.outside = [...outside].filter((host) => !own.has(host));
  seen.notice = await panel.locator(".ttom-notice").innerText();
} finally {
  await browser.close();
}
console.log(JSON.stringify(seen));
