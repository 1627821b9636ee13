// An artist at the real frontend, played by headless Chromium: opens a workflow, runs it, cancels it
// in mid-optimisation, runs it again and looks at the video. Prints what was seen as one line of JSON.
//
//   node frontend.mjs PLAYWRIGHT_CORE CHROMIUM URL WORKFLOW SCREENSHOT
import { readFileSync } from "node:fs";
import { CALM, faultsOf, launch, outsideOf } from "./hand.mjs";

const [browser, url, workflow, screenshot] = await launch();
const graph = JSON.parse(readFileSync(workflow, "utf8"));
const types = [...new Set(graph.nodes.map((node) => node.type))];
const seen = {};

try {
  const page = await browser.newPage({ viewport: { width: 1900, height: 900 } });
  seen.faults = faultsOf(page);
  const outside = outsideOf(page);
  await page.goto(url);
  await page.waitForFunction(() => window.app?.graph && window.LiteGraph?.registered_node_types?.KSampler, null, { timeout: 120_000 });

  await page.waitForTimeout(CALM);
  const own = new Set(outside);
  await page.evaluate((graph) => window.app.loadGraphData(graph), graph);
  await page.waitForTimeout(1500);
  seen.missing = await page.evaluate((types) => types.filter((t) => !window.LiteGraph.registered_node_types[t]), types);
  seen.dialogs = await page.locator('[role="dialog"]:visible').allInnerTexts();
  seen.version = await page.evaluate(() => window.__COMFYUI_FRONTEND_VERSION__ ?? "unknown");
  seen.nodes = await page.evaluate(() => window.app.graph._nodes.map((node) => node.type));

  // Runs the graph; cancels when the bar of the first sampler that optimises reaches a value.
  const run = (cancelAt) => page.evaluate(async (cancelAt) => {
    const { app } = window;
    const result = { bar: [], texts: [] };
    let watched;
    const listening = [];
    const listen = (kind, act) => {
      const handler = ({ detail }) => act(detail);
      listening.push(() => app.api.removeEventListener(kind, handler));
      app.api.addEventListener(kind, handler);
    };
    const ended = new Promise((resolve) => {
      listen("progress", ({ node, value, max }) => {
        const sampler = app.graph.getNodeById(node);
        if (!/^(TTOM_(TTO|LoRA)|K)Sampler$/.test(sampler?.type)) return;
        const masks = sampler.findInputSlot("masks");
        if (masks >= 0 && !sampler.isInputConnected(masks)) return;
        watched ??= node; // of several, the one that begins
        if (node !== watched) return;
        result.bar.push([value, max]);
        if (cancelAt > 0 && value >= cancelAt && !result.cut) result.cut = app.api.interrupt() && true;
      });
      listen("progress_text", ({ text }) => result.texts.push(text));
      for (const end of ["execution_success", "execution_interrupted", "execution_error"]) {
        listen(end, (detail) => resolve([end, detail]));
      }
    });
    await app.queuePrompt(0, 1);
    const [end, detail] = await ended;
    for (const stop of listening) stop();
    return { ...result, end, message: detail?.exception_message ?? "" };
  }, cancelAt);

  // Another workflow may have had this very sampler: what ComfyUI remembers of it would leave nothing to cancel.
  await page.evaluate(() => window.app.api.fetchApi("/free", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ free_memory: true }),
  }));
  await page.waitForTimeout(1000);
  seen.cancelled = await run(3);
  seen.whole = await run(-1);

  if (seen.whole.end === "execution_success") seen.video = await watch(page);
  await page.waitForTimeout(1500);
  seen.outside = [...outside].filter((host) => !own.has(host));
  await page.screenshot({ path: screenshot });
} finally {
  await browser.close();
}
console.log(JSON.stringify(seen));

// The video of the first node that shows one: its size, length and how many values its pixels have.
async function watch(page) {
  await page.evaluate(() => window.app.canvas.draw(true, true));
  const video = page.locator("video").first();
  await video.waitFor({ state: "visible", timeout: 30_000 });
  await video.evaluate((v) => new Promise((resolve, reject) => {
    if (v.readyState >= 2) resolve();
    v.addEventListener("loadeddata", resolve);
    v.addEventListener("error", () => reject(v.error?.message ?? "the video does not load"));
  }));
  return video.evaluate((v) => {
    v.pause();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [v.videoWidth, v.videoHeight];
    const pen = canvas.getContext("2d");
    pen.drawImage(v, 0, 0);
    const pixels = pen.getImageData(0, 0, canvas.width, canvas.height).data;
    return { width: v.videoWidth, height: v.videoHeight, seconds: v.duration, colours: new Set(pixels).size };
  });
}
