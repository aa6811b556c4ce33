// A headless Chromium on one page, driven by JSON lines: node browser.mjs CHROMIUM URL
//
// Each line of standard input is {"do": NAME, …}; each gets one line of standard output, {"ok": VALUE} or
// {"error": TEXT}. The first line out tells that the page is loaded. End of input ends the browser.
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const DEADLINE_MS = 15_000;
const LIFE_MS = 600_000; // a browser that a failed test forgot ends by itself
const [executablePath, url] = process.argv.slice(2);
const folder = await mkdtemp(join(tmpdir(), "fastpush-chromium-"));
const answer = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
let context;

async function end(code) {
  await context?.close().catch(() => undefined);
  await rm(folder, { recursive: true, force: true, maxRetries: 5 });
  process.exit(code);
}

setTimeout(() => end(1), LIFE_MS).unref();
process.on("SIGTERM", () => end(1));

const logged = [];
let page;

const commands = {
  goto: ({ url }) => page.goto(url).then(() => true),
  fill: ({ selector, value }) => page.fill(selector, value).then(() => true),
  click: ({ selector }) => page.click(selector).then(() => true),
  check: ({ selector }) => page.check(selector).then(() => true),
  press: ({ key }) => page.keyboard.press(key).then(() => true),
  // The texts of all elements, as a person sees them.
  texts: ({ selector }) => page.locator(selector).allInnerTexts(),
  count: ({ selector }) => page.locator(selector).count(),
  attribute: ({ selector, name }) => page.getAttribute(selector, name),
  // An expression in the page; the content security policy does not apply to it.
  evaluate: ({ expression }) => page.evaluate(expression),
  // The accessibility tree as text: roles and names.
  tree: () => page.locator("body").ariaSnapshot(),
  // Everything the page wrote to its console since the last call, errors too.
  logged: () => logged.splice(0),
  resize: ({ width, height }) => page.setViewportSize({ width, height }).then(() => true),
  scheme: ({ scheme }) => page.emulateMedia({ colorScheme: scheme }).then(() => true),
  screenshot: ({ path }) => page.screenshot({ path, fullPage: true }).then(() => true),
};

try {
  context = await chromium.launchPersistentContext(folder, {
    executablePath,
    headless: true,
    timeout: 60_000,
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
  page = context.pages()[0] ?? (await context.newPage());
  page.setDefaultTimeout(DEADLINE_MS);
  page.on("console", (message) => logged.push(`${message.type()}: ${message.text()}`));
  page.on("pageerror", (error) => logged.push(`error: ${error.message}`));
  await page.goto(url, { timeout: 60_000 });
  answer({ ok: true });
  for await (const line of createInterface({ input: process.stdin })) {
    try {
      const command = JSON.parse(line);
      answer({ ok: (await commands[command.do](command)) ?? null });
    } catch (error) {
      answer({ error: String(error.message) });
    }
  }
  await end(0);
} catch (error) {
  answer({ error: String(error.message) });
  await end(1);
}
