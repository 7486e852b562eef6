import type { RawPath } from "../raw-path.js";
import { pathOf, type PathName } from "./paths.js";

/** What the names of one file have in common, as it is recorded or planned: the first of them; undefined where it has one. */
export const linkOf = (file: { readonly link?: PathName | undefined } | null): RawPath | undefined =>
  file?.link === undefined ? undefined : pathOf(file.link);

/**
 * Compares two ways in which paths are one file together, in a time that does not grow with the square of their number.
 * @param a for each path, in the same order, what those that are one file with it have too; undefined where it is alone
 * @param b the same, of the other way
 * @returns whether a path is one file with the same others in both
 */
export function groupedAlike(
  paths: readonly RawPath[],
  a: readonly (string | undefined)[],
  b: readonly (string | undefined)[],
): (path: RawPath) => boolean {
  const sizes = new Map<string, number>();
  const groups = new Map<RawPath, readonly string[]>();
  for (const [index, path] of paths.entries()) {
    const [inA, inB] = [a[index], b[index]].map((group) =>
      group === undefined ? `alone ${path}` : `in ${group}`,
    );
    const keys = [`a ${inA}`, `b ${inB}`, `both ${inA}\0\0${inB}`];
    groups.set(path, keys);
    for (const key of keys) sizes.set(key, (sizes.get(key) ?? 0) + 1);
  }
  return (path) => new Set(groups.get(path)?.map((key) => sizes.get(key))).size <= 1;
}
