// Prints the bytes of a script, minified and compressed: node size.mjs FILE
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const { outputFiles } = await build({ entryPoints: [process.argv[2]], minify: true, format: "esm", write: false });
console.log(gzipSync(outputFiles[0].contents, { level: 9 }).length);
