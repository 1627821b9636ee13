// An artist's hand in a page of the frontend: opens a workflow, draws in its layout editor, runs it.

import { createRequire } from "node:module";

const PAD = 12; // left and right of the tracks, as in web/editor/tracks.js

const OURS = /\/(extensions\/[^/]*ttom|ttom\/)/i; // the pack's files and its server's addresses

// A headless browser and the script's own words, after `PLAYWRIGHT_CORE CHROMIUM` on its command line.
export async function launch() {
  const [library, executablePath, ...words] = process.argv.slice(2);
  const { chromium } = createRequire(import.meta.url)(library);
  return [await chromium.launch({ executablePath, args: ["--no-sandbox"] }), ...words];
}

// Collects what a page complains of in our files; ComfyUI's own faults are not ours.
export function faultsOf(page) {
  const faults = [];
  page.on("pageerror", (error) => OURS.test(error.stack) && faults.push(error.stack));
  page.on("console", (message) => {
    const place = message.location().url;
    if (["error", "warning"].includes(message.type()) && OURS.test(place)) faults.push(`${place}: ${message.text()}`);
  });
  return faults;
}

// Milliseconds after which ComfyUI itself has asked others all that it asks them as it starts.
export const CALM = 3000;

// Collects the hosts other than ComfyUI's that a page asks anything of.
export function outsideOf(page) {
  const hosts = new Set();
  page.on("request", (request) => {
    const { protocol, hostname } = new URL(request.url());
    if (/^(http|ws)s?:$/.test(protocol) && hostname !== "127.0.0.1") hosts.add(hostname);
  });
  return hosts;
}

// A workflow, as the text of its file, in a page that is loaded anew.
export async function open(page, url, workflow) {
  await page.goto(url);
  await page.waitForFunction(() => window.app?.graph && window.LiteGraph?.registered_node_types?.TTOM_LayoutEditor);
  await page.waitForTimeout(1000);
  await page.evaluate((graph) => window.app.loadGraphData(JSON.parse(graph)), workflow);
  await page.waitForTimeout(1500);
}

// From one point of the video's canvas to another, both in shares of it.
export async function drag(page, from, to) {
  const { x, y, width, height } = await page.locator(".ttom-stage").boundingBox();
  const side = Math.min(width, height) - 20; // the canvas is square, with a margin of 10
  const at = ([across, down]) => [x + (width - side) / 2 + across * side, y + (height - side) / 2 + down * side];
  await page.mouse.move(...at(from));
  await page.mouse.down();
  for (const part of [0.3, 0.7, 1]) await page.mouse.move(...at(from.map((start, i) => start + part * (to[i] - start))));
  await page.mouse.up();
}

export async function scrub(page, time) {
  const { x, y, width, height } = await page.locator(".ttom-ruler").boundingBox();
  await page.mouse.click(x + PAD + time * (width - 2 * PAD), y + height / 2);
}

// Along the track of an object, from one time to another.
export async function dragTrack(page, row, from, to) {
  const { x, y, width } = await page.locator(".ttom-tracks").boundingBox();
  const at = (time) => [x + PAD + time * (width - 2 * PAD), y + 24 * row + 12];
  await page.mouse.move(...at(from));
  await page.mouse.down();
  for (const part of [0.5, 1]) await page.mouse.move(...at(from + part * (to - from)));
  await page.mouse.up();
}

export async function field(page, name, text) {
  await page.locator(`[data-field="${name}"]`).fill(text);
  await page.keyboard.press("Enter");
}

// How a run of the graph ended.
export function run(page) {
  return page.evaluate(async () => {
    const { app } = window;
    const ended = new Promise((resolve) => {
      for (const end of ["execution_success", "execution_interrupted", "execution_error"]) {
        app.api.addEventListener(end, () => resolve(end), { once: true });
      }
    });
    await app.queuePrompt(0, 1);
    return ended;
  });
}
