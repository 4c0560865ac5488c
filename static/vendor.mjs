// Brings the browser libraries, and what their licences ask for, from node_modules to static/vendor.
import { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const modules = join(here, "..", "node_modules");
const vendor = join(here, "vendor");
const files = {
  "htmx.LICENSE": "htmx.org/LICENSE",
  "uPlot.iife.min.js": "uplot/dist/uPlot.iife.min.js",
  "uPlot.min.css": "uplot/dist/uPlot.min.css",
  "uPlot.LICENSE": "uplot/LICENSE",
};
// In one file: htmx starts between two deferred scripts, at times before its extension would be there.
const live = ["htmx.org/dist/htmx.min.js", "htmx.org/dist/ext/hx-sse.min.js"];

rmSync(vendor, { recursive: true, force: true });
mkdirSync(vendor);
for (const [name, source] of Object.entries(files)) {
  copyFileSync(join(modules, source), join(vendor, name));
}
const whole = live.map((name) => readFileSync(join(modules, name), "utf8"));
writeFileSync(join(vendor, "htmx-sse.min.js"), whole.join(";\n"));
