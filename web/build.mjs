// Bundles the libraries of the page at `/`: `npm run build`, or `node build.mjs FOLDER` to write them elsewhere.
import { join } from "node:path";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const modules = JSON.parse(readFileSync(here("package.json"))).devDependencies;
const licence = (name) => readFileSync(here(`node_modules/${name}/LICENSE`), "utf8").trim();
const apache = "Cure53 and other contributors. Apache-2.0: the file LICENSE of Tailrace has its text.";
const page = {
  libraries: [
    `dompurify ${modules.dompurify}: ${apache}`,
    `highlight.js ${modules["highlight.js"]}\n\n${licence("highlight.js")}`,
    `marked ${modules.marked}\n\n${readFileSync(here("node_modules/marked/LICENSE"), "utf8").split("## Marked")[1].trim()}`,
  ],
  math: [`katex ${modules.katex}\n\n${licence("katex")}`],
};

for (const [name, notices] of Object.entries(page)) {
  await build({
    absWorkingDir: here("."),
    entryPoints: [`page/${name}.js`],
    outfile: join(process.argv[2] ?? here("../features/page"), `${name}.js`),
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    legalComments: "none",
    banner: { js: `/*! Built by web/build.mjs; do not edit.\n\n${notices.join("\n\n").replaceAll("*/", "* /")}\n*/` },
  });
}
