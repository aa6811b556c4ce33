// npm's centrifuge in Node, driven by JSON lines: node centrifuge_node.mjs URL
//
// Lines of standard input are commands, those of standard output answers and events: see centrifuge_commands.mjs.
// The first line out is the event "started".
import { createInterface } from "node:readline";
import { Centrifuge } from "centrifuge";
import ws from "ws";
import { converse } from "./centrifuge_commands.mjs";

const [url] = process.argv.slice(2);
const tell = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const command = converse(Centrifuge, ws, url, tell);
tell({ event: "started" });
for await (const line of createInterface({ input: process.stdin })) command(JSON.parse(line));
process.exit(0);
