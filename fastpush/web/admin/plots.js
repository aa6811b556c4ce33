// The plots of the last hour: points by column, one time cursor for all, and each plot's figures as text.

import { $, bytes, clock, count, dateOf, duration, element, joined, lag, rate, setText } from "./dom.js";

const POINTS = 3600; // kept, one a second: the hour that the server keeps
const WORKERS = 256; // whose lags are kept; those that came last
const GAP_SECONDS = 3.5; // between points from which on there is a hole in the line
const LINES = 24; // of workers drawn; of more, the worst within the shown time
const HUES = 6; // colours of lines, in the style sheet
const TEXT_MS = 5000; // between two changes of the texts under the plots while a screen reader may read one
const HEIGHT = 150;
const TICKS = [60, 300, 600, 900, 1800, 3600]; // seconds between two times on the axis
const NEAR = 8; // pixels from a point on which the cursor is still on it
const AXIS = 60; // width of the numbers beside every plot, so that all plots are aligned
const RIGHT = 44; // … and of those on the right side
const EDGE = 18; // to the right of the others: half of the last time below

const orNone = (show) => (value) => (value === null || value === undefined ? "–" : show(value));
const plain = orNone(count);
const compact = new Intl.NumberFormat("en", { notation: "compact" });
const tick = (value) => (value >= 100_000 ? compact.format(value) : rate(value)); // beside an axis there is little room
const perSecond = orNone((value) => `${rate(value)}/s`);
const ms = orNone((value) => joined(duration(value)));
const size = orNone((value) => joined(bytes(value)));

// least: the end of the axis while there is little or nothing.  tick: shows a number beside the axis, where that is not
// what `show` does. Of each line: column, label ("" where there is but one),
// hue, and whether its numbers are on the right side.
const PLOTS = [
  { name: "connections", title: "Connections", least: 10, show: plain, tick, lines: [["connections", "", 0]] },
  {
    name: "rates",
    title: "Per second",
    least: 10,
    show: orNone(rate),
    tick,
    lines: [
      ["pushes", "pushes", 1, true],
      ["deliveries", "deliveries", 0],
    ],
  },
  {
    name: "latency",
    title: "Latency",
    least: 1,
    show: ms,
    lines: [
      ["p50", "p50", 0],
      ["p99", "p99", 1],
    ],
  },
  { name: "drops", title: "Drops", least: 10, show: perSecond, tick, lines: [["drops", "", 3]] },
  { name: "lag", title: "Worker lag", least: 1, show: orNone((value) => joined(lag(value))), lines: null },
  { name: "queue", title: "Queued", least: 1000, show: size, lines: [["queue", "", 2]] },
];
const COLUMNS = ["seconds", "connections", "pushes", "deliveries", "p50", "p99", "drops", "queue"];

/** The points of the last hour: arrays of equal length by column, and of each worker its lag. */
class Points {
  clear() {
    this.columns = Object.fromEntries(COLUMNS.map((name) => [name, []]));
    this.lags = new Map(); // worker -> milliseconds, as long as the columns
  }

  constructor() {
    this.clear();
  }

  get length() {
    return this.columns.seconds.length;
  }

  get last() {
    return this.columns.seconds[this.length - 1] ?? 0;
  }

  /** Take a Point of the server; one that is not newer than the last is left out. */
  add([seconds, connections, pushes, deliveries, p50, p99, drops, queue, lags]) {
    // The server's clock was put back: what it said before of times to come is gone.
    if (seconds < this.last - GAP_SECONDS) this.#cut(this.since(seconds));
    else if (this.length && seconds <= this.last) return;
    if (this.length && seconds - this.last > GAP_SECONDS) this.#append([this.last + 1, ...Array(7).fill(null)], []);
    this.#append([seconds, connections, pushes, deliveries, p50, p99, drops, queue], lags);
  }

