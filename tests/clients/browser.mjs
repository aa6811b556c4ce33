// A headless Chromium with pages, driven by JSON lines: node browser.mjs CHROMIUM URL
//
// Each line of standard input is {"do": NAME, …}; each gets one line of standard output, {"ok": VALUE} or
// {"error": TEXT}. The first line out tells that the page is loaded. End of input ends the browser.
// {"do": "open", "page": NAME} opens a page as another reader would have it; "page" in a command says on which
// one, the first without.
import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const DEADLINE_MS = 15_000;
const OPERATED = new Set(
  "button checkbox combobox link listbox menuitem option radio searchbox slider spinbutton switch tab textbox".split(" "),
);
const LIFE_MS = 600_000; // a browser that a failed test forgot ends by itself
const [executablePath, url] = process.argv.slice(2);
const answer = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
let browser;

async function end(code) {
  await browser?.close().catch(() => undefined);
  process.exit(code);
}

setTimeout(() => end(1), LIFE_MS).unref();
process.on("SIGTERM", () => end(1));

const tabs = new Map();

class Tab {
  logged = [];
  requests = [];

  static async open(name, options) {
    const tab = new Tab();
    tab.context = await browser.newContext({ viewport: { width: 1200, height: 800 }, ...options });
    tab.page = await tab.context.newPage();
    tab.page.setDefaultTimeout(DEADLINE_MS);
    tab.page.on("console", (message) => tab.logged.push(`${message.type()}: ${message.text()}`));
    tab.page.on("pageerror", (error) => tab.logged.push(`error: ${error.message}`));
    tab.page.on("request", (request) => tab.requests.push(request.url()));
    tab.page.on("websocket", (socket) => tab.requests.push(socket.url()));
    await tabs.get(name)?.context.close();
    tabs.set(name, tab);
    return true;
  }
}

const commands = {
  // options as of a Playwright context: locale, colorScheme, viewport, …
  open: (_, { page, options }) => Tab.open(page, options),
  close: (tab, { page }) => tab.context.close().then(() => tabs.delete(page)),
  goto: ({ page }, { url }) => page.goto(url).then(() => true),
  // Runs in every document before its own scripts.
  init: ({ page }, { script }) => page.addInitScript(script).then(() => true),
  fill: ({ page }, { selector, value }) => page.fill(selector, value).then(() => true),
  click: ({ page }, { selector }) => page.click(selector).then(() => true),
  check: ({ page }, { selector }) => page.check(selector).then(() => true),
  select: ({ page }, { selector, value }) => page.selectOption(selector, value).then(() => true),
  press: ({ page }, { key }) => page.keyboard.press(key).then(() => true),
  type: ({ page }, { text }) => page.keyboard.type(text).then(() => true),
  // The texts of all elements, as a person sees them.
  texts: ({ page }, { selector }) => page.locator(selector).allInnerTexts(),
  count: ({ page }, { selector }) => page.locator(selector).count(),
  attribute: ({ page }, { selector, name }) => page.getAttribute(selector, name),
  // An expression in the page; the content security policy does not apply to it.
  evaluate: ({ page }, { expression }) => page.evaluate(expression),
  // The accessibility tree as text: roles and names.
  tree: ({ page }) => page.locator("body").ariaSnapshot(),
  // Role and name of everything that can be operated, as Chromium tells them to a screen reader.
  async controls({ page }) {
    const devtools = await page.context().newCDPSession(page);
    const { nodes } = await devtools.send("Accessibility.getFullAXTree");
    await devtools.detach();
    const operated = nodes.filter(({ ignored, role }) => !ignored && OPERATED.has(role?.value));
    return operated.map(({ role, name }) => [role.value, name?.value ?? ""]);
  },
  // What the rules of axe-core find: [rule, elements] each.
  async violations({ page }) {
    const source = await readFile(new URL("node_modules/axe-core/axe.min.js", import.meta.url), "utf8");
    await page.evaluate(source);
    const { violations } = await page.evaluate("axe.run()");
    return violations.map(({ id, nodes }) => [id, nodes.map(({ html, failureSummary }) => `${html} ${failureSummary}`)]);
  },
  // Everything the page wrote to its console since the last call, errors too.
  logged: (tab) => tab.logged.splice(0),
  // Every URL that the page asked for since the last call, WebSockets too.
  requests: (tab) => tab.requests.splice(0),
  resize: ({ page }, { width, height }) => page.setViewportSize({ width, height }).then(() => true),
  scheme: ({ page }, { scheme }) => page.emulateMedia({ colorScheme: scheme }).then(() => true),
  screenshot: ({ page }, { path }) => page.screenshot({ path, fullPage: true }).then(() => true),
};

try {
  browser = await chromium.launch({
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
  await Tab.open("first", {});
  await tabs.get("first").page.goto(url, { timeout: 60_000 });
  answer({ ok: true });
  for await (const line of createInterface({ input: process.stdin })) {
    try {
      const command = JSON.parse(line);
      const tab = tabs.get(command.page ?? "first");
      answer({ ok: (await commands[command.do](tab, command)) ?? null });
    } catch (error) {
      answer({ error: String(error.message) });
    }
  }
  await end(0);
} catch (error) {
  answer({ error: String(error.message) });
  await end(1);
}
