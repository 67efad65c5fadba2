/** @file A strict reading of the SVG that is written: every tag closed in order, every attribute quoted once, or it throws. */

export interface SvgElement {
  name: string;
  attributes: Record<string, string>;
}

const ENTITIES: Record<string, string> = { lt: "<", gt: ">", amp: "&", quot: '"', apos: "'" };

function decoded(text: string): string {
  if (text.includes("<") || text.includes("]]>")) throw new Error(`markup in text: ${text}`);
  return text.replace(/&(\w*);?/g, (whole, name: string) => {
    const character = ENTITIES[name];
    if (character === undefined || !whole.endsWith(";")) throw new Error(`an entity that XML has not: ${whole}`);
    return character;
  });
}

/** Walks the document; throws where it is not well-formed. */
function walk(svg: string, onElement: (element: SvgElement) => void, onText: (text: string, within: string) => void) {
  const open: string[] = [];
  let at = 0;
  for (const { 0: tag, index } of svg.matchAll(/<[^>]*>/g)) {
    const text = decoded(svg.slice(at, index));
    if (text.trim() !== "") onText(text, open.at(-1) ?? "");
    at = index + tag.length;
    const close = /^<\/([\w-]+)>$/.exec(tag);
    if (close) {
      if (open.pop() !== close[1]) throw new Error(`${tag} closes nothing`);
      continue;
    }
    const [, name = "", inside = "", ended] = /^<([a-zA-Z][\w-]*)((?: [\w:-]+="[^"<]*")*) ?(\/?)>$/.exec(tag) ?? [];
    if (name === "") throw new Error(`not a tag: ${tag}`);
    const pairs = [...inside.matchAll(/ ([\w:-]+)="([^"]*)"/g)].map((m) => [m[1] ?? "", decoded(m[2] ?? "")] as const);
    const attributes = Object.fromEntries(pairs);
    if (Object.keys(attributes).length !== pairs.length) throw new Error(`an attribute twice: ${tag}`);
    onElement({ name, attributes });
    if (ended === "") open.push(name);
  }
  if (open.length > 0 || svg.slice(at).trim() !== "") throw new Error(`not closed: ${open}`);
}

/** All elements, in order. */
export function elements(svg: string): SvgElement[] {
  const found: SvgElement[] = [];
  walk(
    svg,
    (element) => found.push(element),
    () => {},
  );
  return found;
}

/** All pieces of text but the style. */
export function textsIn(svg: string): string[] {
  const found: string[] = [];
  walk(
    svg,
    () => {},
    (text, within) => within !== "style" && found.push(text),
  );
  return found;
}