  #append(values, lags) {
    const before = this.length;
    COLUMNS.forEach((name, at) => this.columns[name].push(values[at]));
    for (const [worker] of lags) {
      if (!this.lags.has(worker)) this.lags.set(worker, Array(before).fill(null));
    }
    for (const worker of [...this.lags.keys()].slice(0, -WORKERS)) this.lags.delete(worker);
    for (const column of this.lags.values()) column.push(null);
    for (const [worker, value] of lags) {
      if (this.lags.has(worker)) this.lags.get(worker)[before] = value;
    }
    if (this.length > POINTS) this.#forget();
  }

  #cut(length) {
    for (const column of [...Object.values(this.columns), ...this.lags.values()]) column.length = length;
  }

  #forget() {
    for (const name of COLUMNS) this.columns[name].shift();
    for (const [worker, column] of this.lags) {
      column.shift();
      if (column.every((value) => value === null)) this.lags.delete(worker);
    }
  }

  /** Index of the first point at or after this time. */
  since(seconds) {
    const { seconds: all } = this.columns;
    let [low, high] = [0, all.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (all[middle] < seconds) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/** Least, greatest and last number of a column from an index on; nulls where there is none. */
function extremes(column, from) {
  let [min, max] = [null, null];
  for (let at = from; at < column.length; at++) {
    const value = column[at];
    if (value === null) continue;
    if (min === null || value < min) min = value;
    if (max === null || value > max) max = value;
  }
  return { min, max, now: column[column.length - 1] ?? null };
}

/** The end of an axis from 0 that holds `max`: a round number, so that it seldom changes. */
function roundUp(max, least) {
  const value = Math.max(max * 1.05, least);
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((step) => step * power >= value) * power;
}

/** Points that have no neighbour, which a line would not show. */
function alone(plot, series, first, last) {
  const column = plot.data[series];
  const found = [];
  for (let at = first; at <= last; at++) {
    if (column[at] !== null && (column[at - 1] ?? null) === null && (column[at + 1] ?? null) === null) found.push(at);
  }
  return found;
}

/** A line as uPlot draws it; beyond the colours that there are, dashed. */
function series([label, hue, , isRight]) {
  const stroke = () => colours.hues[hue % HUES];
  const points = { show: true, size: 4, filter: alone, fill: stroke };
  return { label, scale: isRight ? "right" : "y", stroke, width: 1.5, dash: hue < HUES ? undefined : [6, 3], points };
}

/** The point that a cursor is on: null where the next one is far, before the first or in a gap. */
function near(plot, at) {
  if (at === null || at === undefined) return null;
  const away = Math.abs(plot.valToPos(plot.data[0][at], "x") - plot.cursor.left);
  return away <= NEAR ? at : null;
}

let colours = {};

function readColours() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  colours = {
    soft: read("--soft"),
    grid: read("--grid"),
    hues: [...Array(HUES).keys()].map((hue) => read(`--hue-${hue}`)),
  };
}

/** One card: title, the numbers of now or under the cursor, the plot, its text. */
class Card {
  constructor(about, board) {
    this.about = about;
    this.board = board;
    this.workers = [];
    this.plot = null;
    this.values = element("p", { class: "values", "aria-hidden": "true" });
    this.text = element("figcaption", { id: `text-${about.name}` });
    this.box = element("div", {
      class: "plot",
      tabindex: "0",
      role: "img",
      "aria-labelledby": `title-${about.name} text-${about.name}`,
    });
    this.tip = element("div", { class: "tip", hidden: true, "aria-hidden": "true" });
    this.root = element(
      "figure",
      { class: about.lines?.length > 1 ? "card several" : "card", id: `plot-${about.name}` },
      element("div", { class: "card-head" }, element("h3", { id: `title-${about.name}` }, about.title), this.values),
      element("div", { class: "plot-frame" }, this.box, this.tip),
      this.text,
    );
    this.box.addEventListener("keydown", (event) => this.#onKey(event));
    this.box.addEventListener("blur", () => board.point(null));
  }

  /** What is drawn: [label, hue, column, is on the right side] each. */
  lines() {
    const { points } = this.board;
    if (this.about.lines)
      return this.about.lines.map(([name, label, hue, right]) => [label, hue, points.columns[name], right]);
    return this.workers.map((worker, at) => [`worker-${worker}`, at, points.lags.get(worker) ?? []]);
  }

  #pickWorkers(from) {
    const { lags } = this.board.points;
    const shown = [...lags]
      .map(([worker, column]) => [worker, extremes(column, from).max])
      .filter(([, max]) => max !== null);
    if (shown.length > LINES) shown.sort((a, b) => b[1] - a[1]);
    return shown
      .slice(0, LINES)
      .map(([worker]) => worker)
      .sort((a, b) => a - b);
  }

  draw(min, max) {
    const { points } = this.board;
    const from = points.since(min);
    if (!this.about.lines) {
      const workers = this.#pickWorkers(from);
      if (workers.join() !== this.workers.join()) {
        this.workers = workers;
        this.plot?.destroy();
        this.plot = null;
      }
    }
    const lines = this.lines();
    const top = (side) =>
      roundUp(
        Math.max(
          0,
          ...lines
            .filter(([, , , right]) => Boolean(right) === side)
            .map(([, , column]) => extremes(column, from).max ?? 0),
        ),
        this.about.least,
      );
    this.tops = [top(false), top(true)];
    this.range = [min, max];
    const data = [points.columns.seconds, ...lines.map(([, , column]) => column)];
    if (this.plot) this.plot.setData(data);
    else if (this.box.clientWidth) this.#make(data);
    this.readOut();
  }

  #make(data) {
    const { board } = this;
    const lines = this.lines();
    const right = lines.find(([, , , isRight]) => isRight);
    const axis = { font: "11px system-ui, sans-serif", ticks: { show: false }, gap: 6, space: 32 };
    const numbers = {
      ...axis,
      values: (_, splits) =>
        splits.map((at) =>
          (this.about.tick ?? this.about.show)(at)
            .replace("/s", "")
            .replace(/(\.\d*?)0+(?!\d)/, "$1")
            .replace(/\.(?!\d)/, ""),
        ),
    };
    const ink = (line) => (right ? () => colours.hues[line[1] % HUES] : () => colours.soft);
    const time = (_, splits) => splits.map((at) => clock(at).slice(0, 5));
    const axes = [
      {
        ...axis,
        stroke: () => colours.soft,
        grid: { show: false },
        size: 22,
        gap: 4,
        space: 48,
        incrs: TICKS,
        values: time,
      },
      {
        ...numbers,
        stroke: ink(lines.find((line) => line !== right)),
        grid: { stroke: () => colours.grid, width: 1 },
        size: AXIS,
      },
    ];
    if (right)
      axes.push({ ...numbers, scale: "right", side: 1, stroke: ink(right), grid: { show: false }, size: RIGHT });
    this.plot = new window.uPlot(
      {
        width: this.box.clientWidth,
        height: HEIGHT,
        padding: [8, right ? 0 : EDGE, 0, 0],
        legend: { show: false },
        tzDate: dateOf,
        cursor: {
          y: false,
          drag: { x: false, y: false },
          points: { size: 6 },
          dataIdx: (plot, _, at) => near(plot, at),
          sync: { key: "hour", scales: ["x", null], setSeries: false },
        },
        scales: {
          x: { range: () => this.range },
          y: { range: () => [0, this.tops[0]] },
          right: { range: () => [0, this.tops[1]] },
        },
        axes,
        series: [{}, ...lines.map(series)],
        hooks: {
          setCursor: [
            ({ over, cursor }) => board.onPointer(this, over.matches(":hover") ? near(this.plot, cursor.idx) : null),
          ],
        },
      },
      data,
      this.box,
    );
  }

  resize() {
    const width = this.box.clientWidth;
    if (width && this.plot && this.plot.width !== width) this.plot.setSize({ width, height: HEIGHT });
  }

  /** Show the numbers under the cursor, else those of now. */
  readOut() {
    const { at } = this.board;
    const lines = this.lines().map(([label, hue, column]) => [label, hue, column[at ?? column.length - 1] ?? null]);
    const { show } = this.about;
    if (this.about.lines) this.#showValues(lines.map(([label, hue, value]) => [label, hue, show(value)]));
    else {
      const worst = lines.reduce((a, b) => ((b[2] ?? -1) > (a?.[2] ?? -1) ? b : a), null);
      this.#showValues(worst && worst[2] !== null ? [[`worst, ${worst[0]}`, worst[1], show(worst[2])]] : []);
    }
    this.#showTip(at, lines);
  }

  #showValues(values) {
    while (this.values.children.length > values.length) this.values.lastChild.remove();
    values.forEach(([label, hue, text], at) => {
      const made =
        this.values.children[at] ?? this.values.appendChild(element("span", {}, element("span"), element("b")));
      made.dataset.hue = hue % HUES;
      made.classList.toggle("named", label !== "");
      setText(made.firstChild, label);
      setText(made.lastChild, text);
    });
  }

  /** A small box beside the cursor, only where the pointer is. */
  #showTip(at, lines) {
    const shown = at !== null && this.box.matches(":hover, :focus-visible");
    this.tip.hidden = !shown;
    if (!shown) return;
    const { left } = this.plot.cursor;
    const rows = lines
      .filter(([, , value]) => value !== null)
      .map(([label, hue, value]) =>
        element(
          "span",
          { "data-hue": hue % HUES, class: "named" },
          element("span", {}, label || this.about.title),
          element("b", {}, this.about.show(value)),
        ),
      );
    this.tip.replaceChildren(element("span", { class: "when" }, clock(this.board.points.columns.seconds[at])), ...rows);
    const onRight = left + AXIS > this.box.clientWidth / 2;
    this.tip.style.left = onRight ? "" : `${left + AXIS + 12}px`;
    this.tip.style.right = onRight ? `${this.box.clientWidth - left - AXIS + 12}px` : "";
  }

  #onKey(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -60, PageDown: 60, Home: -Infinity, End: Infinity };
    if (event.key === "Escape") this.board.point(null);
    else if (event.key in steps) {
      event.preventDefault();
      this.board.step(steps[event.key]);
    }
  }

  /** Say under the plot what it shows: now, least and most within the shown time. */
  describe(from, period) {
    const parts = this.lines().map(([label, , column]) => {
      const { min, max, now } = extremes(column, from);
      const { show } = this.about;
      if (min === null) return `${label && `${label} `}none`;
      return `${label && `${label} `}now ${show(now)}, min ${show(min)}, max ${show(max)}`;
    });
    const known = this.about.lines ? parts : this.#describeWorkers(from);
    setText(this.text, known.length ? `${[...known, period].join("; ")}` : "No figures yet");
  }

  #describeWorkers(from) {
    const worst = this.lines().map(([label, , column]) => ({ label, ...extremes(column, from) }));
    if (!worst.length) return [];
    const { show } = this.about;
    const now = Math.max(...worst.map(({ now }) => now ?? 0));
    const most = worst.reduce((a, b) => (b.max > a.max ? b : a));
    const left = this.board.points.lags.size - worst.length;
    const not = left > 0 && worst.length === LINES ? `; ${left} more not drawn` : "";
    return [`worst now ${show(now)}, max ${show(most.max)} (${most.label})${not}`];
  }
}

