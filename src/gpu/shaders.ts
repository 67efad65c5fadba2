/**
 * @file Shader text: the one visible function that specialises it (`withTile`), and compile errors that show the line.
 * Shaders are files of valid WGSL that compile alone; sizes and switches are `override` constants where WGSL allows it.
 * Where it wants a `const` (the size of a register tile, an element type) the file carries defaults between the marks
 * `// --- tile` and `// --- end`, one declaration a line, and those lines are replaced here.
 */

/** Name without ".wgsl" → text. */
export type ShaderSources = ReadonlyMap<string, string>;

/** What replaces a tile line: a number keeps the default's suffix (`4u` stays u32), a string is a type or expression. */
export type Tile = Readonly<Record<string, number | string>>;

const TILE = /^(\/\/ --- tile.*\n)([\s\S]*?)(^\/\/ --- end)/m;
const LINE = /^(const|alias)\s+(\w+)\s*=\s*([^;]*);/;

/** `source` with the declarations named in `tile` replaced between the marks. Throws if a name is not there. */
export function withTile(source: string, tile: Tile, name: string): string {
  const names = new Set(Object.keys(tile));
  if (names.size === 0) return source;
  const replaced = source.replace(TILE, (_, open: string, body: string, close: string) => {
    const lines = body.split("\n").map((line) => {
      const match = LINE.exec(line);
      const value = match?.[2] !== undefined ? tile[match[2]] : undefined;
      if (!match || value === undefined) return line;
      names.delete(match[2] as string);
      const suffix = typeof value === "number" && /^\d+u$/.test((match[3] as string).trim()) ? "u" : "";
      return line.replace(match[0], `${match[1]} ${match[2]} = ${value}${suffix};`);
    });
    return open + lines.join("\n") + close;
  });
  if (names.size > 0) throw new Error(`shaders/${name}.wgsl has no tile line for ${[...names].join(", ")}`);
  return replaced;
}

/** Compiler messages beneath the numbered lines they speak of. */
export function formatCompilation(source: string, messages: readonly GPUCompilationMessage[]): string {
  const lines = source.split("\n");
  return messages
    .filter((m) => m.type === "error")
    .map((m) => {
      const from = Math.max(1, m.lineNum - 3);
      const shown = lines.slice(from - 1, m.lineNum + 1).map((text, i) => `${String(from + i).padStart(5)} | ${text}`);
      const at = m.lineNum - from + 1;
      shown.splice(at, 0, `      | ${" ".repeat(Math.max(0, m.linePos - 1))}^ ${m.message}`);
      return shown.join("\n");
    })
    .join("\n");
}
