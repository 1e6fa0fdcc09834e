// Bundles the libraries of the page at `/`: `npm run build`, or `node build.mjs FILE` to write it elsewhere.
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const modules = JSON.parse(readFileSync(here("package.json"))).devDependencies;
const licence = (name) => readFileSync(here(`node_modules/${name}/LICENSE`), "utf8").trim();
const apache = "Cure53 and other contributors. Apache-2.0: the file LICENSE of Tailrace has its text.";
const notices = [
  `dompurify ${modules.dompurify}: ${apache}`,
  `highlight.js ${modules["highlight.js"]}\n\n${licence("highlight.js")}`,
  `marked ${modules.marked}\n\n${readFileSync(here("node_modules/marked/LICENSE"), "utf8").split("## Marked")[1].trim()}`,
];

await build({
  absWorkingDir: here("."),
  entryPoints: ["page/libraries.js"],
  outfile: process.argv[2] ?? here("../features/page/libraries.js"),
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  legalComments: "none",
  banner: { js: `/*! Built by web/build.mjs; do not edit.\n\n${notices.join("\n\n").replaceAll("*/", "* /")}\n*/` },
});