/** All plots, over one range of time. */
export class Board {
  points = new Points();
  #cards;
  #seconds = 900;
  #described = 0;
  #due = false;
  #cursor = null; // seconds; null: nowhere
  #pointed = null; // the card that the pointer is on; null: the cursor was put there by keys

  constructor(root) {
    readColours();
    this.#cards = PLOTS.map((about) => new Card(about, this));
    root.append(...this.#cards.map((card) => card.root));
    new ResizeObserver(() => {
      for (const card of this.#cards) card.resize();
      this.draw();
    }).observe(root);
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      readColours();
      for (const card of this.#cards) card.plot?.redraw(false, true);
    });
    document.addEventListener("visibilitychange", () => this.draw());
  }

  /** Replace all points. */
  replace(points) {
    this.points.clear();
    for (const point of points) this.points.add(point);
    this.#described = 0;
    this.draw();
  }

  add(point) {
    this.points.add(point);
    this.draw();
  }

  /** Show the last `seconds`. */
  setRange(seconds) {
    this.#seconds = seconds;
    this.#described = 0;
    this.draw();
  }

  /** Draw with the next frame, once, if anybody can see it. */
  draw() {
    if (this.#due || document.hidden || $("view-overview").hidden) return;
    this.#due = true;
    requestAnimationFrame(() => {
      this.#due = false;
      this.#draw();
    });
  }

  #draw() {
    const max = this.points.last || Date.now() / 1000;
    const min = max - this.#seconds;
    for (const card of this.#cards) card.draw(min, max);
    if (this.#cursor !== null && !this.#pointed) this.#place();
    const isRead = this.#cards.some(({ box }) => box === document.activeElement);
    if (isRead && this.#described && performance.now() - this.#described < TEXT_MS) return;
    this.#described = performance.now();
    const period = this.#seconds === 3600 ? "1 h" : `${this.#seconds / 60} min`;
    for (const card of this.#cards) card.describe(this.points.since(min), period);
  }

  // -- The cursor: one time for all plots

  /** Index of the point under the cursor, or null. */
  get at() {
    return this.#cursor === null || !this.points.length
      ? null
      : Math.min(this.points.since(this.#cursor), this.points.length - 1);
  }

  /** The pointer is on a point of a card; null: it is not on this card. */
  onPointer(card, at) {
    if (at === null && this.#pointed !== card) return;
    this.#pointed = at === null ? null : card;
    this.#setCursor(at);
  }

  /** Move the cursor by points, from the last one where it is nowhere. */
  step(by) {
    const first = this.points.since(this.points.last - this.#seconds);
    const at = (this.at ?? this.points.length) + by;
    if (this.points.length) this.point(Math.min(this.points.length - 1, Math.max(first, at)));
  }

  /** Put the cursor of every plot on a point; null: nowhere. */
  point(at) {
    this.#pointed = null;
    this.#setCursor(at);
    this.#place();
  }

  #setCursor(at) {
    this.#cursor = at === null ? null : this.points.columns.seconds[at];
    setText($("cursor-time"), at === null ? "" : `at ${clock(this.#cursor)}`);
    for (const card of this.#cards) card.readOut();
  }

  /** A cursor that keys have put there stays with its time when the plots move on. */
  #place() {
    for (const { plot } of this.#cards) {
      const left = this.#cursor === null ? -10 : plot?.valToPos(this.#cursor, "x");
      plot?.setCursor({ left, top: this.#cursor === null ? -10 : 1 });
    }
  }
}
