/** @file Installs what this bench compares with, the first time, and runs it. Apart from run.ts, whose imports need it. */
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

const folder = fileURLToPath(new URL(".", import.meta.url));
if (!existsSync(`${folder}node_modules`)) {
  process.stderr.write("note: installing the peers into bench/peers/node_modules (220 MB)\n");
  const { status } = spawnSync("npm", ["install", "--prefix", folder], {
    stdio: ["ignore", 2, 2],
    shell: process.platform === "win32",
  });
  if (status !== 0) {
    process.stderr.write("bench/peers: npm install failed, see above. Run `npm install --prefix bench/peers`.\n");
    process.exit(4);
  }
}
await import("./run.ts");
