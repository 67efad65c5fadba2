/** @file Files: strict text, bounded reading, atomic writing, and the system's refusals in one line. */

import { chmodSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import * as files from "../../src/data/files.ts";
import { describeImpostor, firstInvalidUtf8, inert, nearest, quote } from "../../src/data/text.ts";
import { InputError, StorageError } from "../../src/errors.ts";
import { temporaryFolder } from "./shared.ts";

const folder = temporaryFolder();
const at = (name: string) => join(folder, name);
const put = (name: string, content: string | Uint8Array) => {
  writeFileSync(at(name), content);
  return at(name);
};
const caught = (work: () => unknown): Error => {
  try {
    work();
  } catch (error) {
    return error as Error;
  }
  throw new Error("nothing was thrown");
};

describe("reading", () => {
  it("drops a byte-order mark and refuses invalid UTF-8 with its line and offset", () => {
    expect(files.readText(put("bom.txt", "\ufeffZoë\n"))).toBe("Zoë\n");
    const bytes = Buffer.concat([Buffer.from("\ufeffab\nc"), Buffer.from([0xff])]);
    expect(caught(() => files.readText(put("bad.txt", bytes)))).toBeInstanceOf(InputError);
    expect(() => files.readText(at("bad.txt"))).toThrow("bad.txt: invalid UTF-8 (line 2, byte offset 7; found 0xff)");
  });

  it("finds the first byte that no UTF-8 has exactly where the decoder fails", () => {
    const strict = new TextDecoder("utf-8", { fatal: true });
    const good = (bytes: number[]) => succeeds(() => strict.decode(Uint8Array.from(bytes)));
    const leads = [
      0x41, 0x7f, 0x80, 0xbf, 0xc0, 0xc1, 0xc2, 0xdf, 0xe0, 0xe1, 0xed, 0xee, 0xef, 0xf0, 0xf1, 0xf4, 0xf5, 0xff,
    ];
    const rest = [0x41, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0];
    for (const a of leads) {
      for (const b of rest) {
        for (const c of rest) {
          for (const tail of [[], [0x80], [0x80, 0x41]]) {
            const bytes = [0x41, a, b, c, ...tail];
            expect([bytes, firstInvalidUtf8(Uint8Array.from(bytes)) < 0]).toEqual([bytes, good(bytes)]);
          }
        }
      }
    }
  });

  it("reads lines over chunk borders: characters, CRLF and long lines stay whole", () => {
    const long = "東".repeat(500_000); // 1.5 MB in UTF-8: more than a chunk
    const lines = [long, "", "a\rb", "x".repeat(2 ** 20 - 1), "last"];
    expect([...files.readLines(put("lines.txt", lines.join("\r\n")))]).toEqual(lines);
    expect([...files.readLines(put("ended.txt", "a\n\n"))]).toEqual(["a", ""]);
    expect([...files.readLines(put("none.txt", ""))]).toEqual([]);
  });

  it("names line and offset in a later chunk", () => {
    const bytes = Buffer.concat([Buffer.from(`${"x".repeat(99)}\n`.repeat(20_000)), Buffer.from([0x61, 0xc3, 0x0a])]);
    expect(() => [...files.readLines(put("late.txt", bytes))]).toThrow("(line 20001, byte offset 2000001; found 0xc3)");
    const nul = `${"x\n".repeat(600_000)}a\0b\n`;
    expect(() => [...files.readLines(put("nul.txt", nul))]).toThrow("nul.txt: a NUL character (line 600001;");
  });

  it("refuses a line without end", () => {
    const endless = put("endless.txt", new Uint8Array(18 * 2 ** 20).fill(97));
    expect(() => [...files.readLines(endless)]).toThrow("a line is longer than 16 MB (line 1)");
  });

  it("refuses a file above the limit before reading it", () => {
    expect(() => files.readText(put("big.json", "12345"), { maxBytes: 4 })).toThrow(
      "big.json: too large (found 5 bytes, expected at most 4)",
    );
  });

  it("reads ranges, and refuses one past the end before taking memory for it", () => {
    const file = new files.RangeFile(put("range.bin", "0123456789"));
    expect(new TextDecoder().decode(file.read(3, 4))).toBe("3456");
    expect(() => file.read(3, 2 ** 50)).toThrow(StorageError);
    file.close();
  });
});

const succeeds = (work: () => unknown) => {
  try {
    work();
    return true;
  } catch {
    return false;
  }
};

describe("impostors", () => {
  it.each([
    ["version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"],
    ["\ufeff\n <!doctype HTML>", "an HTML page"],
    ["<html lang=en>", "an HTML page"],
    ['<?xml version="1.0"?><Error>', "an XML document"],
    ["PK\u0003\u0004", "a ZIP archive"],
    ["PAR1", "a Parquet file"],
  ])("%j is %s", (text, what) => {
    expect(describeImpostor(new TextEncoder().encode(text))).toContain(what);
  });
  it("leaves text alone that only speaks of such things", () => {
    for (const text of ["", "<htmlx", "a <html>", "version 1", "{}"]) {
      expect(describeImpostor(new TextEncoder().encode(text))).toBeUndefined();
    }
    expect(() => files.readText(put("config.json", "<html></html>"), { wanted: "a config" })).toThrow(
      "config.json: this is an HTML page, not the file itself; download it again (expected a config).",
    );
  });
});

describe("what the system refuses", () => {
  it.each([
    [() => files.readText(at("nothing")), "nothing: cannot open: no such file or folder. Check the path."],
    [() => files.readText(folder), "cannot open: this is a folder (expected a file)"],
    [() => files.readText(join(put("file", ""), "below")), "cannot open: a part of this path is a file"],
    [() => files.readText("/dev/zero"), "/dev/zero: cannot read: this is a device or a pipe"],
    [() => files.readText(at("n".repeat(300))), "this name is too long"],
    [() => files.writeFileAtomic(join(folder, "no", "x"), ""), "x: cannot write: no such file or folder"],
    [() => files.writeFileAtomic(folder, ""), "cannot write: "],
    [() => files.fileExists(join(at("file"), "x")), "a part of this path is a file"],
  ])("case %#", (work, message) => {
    const error = caught(work);
    expect(error.message).toContain(message);
    expect(error).toBeInstanceOf(StorageError);
    expect(error.message).not.toContain("\n");
  });

  it("permission, where we are not root", () => {
    const secret = put("secret", "x");
    chmodSync(secret, 0);
    if (process.getuid?.() !== 0)
      expect(() => files.readText(secret)).toThrow("secret: cannot open: permission denied");
  });

  it("a full disk, where /dev/full stands in for one", () => {
    const full = Object.assign(new Error("ENOSPC"), { code: "ENOSPC" });
    expect(files.storageError("run/x", "write", full).message).toBe(
      "run/x: cannot write: no space left on the disk. Free some and run again.",
    );
    expect(files.storageError("x", "read", Object.assign(new Error(), { code: "EWEIRD" })).message).toContain("EWEIRD");
    const bug = Object.assign(new Error(), { code: "ERR_INVALID_ARG_TYPE" });
    expect(files.storageError("x", "read", bug)).toBe(bug);
  });
});

describe("writing", () => {
  it("writes text, bytes and pieces, over an older file, and leaves nothing else behind", () => {
    mkdirSync(at("out"));
    files.writeFileAtomic(at("out/a"), "Zoë");
    files.writeFileAtomic(at("out/a"), Uint8Array.of(1, 2));
    expect([...readFileSync(at("out/a"))]).toEqual([1, 2]);
    files.writeFileAtomic(at("out/b"), [Uint8Array.of(1), new Uint8Array(0), Uint8Array.of(2, 3)]);
    expect([...readFileSync(at("out/b"))]).toEqual([1, 2, 3]);
    expect(readdirSync(at("out"))).toEqual(["a", "b"]);
  });

  it("leaves the older file whole when the content fails half-way, and removes its own", () => {
    mkdirSync(at("half"));
    files.writeFileAtomic(at("half/a"), "old");
    const failing = function* () {
      yield Uint8Array.of(1);
      throw new Error("half-way");
    };
    expect(() => files.writeFileAtomic(at("half/a"), failing())).toThrow("half-way");
    expect(readFileSync(at("half/a"), "utf8")).toBe("old");
    expect(readdirSync(at("half"))).toEqual(["a"]);
  });

  it("hashes bytes, text and files alike", () => {
    const abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"; // FIPS 180-2, appendix B.1
    expect([files.sha256("abc"), files.sha256(Uint8Array.of(97, 98, 99)), files.sha256File(put("abc", "abc"))]).toEqual(
      [abc, abc, abc], // the same content three ways
    );
  });

  it("sees files, through links, and no folders", () => {
    symlinkSync(put("target", ""), at("link"));
    expect([files.fileExists(at("link")), files.fileExists(folder), files.fileExists(at("nope"))]).toEqual([
      true,
      false,
      false,
    ]);
  });
});

describe("words in messages", () => {
  it("are inert, and cut", () => {
    expect(quote("a\u001b[31m\n\u202eb\u0000")).toBe('"a\\u{1b}[31m\\n\\u{202e}b\\u{0}"');
    expect(quote("東".repeat(100), 5)).toBe('"東東東東東…"');
    expect(inert("Zoë 東京 🎬")).toBe("Zoë 東京 🎬");
  });
  it("suggest the nearest, but nothing far", () => {
    expect(nearest("sentnece", ["label", "sentence", "text"])).toBe("sentence");
    expect(nearest("x", ["label", "sentence"])).toBeUndefined();
    expect(nearest("stars", ["label", "class"])).toBeUndefined();
  });
});
