import type { ProcessResult } from "../../src/system/process.js";

/**
 * A pool in memory: as much of zfs as going back asks for, so that what zferry says of it can be tested without one. What ZFS
 * itself does is in test/lab/undo.test.ts.
 */

interface Made {
  readonly name: string;
  readonly guid: string;
  readonly createtxg: number;
}

export interface Dataset {
  readonly guid: string;
  /** The full name of a snapshot, or "-". */
  origin: string;
  /** Bytes since the newest snapshot. */
  written: number;
  readonly properties: Map<string, string>;
  snapshots: (Made & { readonly holds: Set<string> })[];
  bookmarks: Made[];
}

export class Pool {
  readonly datasets = new Map<string, Dataset>();
  /** What was run that changes something. */
  readonly done: string[] = [];
  health = "ONLINE";
  #txg = 100;

  create(name: string, guid: string, origin = "-"): Dataset {
    const made = { guid, origin, written: 0, properties: new Map(), snapshots: [], bookmarks: [] };
    this.datasets.set(name, made);
    return made;
  }

  snapshot(dataset: string, name: string, guid: string, ...holds: string[]): void {
    const createtxg = (this.#txg += 1);
    this.#of(dataset).snapshots.push({ name, guid, createtxg, holds: new Set(holds) });
  }

  /** As in ZFS, it has the guid and the transaction group of its snapshot. */
  bookmark(dataset: string, of: string, name: string): void {
    const { snapshots, bookmarks } = this.#of(dataset);
    const { guid, createtxg } = snapshots.find((each) => each.name === of) as Made;
    bookmarks.push({ name, guid, createtxg });
  }

  rename(from: string, to: string): void {
    this.datasets.set(to, this.#of(from));
    this.datasets.delete(from);
    for (const each of this.datasets.values()) each.origin = each.origin.replace(`${from}@`, `${to}@`);
  }

  promote(clone: string): void {
    const [owner = "", last = ""] = this.#of(clone).origin.split("@");
    const from = this.#of(owner);
    const count = from.snapshots.findIndex(({ name }) => name === last) + 1;
    const moved = from.snapshots.splice(0, count);
    this.#of(clone).snapshots.unshift(...moved);
    const before = from.origin;
    for (const each of this.datasets.values())
      if (moved.some(({ name }) => each.origin === `${owner}@${name}`))
        each.origin = each.origin.replace(`${owner}@`, `${clone}@`);
    this.#of(clone).origin = before;
    from.origin = `${clone}@${last}`;
  }

  holds(): string[] {
    return [...this.datasets].flatMap(([dataset, { snapshots }]) =>
      snapshots.flatMap(({ name, holds }) => [...holds].map((tag) => `${dataset}@${name} ${tag}`)),
    );
  }

  #of(dataset: string): Dataset {
    const found = this.datasets.get(dataset);
    if (found === undefined) throw new Missing(`cannot open '${dataset}': dataset does not exist`);
    return found;
  }

  #snapshot(full: string): Dataset["snapshots"][number] {
    const [dataset = "", name] = full.split("@");
    const found = this.#of(dataset).snapshots.find((each) => each.name === name);
    if (found === undefined) throw new Missing(`cannot open '${full}': snapshot does not exist`);
    return found;
  }

  /** What a command prints, and how it ends. */
  run(file: string, args: readonly string[]): ProcessResult {
    const end = (status: number, out: string, stderr: string): ProcessResult => ({
      ...{ status, signal: null, stdout: Buffer.from(out), stderr },
    });
    try {
      if (file === "zpool") return end(0, `${this.health}\n`, "");
      if (this.health !== "ONLINE")
        throw new Error(`a pool that does not answer is asked: ${args.join(" ")}`);
      return end(0, this.#zfs(args), "");
    } catch (error) {
      if (!(error instanceof Missing)) throw error;
      return end(1, "", `${error.message}\n`);
    }
  }

  #zfs([verb = "", ...args]: readonly string[]): string {
    const last = args.at(-1) ?? "";
    if (!["list", "get", "holds"].includes(verb)) this.done.push([verb, ...args].join(" "));
    if (verb === "list") return this.#list(args, last);
    if (verb === "get") return this.#get(args.at(-2) ?? "", last);
    if (verb === "holds") {
      const names = args.filter((arg) => arg.includes("@"));
      return lines(names.flatMap((name) => [...this.#snapshot(name).holds].map((tag) => [name, tag, "now"])));
    }
    if (verb === "set") {
      const [name = "", value = ""] = (args[0] ?? "").split("=");
      this.#of(last).properties.set(name, value);
    } else if (verb === "inherit") this.#of(last).properties.delete(args[0] ?? "");
    else if (verb === "hold") this.#snapshot(last).holds.add(args[0] ?? "");
    else if (verb === "release") {
      if (!this.#snapshot(last).holds.delete(args[0] ?? "")) throw new Missing("no such tag on this dataset");
    } else if (verb === "rollback") {
      const { createtxg } = this.#snapshot(last);
      const dataset = this.#of(last.split("@")[0] ?? "");
      dataset.snapshots = dataset.snapshots.filter((each) => each.createtxg <= createtxg);
      dataset.bookmarks = dataset.bookmarks.filter((each) => each.createtxg <= createtxg);
      dataset.written = 0;
    } else throw new Error(`zfs ${verb} is not there`);
    return "";
  }

  #list(args: readonly string[], name: string): string {
    const after = (option: string): string => args[args.indexOf(option) + 1] ?? "";
    const types = args.includes("-t") ? after("-t") : "";
    const below = [...this.datasets].filter(([each]) => each === name || each.startsWith(`${name}/`));
    if (types === "") return lines([[name, this.#of(name).guid]]);
    if (!args.includes("-r")) this.#of(name);
    const own = args.includes("-r") ? below : below.filter(([each]) => each === name);
    const fields = after("-o").split(",");
    const found: Record<string, string>[] = own.flatMap(([dataset, { guid, snapshots, bookmarks }]) => {
      if (types === "snapshot")
        return snapshots.map((each) => ({
          ...{ name: `${dataset}@${each.name}`, guid: each.guid },
          ...{ createtxg: String(each.createtxg), userrefs: String(each.holds.size) },
        }));
      if (types === "bookmark")
        return bookmarks.map((each) => ({
          ...{ name: `${dataset}#${each.name}`, guid: each.guid, createtxg: String(each.createtxg) },
        }));
      return [{ name: dataset, guid }];
    });
    return lines(found.map((each) => fields.map((field) => each[field] ?? "-")));
  }

  #get(names: string, name: string): string {
    const values: Record<string, string> = {};
    if (name.includes("@")) {
      const { guid, createtxg, holds } = this.#snapshot(name);
      const clones = [...this.datasets].filter(([, { origin }]) => origin === name).map(([each]) => each);
      Object.assign(values, { guid, createtxg, userrefs: holds.size, clones: clones.join(",") });
    } else {
      const { guid, origin, written, properties } = this.#of(name);
      Object.assign(values, { guid, origin, written, readonly: "on", ...Object.fromEntries(properties) });
      for (const each of names.split(",")) if (each.startsWith("written@")) values[each] = String(written);
    }
    return lines(names.split(",").map((each) => [each, String(values[each] ?? "-")]));
  }
}

class Missing extends Error {}

const lines = (rows: readonly (readonly string[])[]): string =>
  rows.map((row) => `${row.join("\t")}\n`).join("");
