import { readFileSync } from "node:fs";

/** The text of a page of formats/. */
export const readPage = (name: string): string =>
  readFileSync(new URL(`../../formats/${name}`, import.meta.url), "utf8");

/** The fenced blocks of one kind, in order; the kind is all that follows the fence. */
export const blocksOf = (page: string, kind: string): string[] =>
  [...page.matchAll(new RegExp(`^\`\`\`${kind}\\n(.*?)^\`\`\`$`, "gms"))].map(([, text = ""]) => text);

/** The rows of all tables, as cells without their spaces and back quotes. */
export const rowsOf = (page: string): string[][] =>
  page
    .split("\n")
    .filter((line) => line.startsWith("|"))
    .map((line) =>
      line
        .slice(1, -1)
        .split("|")
        .map((cell) => cell.trim().replaceAll("`", "")),
    );
