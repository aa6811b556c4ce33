// npm's centrifuge in Node, driven by JSON lines: node centrifuge_node.mjs URL OPTIONS
//
// Lines of standard input are commands, those of standard output answers and events: see centrifuge_commands.mjs.
import { createInterface } from "node:readline";
import { Centrifuge } from "centrifuge";
import ws from "ws";
import { converse } from "./centrifuge_commands.mjs";

const [url, options] = process.argv.slice(2);
const tell = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const command = converse(Centrifuge, ws, url, JSON.parse(options), tell);
for await (const line of createInterface({ input: process.stdin })) command(JSON.parse(line));
process.exit(0);
